import json
import multiprocessing
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from small import DIGITS, SMALL, SMALL_CE
from waiting import wait_for

from reloss.experiment.run_spec import RunSpec
from reloss.experiment.status import Status
from reloss.experiment.workspace import Workspace
from reloss.pipeline.fitting import surrogate_folder
from reloss.runtime.lock import is_locked, locked
from reloss.sweep.local import Processes, is_running, run_local
from reloss.sweep.plan import make_plan
from reloss.sweep.status import of_plan


def test_finished_runs_are_skipped_and_a_failing_run_stops_no_other(cli, run_digits, tmp_path):
    record = run_digits()
    summary = record / "summary.json"
    before = summary.stat().st_mtime_ns
    broken = record.parent / "seed1"
    broken.mkdir()
    (broken / "config.yaml").write_text("of another experiment")
    code, _, err = cli(
        "sweep", DIGITS, "--losses", "ce", "--seeds", "0-2", "--slots", "2", "--runs", tmp_path / "runs",
        "--track", "off", "--set", *SMALL,
    )  # fmt: skip
    assert code == 1
    assert "1 of 3 runs failed" in err
    assert f"skip      classification/digits_cnn {SMALL_CE} seed 0 (finished)" in err
    assert f"FAILED 2  classification/digits_cnn {SMALL_CE} seed 1" in err
    assert summary.stat().st_mtime_ns == before
    assert json.loads((record.parent / "seed2" / "summary.json").read_text())["status"] == "finished"
    logs = tmp_path / "runs" / "sweep"
    name = f"classification_digits_cnn-{SMALL_CE}-all-seed"
    assert sorted(path.name for path in logs.iterdir()) == [f"{name}1.json", f"{name}1.log", f"{name}2.log"]
    assert "belongs to a run with another config" in (logs / f"{name}1.log").read_text()
    assert "belongs to a run with another config" in json.loads((logs / f"{name}1.json").read_text())["reason"]


def test_a_damaged_record_stops_no_other_run(cli, run_digits, tmp_path):
    damaged = run_digits(seed=1) / "summary.json"
    damaged.write_text('{"status"')
    words = ("sweep", DIGITS, "--losses", "ce", "--seeds", "1-2", "--runs", tmp_path / "runs", "--track", "off")
    code, out, err = cli(*words, "--launcher", "print", "--image", "none", "--set", *SMALL)
    assert code == 0, err
    assert [line.split("--seed ")[1][0] for line in out.splitlines()[1:]] == ["1", "2"]
    code, _, err = cli(*words, "--set", *SMALL)
    assert code == 1
    assert err.startswith("2 runs, 0 finished")
    assert f"FAILED 1  {DIGITS} {SMALL_CE} seed 1" in err
    assert f"{damaged} cannot be read as JSON" in err
    assert "1 of 2 runs failed" in err
    assert json.loads((damaged.parents[1] / "seed2" / "summary.json").read_text())["status"] == "finished"


def test_a_sweep_whose_logs_cannot_be_written_ends(tmp_path):
    plan = make_plan(DIGITS, ["ce"], range(4), SMALL)
    tmp_path.joinpath("sweep").write_text("in the way")
    assert set(run_local(plan, [], Workspace(tmp_path), slots=2, gpus=[])) == set(plan)


def test_a_run_starts_as_soon_as_the_jobs_it_needs_have_ended(tmp_path, monkeypatch):
    """The baseline here ends only after a run that does not need it."""
    plan = make_plan(DIGITS, ["ce", "reloss"], [0, 1])
    baseline, fit, other, *learned = plan
    order, baseline_started, other_ended = [], threading.Event(), threading.Event()

    def run_job(job, *_):
        if job == other:
            assert baseline_started.wait(60)  # the two threads start together; this makes the baseline the first
        order.append(job)
        baseline_started.set()
        if job == other:
            other_ended.set()
        return 0 if job != baseline or other_ended.wait(60) else 1

    monkeypatch.setattr("reloss.sweep.local.run_job", run_job)
    assert run_local(plan, [], Workspace(tmp_path), 2, []) == []
    assert order[:3] == [baseline, other, fit]
    assert set(order[3:]) == set(learned)


def hold(folder, ready, end):
    with locked(folder):
        ready.set()
        end.wait(60)


@pytest.fixture
def holder():
    """Lock a folder in another process; the function that it returns releases the lock."""
    context, processes = multiprocessing.get_context("fork"), []

    def start(folder):
        ready, end = context.Event(), context.Event()
        process = context.Process(target=hold, args=(folder, ready, end))
        process.start()
        processes.append((process, end))
        assert ready.wait(60)
        return end.set

    yield start
    for process, end in processes:
        end.set()
        process.join()


def test_a_job_that_another_process_runs_is_waited_for(tmp_path, monkeypatch, capsys, holder):
    """Such as a run that outlived its sweep."""
    plan, workspace = make_plan(DIGITS, ["ce"], [1]), Workspace(tmp_path)
    (job,) = plan
    release = holder(workspace.record(job.run))
    locks = []

    def run_job(job, *_):
        locks.append(is_locked(workspace.record(job.run)))
        return 0

    monkeypatch.setattr("reloss.sweep.local.run_job", run_job)
    monkeypatch.setattr("reloss.sweep.local.time", SimpleNamespace(sleep=lambda seconds: release()))
    assert run_local(plan, [], workspace, 1, []) == []
    assert locks == [False]
    assert f"wait      {job.label} (another process is running it)" in capsys.readouterr().err


def test_a_run_that_another_process_started_at_the_same_moment_did_not_fail(tmp_path, monkeypatch, holder):
    plan, workspace = make_plan(DIGITS, ["ce"], [1]), Workspace(tmp_path)
    codes = []

    def run_job(job, *_):
        if codes:
            codes.append(0)
        else:
            release = holder(workspace.record(job.run))
            monkeypatch.setattr("reloss.sweep.local.time", SimpleNamespace(sleep=lambda seconds: release()))
            codes.append(2)
        return codes[-1]

    monkeypatch.setattr("reloss.sweep.local.run_job", run_job)
    assert run_local(plan, [], workspace, 1, []) == []
    assert codes == [2, 0]


def test_only_the_fit_whose_folder_is_locked_is_running(tmp_path, run_digits, holder):
    run_digits()
    workspace = Workspace(tmp_path / "runs")
    plan = make_plan(DIGITS, ["approx", "reloss"], [0], SMALL)
    assert [is_running(fit, workspace) for fit in plan.fits] == [False, False]
    holder(surrogate_folder(RunSpec.resolve(DIGITS, "reloss", 0, SMALL), workspace))
    assert [is_running(fit, workspace) for fit in plan.fits] == [False, True]
    states = [row.state for row in of_plan(plan, workspace) if row.stage == "learn"]
    assert states == [Status.NOT_RUN, Status.RUNNING]


@pytest.mark.slow
def test_runs_that_end_with_their_sweep_are_interrupted(tmp_path, start):
    words = ("--losses", "ce", "--seeds", "1-3", "--slots", "2", "--runs", tmp_path, "--track", "off")
    process = start("sweep", DIGITS, *words, "--set", "train.epochs=500")
    wait_for(lambda: len(list(tmp_path.glob("*/*/*/seed*/metrics.jsonl"))) == 2, process)
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "FAILED" not in output
    assert output.count("interrupted ") == 2
    assert [json.loads(path.read_text())["status"] for path in tmp_path.glob("*/*/*/seed*/summary.json")] == [
        "interrupted"
    ] * 2


@pytest.mark.parametrize(("stopped", "code"), [(False, 1), (True, 143)])
def test_a_process_that_ends_with_its_sweep_is_interrupted_whatever_its_code(tmp_path, stopped, code):
    """Such as torchrun, which ends with 1."""
    processes = Processes()
    processes.stopped = stopped
    script = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(1)); time.sleep(1); sys.exit(1)"
    )
    assert processes.start([sys.executable, "-c", script], subprocess.DEVNULL, {}) == code


def test_slots_are_positive(cli):
    code, _, err = cli("sweep", DIGITS, "--slots", "0")
    assert code == 2
    assert "--slots must be at least 1" in err
