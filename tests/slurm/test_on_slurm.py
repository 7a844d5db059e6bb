"""Sweeps on a real Slurm: `make test-slurm` runs this beside the cluster that cluster.sh starts."""

import json
import os
import shutil
import subprocess
import time

import pytest
from processes import recorders
from small import DIGITS, SMALL

from reloss.learning import PredictionBank
from reloss.sweep.local import note_of
from reloss.sweep.plan import Cell, phases
from reloss.sweep.status import of_plan

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("RELOSS_SLURM" not in os.environ, reason="needs the Slurm of `make test-slurm`"),
    pytest.mark.skipif(shutil.which("sbatch") is None, reason="no Slurm here"),
]
RESOURCES = ("--slurm", "cpus=1", "mem=1", "time=10")


def wait_for(condition, seconds=240):
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, subprocess.run(["squeue"], capture_output=True, text=True).stdout
        time.sleep(0.2)


def no_jobs():
    asked = subprocess.run(["squeue", "--noheader"], capture_output=True, text=True, check=True)
    return not asked.stdout.strip()


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def log(cell, runs):
    return (runs / "sweep" / f"{cell.file_name}.log").read_text()


@pytest.fixture
def sweep(cli, tmp_path):
    def call(*words, resources=RESOURCES, settings=SMALL):
        where = ("--runs", tmp_path / "runs", "--data", tmp_path / "data", "--track", "off")
        return cli("sweep", DIGITS, "--launcher", "slurm", *resources, *where, "--set", *settings, *words)

    return call


def test_a_grid_runs_in_arrays_each_after_what_it_needs(sweep, run_digits, tmp_path):
    runs = tmp_path / "runs"
    code, _, err = sweep("--losses", "ce,reloss", "--seeds", "0-1")
    assert code == 0, err
    lines = [line.partition(", after ")[0].split() for line in err.splitlines()]
    jobs = {" ".join(words[2:]): words[1] for words in lines}
    plan = phases(DIGITS, ["ce", "reloss"], [0, 1], SMALL)
    baseline, fit, other, *seeds = [jobs[cell.label] for phase in plan for cell in phase]
    assert [line.split(", after ")[1:] for line in err.splitlines()] == [[], [baseline], [], [fit], [fit]]
    assert [job.split("_")[1:] for job in (baseline, fit, other, *seeds)] == [[], [], [], ["0"], ["1"]]
    rows = of_plan(plan, runs)
    assert {row.state for row in rows} <= {"queued", "running", "finished"}
    assert any(row.state == "queued" and row.reason == f"job {seeds[1]}" for row in rows)
    _, _, again = sweep("--losses", "ce,reloss", "--seeds", "0-1")
    assert again.count("is queued already") + again.count("finished") == 5

    wait_for(no_jobs)
    assert {row.state for row in of_plan(plan, runs) if row.stage == "all"} == {"finished"}
    assert len(list((runs / DIGITS / "surrogates").iterdir())) == 1
    whole = run_digits("reloss", seed=1, runs=tmp_path / "whole")
    assert summary(plan[3][2].record(runs))["scores"] == summary(whole)["scores"]
    _, _, again = sweep("--losses", "ce,reloss", "--seeds", "0-1")
    assert again.count("finished") == 5
    assert no_jobs()


def test_a_failing_run_leaves_the_others_alone_and_what_needs_it_is_not_run(sweep, tmp_path):
    runs = tmp_path / "runs"
    plan = phases(DIGITS, ["ce", "reloss"], [0, 1], SMALL)
    broken = plan[1][0].record(runs)
    broken.mkdir(parents=True)
    (broken / "config.yaml").write_text("of another experiment")
    assert sweep("--losses", "ce,reloss", "--seeds", "0-1")[0] == 0
    wait_for(no_jobs)
    rows = {(row.loss.partition("@")[0], row.seed, row.stage): row for row in of_plan(plan, runs)}
    assert rows["ce", 1, "all"].state == "finished"
    assert rows["ce", 0, "all"].state == "failed"
    assert "was made by another config" in rows["ce", 0, "all"].reason
    for key in (("reloss", 0, "learn"), ("reloss", 0, "all"), ("reloss", 1, "all")):
        assert rows[key].state == "not run"
        assert rows[key].reason == f"needs {plan[1][0].changed_loss} seed 0, which failed"
    (broken / "config.yaml").unlink()
    assert sweep("--losses", "ce,reloss", "--seeds", "0-1")[0] == 0  # the failed one is tried again
    wait_for(no_jobs)
    assert {row.state for row in of_plan(plan, runs) if row.stage == "all"} == {"finished"}


LONG = ("train.epochs=100",)


def test_a_preempted_run_goes_on_when_there_is_room_again(sweep, run_digits, tmp_path):
    runs = tmp_path / "runs"
    cell = Cell(DIGITS, "ce", 1, settings=LONG)
    resources = (*RESOURCES, "partition=low")
    assert sweep("--losses", "ce", "--seeds", "1", resources=resources, settings=LONG)[0] == 0
    metrics = cell.record(runs) / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") >= 3)
    subprocess.run(
        ["sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap", "sleep 5"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    wait_for(lambda: summary(cell.record(runs))["status"] == "interrupted")
    wait_for(no_jobs)
    assert summary(cell.record(runs))["status"] == "finished"
    assert "going on from epoch" in log(cell, runs)
    whole = run_digits(seed=1, settings=LONG, runs=tmp_path / "whole")
    assert summary(cell.record(runs))["scores"] == summary(whole)["scores"]


def test_a_run_that_needs_more_time_is_requeued(sweep, tmp_path):
    """With the signal that Slurm sends before the end, sent here by hand: Slurm's own comes up to a minute early."""
    runs = tmp_path / "runs"
    cell = Cell(DIGITS, "ce", 1, settings=LONG)
    assert sweep("--losses", "ce", "--seeds", "1", settings=LONG)[0] == 0
    metrics = cell.record(runs) / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") >= 3)
    subprocess.run(["scancel", "--signal=USR2", note_of(cell, runs)["job"]], check=True)
    wait_for(lambda: summary(cell.record(runs))["status"] == "interrupted")
    wait_for(no_jobs)
    assert summary(cell.record(runs))["status"] == "finished"
    assert "going on from epoch" in log(cell, runs)
    (said,) = (runs / "sweep" / "slurm").glob("*_0_log.err")
    assert "this job is timed-out" in said.read_text()


def test_a_run_on_two_nodes(sweep, tmp_path):
    runs = tmp_path / "runs"
    cell = Cell(DIGITS, "ce", 0, settings=SMALL)
    resources = (*RESOURCES, "nodes=2")
    assert sweep("--losses", "ce", "--seeds", "0", resources=resources)[0] == 0
    wait_for(no_jobs)
    assert summary(cell.record(runs))["status"] == "finished", log(cell, runs)
    assert len(PredictionBank.open(runs / DIGITS / "bank")) == 32
    assert recorders(runs / DIGITS) == [0, 1]  # each node its half


def test_sbatch_that_refuses_is_said(sweep):
    code, _, err = sweep("--losses", "ce", "--seeds", "1", resources=("--slurm", "partition=none"))
    assert code == 1
    assert "Slurm refuses the jobs" in err
    assert "invalid partition specified: none" in err
