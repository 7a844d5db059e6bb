"""Sweeps on a real Slurm: `make test-slurm` runs these tests on the cluster that cluster.sh starts."""

import json
import os
import shutil
import subprocess

import pytest
from processes import recorders
from small import DIGITS, SMALL
from waiting import wait_for

from reloss.experiment.run_spec import RunSpec
from reloss.experiment.workspace import Workspace
from reloss.learning import PredictionBank
from reloss.sweep.job import Job, log_of, read_note
from reloss.sweep.plan import make_plan
from reloss.sweep.status import of_plan

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("RELOSS_SLURM" not in os.environ, reason="needs the Slurm of `make test-slurm`"),
    pytest.mark.skipif(shutil.which("sbatch") is None, reason="no Slurm here"),
]
RESOURCES = ("--slurm", "cpus=1", "mem=1", "time=10")


def no_jobs():
    output = subprocess.run(["squeue", "--noheader"], capture_output=True, text=True, check=True).stdout
    return not output.strip()


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "runs", tmp_path / "data")


@pytest.fixture
def summary(workspace):
    """Read the summary of a job's run."""
    return lambda job: json.loads((workspace.record(job.run) / "summary.json").read_text())


@pytest.fixture
def sweep(cli, workspace):
    """Submit a sweep; return exit code, standard output and standard error."""

    def call(*words, resources=RESOURCES, settings=SMALL):
        folders = ("--runs", workspace.runs, "--data", workspace.data, "--track", "off")
        return cli("sweep", DIGITS, "--launcher", "slurm", *resources, *folders, "--set", *settings, *words)

    return call


def has_three_epochs(job, workspace):
    metrics = workspace.record(job.run) / "metrics.jsonl"
    return metrics.exists() and metrics.read_text().count("\n") >= 3


def test_a_grid_runs_in_arrays_each_after_the_jobs_it_needs(sweep, summary, workspace, run_digits, tmp_path):
    code, _, err = sweep("--losses", "ce,reloss", "--seeds", "0-1")
    assert code == 0, err
    lines = [line.partition(", after ")[0].split() for line in err.splitlines()]
    ids = {" ".join(words[2:]): words[1] for words in lines}
    plan = make_plan(DIGITS, ["ce", "reloss"], [0, 1], SMALL)
    baseline, fit, other, *seeds = [ids[job.label] for job in plan]
    assert [line.split(", after ")[1:] for line in err.splitlines()] == [[], [baseline], [], [fit], [fit]]
    assert [number.split("_")[1:] for number in (baseline, fit, other, *seeds)] == [[], [], [], ["0"], ["1"]]
    rows = of_plan(plan, workspace)
    assert {row.state for row in rows} <= {"queued", "running", "finished"}
    assert any(row.state == "queued" and row.reason == f"job {seeds[1]}" for row in rows)
    _, _, err = sweep("--losses", "ce,reloss", "--seeds", "0-1")
    assert err.count("is queued already") + err.count("finished") == 5

    wait_for(no_jobs)
    assert {row.state for row in of_plan(plan, workspace) if row.stage == "all"} == {"finished"}
    assert len(workspace.surrogates(DIGITS)) == 1
    whole = run_digits("reloss", seed=1, runs=tmp_path / "whole")
    assert summary(plan.runs[2])["scores"] == json.loads((whole / "summary.json").read_text())["scores"]
    _, _, err = sweep("--losses", "ce,reloss", "--seeds", "0-1")
    assert err.count("finished") == 5
    assert no_jobs()


def test_a_failing_run_stops_only_the_jobs_that_need_it(sweep, workspace):
    plan = make_plan(DIGITS, ["ce", "reloss"], [0, 1], SMALL)
    (baseline,), (other, *learned) = plan.baselines, plan.runs
    record = workspace.record(baseline.run)
    record.mkdir(parents=True)
    (record / "config.yaml").write_text("of another experiment")
    assert sweep("--losses", "ce,reloss", "--seeds", "0-1")[0] == 0
    wait_for(no_jobs)
    rows = dict(zip(plan, of_plan(plan, workspace), strict=True))
    assert rows[other].state == "finished"
    assert rows[baseline].state == "failed"
    assert "belongs to a run with another config" in rows[baseline].reason
    for job in (*plan.fits, *learned):
        assert rows[job].state == "not_run"
        assert rows[job].reason == f"needs {baseline.run.loss_with_variant} seed 0, which failed"
    (record / "config.yaml").unlink()
    assert sweep("--losses", "ce,reloss", "--seeds", "0-1")[0] == 0  # the failed run is tried again
    wait_for(no_jobs)
    assert {row.state for row in of_plan(plan, workspace) if row.stage == "all"} == {"finished"}


LONG = ("train.epochs=100",)


def test_a_preempted_run_resumes_when_there_is_room_again(sweep, summary, workspace, run_digits, tmp_path):
    job = Job(RunSpec(DIGITS, "ce", 1, LONG))
    resources = (*RESOURCES, "partition=low")
    assert sweep("--losses", "ce", "--seeds", "1", resources=resources, settings=LONG)[0] == 0
    wait_for(lambda: has_three_epochs(job, workspace))
    subprocess.run(
        ["sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap", "sleep 5"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    wait_for(lambda: summary(job)["status"] == "interrupted")
    wait_for(no_jobs)
    assert summary(job)["status"] == "finished"
    assert "resuming from epoch" in log_of(job, workspace).read_text()
    whole = run_digits(seed=1, settings=LONG, runs=tmp_path / "whole")
    assert summary(job)["scores"] == json.loads((whole / "summary.json").read_text())["scores"]


def test_a_run_that_needs_more_time_is_requeued(sweep, summary, workspace):
    """The test sends the signal that Slurm sends before the time limit, since Slurm may send it a minute early."""
    job = Job(RunSpec(DIGITS, "ce", 1, LONG))
    assert sweep("--losses", "ce", "--seeds", "1", settings=LONG)[0] == 0
    wait_for(lambda: has_three_epochs(job, workspace))
    subprocess.run(["scancel", "--signal=USR2", read_note(job, workspace)["job"]], check=True)
    wait_for(lambda: summary(job)["status"] == "interrupted")
    wait_for(no_jobs)
    assert summary(job)["status"] == "finished"
    assert "resuming from epoch" in log_of(job, workspace).read_text()
    (log,) = workspace.slurm_logs.glob("*_0_log.err")
    assert "this job is timed-out" in log.read_text()


def test_a_run_on_two_nodes(sweep, summary, workspace):
    job = Job(RunSpec.resolve(DIGITS, "ce", 0, SMALL))
    resources = (*RESOURCES, "nodes=2")
    assert sweep("--losses", "ce", "--seeds", "0", resources=resources)[0] == 0
    wait_for(no_jobs)
    assert summary(job)["status"] == "finished", log_of(job, workspace).read_text()
    assert len(PredictionBank.open(workspace.bank(DIGITS))) == 32
    assert recorders(workspace.experiment(DIGITS)) == [0, 1]  # each node records its half


def test_a_refusal_of_sbatch_is_reported(sweep):
    code, _, err = sweep("--losses", "ce", "--seeds", "1", resources=("--slurm", "partition=none"))
    assert code == 1
    assert "Slurm refuses the jobs" in err
    assert "invalid partition specified: none" in err
