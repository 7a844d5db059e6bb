import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from processes import TORCHRUN
from small import DIGITS, SMALL, SMALL_CE

from reloss.experiment.run_spec import MAX_SEED, RunSpec
from reloss.experiment.status import Status
from reloss.experiment.task import tasks
from reloss.experiment.workspace import Workspace
from reloss.pipeline.fitting import surrogate_folder
from reloss.runtime.errors import UsageError
from reloss.runtime.lock import is_locked, locked
from reloss.sweep.estimate import estimate
from reloss.sweep.job import Job, log_of, read_note, run_job
from reloss.sweep.local import Processes, is_running, run_local
from reloss.sweep.plan import Plan, make_plan, parse_seeds
from reloss.sweep.status import of_plan


def job(experiment, loss, seed, stage="all", settings=()):
    return Job(RunSpec(experiment, loss, seed, settings), stage)


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("0", [0]), ("0-2", [0, 1, 2]), ("0,2,5-7", [0, 2, 5, 6, 7]), ("3,1,1-2", [1, 2, 3]), ("4-4", [4])],
)
def test_parse_seeds(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "1,,2", "0-b", "2-1", "0.5", "²"])
def test_parse_seeds_refuses(text):
    with pytest.raises(UsageError, match="--seeds"):
        parse_seeds(text)


def test_parse_seeds_refuses_a_seed_out_of_range():
    with pytest.raises(UsageError, match=f"a seed is a whole number from 0 to {MAX_SEED}"):
        parse_seeds(f"0-{MAX_SEED + 1}")


def test_a_plan_goes_from_the_baseline_over_the_fits_to_the_other_runs():
    plan = make_plan(DIGITS, ["ce", "approx", "reloss"], [0, 1])
    assert plan.prerequisites == []
    assert plan.baselines == [job(DIGITS, "ce", 0)]
    assert plan.fits == [job(DIGITS, "approx", 0, "learn"), job(DIGITS, "reloss", 0, "learn")]
    assert plan.runs == [
        job(DIGITS, "ce", 1),
        *(job(DIGITS, loss, seed) for loss in ("approx", "reloss") for seed in (0, 1)),
    ]


def test_a_plan_records_a_baseline_that_was_not_requested():
    assert make_plan(DIGITS, ["reloss"], [1]) == Plan(
        baselines=[job(DIGITS, "ce", 0, "baseline")],
        fits=[job(DIGITS, "reloss", 0, "learn")],
        runs=[job(DIGITS, "reloss", 1)],
    )
    assert make_plan(DIGITS, ["ce"], [3]) == Plan(runs=[job(DIGITS, "ce", 3)])


def test_sweeps_over_other_seeds_and_losses_share_the_bank_and_the_fits():
    first, second = make_plan(DIGITS, ["reloss"], [1]), make_plan(DIGITS, ["approx", "reloss"], [2, 3])
    assert first.baselines == second.baselines
    assert set(first.fits) <= set(second.fits)


def test_the_settings_of_an_ablation_override_those_of_the_sweep():
    plan = make_plan("ablation", [], [0], ["learn.penalty=off", "train.epochs=1"])
    learned = [job.run.settings for job in plan.runs if job.run.loss == "reloss"]
    for settings in learned:
        keys = [setting.partition("=")[0] for setting in settings]
        assert len(keys) == len(set(keys))
        assert "train.epochs=1" in settings
    assert any("learn.penalty=item" in settings for settings in learned)


def test_a_bank_and_a_fit_are_done_when_every_run_that_needs_them_is(tmp_path, run_digits):
    plan = make_plan(DIGITS, ["reloss"], [1], SMALL)
    workspace = Workspace(tmp_path / "runs")
    assert [plan.is_done(job, workspace) for job in plan] == [False, False, False]
    record = run_digits("reloss", seed=1)
    shutil.rmtree(workspace.bank(DIGITS))
    assert [plan.is_done(job, workspace) for job in plan] == [True, True, True]
    shutil.rmtree(record)
    assert [plan.is_done(job, workspace) for job in plan] == [False, False, False]


def test_a_plan_begins_with_the_teacher_that_students_need():
    teacher = job("nmt/multi30k_de_en_at", "label_smoothing", 0)
    student = "nmt/multi30k_de_en_nat"
    plan = make_plan(student, ["nll", "reloss"], [0])
    assert plan == Plan(
        [teacher], [job(student, "nll", 0)], [job(student, "reloss", 0, "learn")], [job(student, "reloss", 0)]
    )
    assert [plan.needs[job] for job in plan] == [[], [teacher], plan.baselines, [*plan.fits, teacher]]
    without_teacher = ("data.distilled=false", "train.from_teacher=false")
    assert make_plan(student, ["nll"], [0], without_teacher).prerequisites == []
    table = make_plan("nmt", [], [0])
    assert teacher in table.prerequisites
    assert teacher not in table.baselines


def test_the_plan_of_a_table_has_all_its_experiments():
    plan = make_plan("classification", [], [0, 1])
    names = list(tasks()["classification"].experiments)
    assert [job.run.experiment for job in plan.baselines] == names
    assert len(plan.fits) == 2 * len(names)
    losses = sum(len(make().losses) for make in tasks()["classification"].experiments.values())
    assert len(plan.baselines + plan.runs) == 2 * losses


@pytest.mark.parametrize(
    ("name", "losses", "message"),
    [
        ("classification/digits", [], "unknown table or experiment.*did you mean classification/digits_cnn"),
        ("clasification", [], "did you mean classification?"),
        (DIGITS, ["reolss"], "unknown loss.*did you mean reloss"),
    ],
)
def test_a_misspelt_name_is_reported_with_the_nearest(name, losses, message):
    with pytest.raises(UsageError, match=message):
        make_plan(name, losses, [0])


PRINT = (
    *("sweep", DIGITS, "--losses", "ce,reloss", "--seeds", "0-1", "--launcher", "print", "--data", "d"),
    *("--track", "off", "--set", "train.epochs=1", "learn.steps=5"),
)
PHASES = (("ce --seed 0",), ("reloss --seed 0 --stage learn",), ("ce --seed 1", "reloss --seed 0", "reloss --seed 1"))


def phased(start: str, options: str) -> list[str]:
    """The lines of a plan: a comment, then the commands of a phase, each with the settings that its loss uses."""
    lines = []
    orders = ["at any time", *["after those before have ended"] * 2]
    for order, phase in zip(orders, PHASES, strict=True):
        lines.append(f"# {order}, in any order or in parallel:")
        for command in phase:
            settings = "train.epochs=1" if command.startswith("ce") else "learn.steps=5 train.epochs=1"
            lines.append(f"{start}{command} {options} --set {settings}")
    return lines


def test_print_launcher_prints_plain_commands_and_runs_nothing(cli, tmp_path):
    runs = tmp_path / "runs"
    code, out, _ = cli(*PRINT, "--runs", runs, "--image", "none")
    assert code == 0
    assert out.splitlines() == phased(f"reloss run {DIGITS} --loss ", f"--data d --runs {runs} --track off")
    assert not runs.exists()


def test_print_launcher_prints_lines_of_docker(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = cli(*PRINT, "--runs", "my/own runs", "--image", "reloss:1")
    start = f"docker run --rm --gpus all --ipc host -v d:/data -v '{tmp_path}/my/own runs:/runs' reloss:1 run"
    assert code == 0
    assert out.splitlines() == phased(f"{start} {DIGITS} --loss ", "--track off")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("image", ["none", "reloss"])
def test_permission_for_changed_data_reaches_every_run(cli, tmp_path, image):
    code, out, _ = cli(*PRINT, "--runs", tmp_path, "--image", image, "--allow-changed-data")
    assert code == 0
    assert [line.count("--track off --allow-changed-data") for line in out.splitlines() if line[0] != "#"] == [1] * 5


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
    monkeypatch.setattr("reloss.sweep.local.time.sleep", lambda seconds: release())
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
            monkeypatch.setattr("reloss.sweep.local.time.sleep", lambda seconds: release())
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
    limit = time.monotonic() + 120
    while len(list(tmp_path.glob("*/*/*/seed*/metrics.jsonl"))) < 2:
        assert time.monotonic() < limit
        time.sleep(0.1)
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "FAILED" not in output
    assert output.count("interrupted ") == 2
    assert [json.loads(path.read_text())["status"] for path in tmp_path.glob("*/*/*/seed*/summary.json")] == [
        "interrupted"
    ] * 2


@pytest.mark.parametrize(
    ("settings", "rest"),
    [
        ((), "; the rest takes a minute or less in 1 processes"),
        (("train.epochs=300",), ""),  # no time is known for these settings
    ],
)
def test_an_estimate_from_the_times_of_the_ablation(tmp_path, settings, rest):
    plan = make_plan(DIGITS, ["ce"], [0, 1], settings)
    assert estimate(plan, Workspace(tmp_path), 1) == f"2 runs, 0 finished{rest}"


def test_an_estimate_from_finished_runs(tmp_path, run_digits):
    path = run_digits() / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "wall_seconds": 114.0}))
    workspace = Workspace(tmp_path / "runs")
    plan = make_plan(DIGITS, ["ce"], [0, 1, 2], SMALL)
    assert estimate(plan, workspace, 2) == "3 runs, 1 finished; the rest takes about 2 minutes in 2 processes"
    assert estimate(Plan(baselines=plan.baselines), workspace, 1) == "1 runs, 1 finished"


TERMINATED = "reloss: terminated; the same command resumes from the last checkpoint\n"
KILLED = f"{TERMINATED}E api.py:1002] failed (exitcode: -9) local_rank: 1 (pid: 7) of binary: python\nERROR\n"


@pytest.mark.parametrize(
    ("code", "output", "reason"),
    [
        (1, "reloss: process 1: the loss is nan\nERROR\n", "process 1: the loss is nan"),
        (1, KILLED, "killed by signal 9 (out of memory?)"),  # torchrun then terminates the other processes
        (-9, "reloss: resuming from epoch 3\n", "killed by signal 9 (out of memory?)"),
        (-11, "", "killed by signal 11"),
        (1, "no such file\n", "no such file"),
        (1, "", "it printed nothing"),
    ],
)
def test_the_note_on_a_failed_run_has_the_reason(tmp_path, code, output, reason):
    failing, workspace = job(DIGITS, "ce", 0), Workspace(tmp_path)

    def start(words, log, environment):
        log.write(output)
        return code

    assert run_job(failing, [], workspace, {}, start, launcher=TORCHRUN) == code
    log = str(log_of(failing, workspace))
    assert read_note(failing, workspace) == {"state": "failed", "code": code, "reason": reason, "log": log}


@pytest.mark.parametrize("code", [130, 143])
def test_an_interrupted_run_did_not_fail(tmp_path, code):
    interrupted, workspace = job(DIGITS, "ce", 0), Workspace(tmp_path)
    assert run_job(interrupted, [], workspace, {}, lambda *_: code) == code
    assert read_note(interrupted, workspace) == {}


@pytest.mark.parametrize(("stopped", "code"), [(False, 1), (True, 143)])
def test_a_process_that_ends_with_its_sweep_is_interrupted_whatever_its_code(tmp_path, stopped, code):
    """Such as torchrun, which ends with 1."""
    processes = Processes()
    processes.stopped = stopped
    script = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(1)); time.sleep(1); sys.exit(1)"
    )
    assert processes.start([sys.executable, "-c", script], subprocess.DEVNULL, {}) == code


@pytest.mark.slow
def test_a_killed_process_of_several_is_a_failure(tmp_path):
    """torchrun terminates the other processes, so the main one prints that it was terminated."""
    workspace = Workspace(tmp_path)
    (long,) = make_plan(DIGITS, ["ce"], [1], ("train.epochs=500",))
    metrics = workspace.record(long.run) / "metrics.jsonl"

    def start(words, output, environment):
        process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, env=environment)
        limit = time.monotonic() + 120
        while not metrics.exists():
            assert process.poll() is None
            assert time.monotonic() < limit
            time.sleep(0.1)
        last = max(map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()))
        os.kill(last, signal.SIGKILL)
        return process.wait()

    options = ["--runs", str(tmp_path), "--track", "off"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    assert run_job(long, options, workspace, environment, start, launcher=TORCHRUN) == 1
    assert TERMINATED in log_of(long, workspace).read_text()
    assert read_note(long, workspace)["reason"] == "killed by signal 9 (out of memory?)"


def test_slots_are_positive(cli):
    code, _, err = cli("sweep", DIGITS, "--slots", "0")
    assert code == 2
    assert "--slots must be at least 1" in err
