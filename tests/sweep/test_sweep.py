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
from small import DIGITS, SMALL

from reloss.experiment.run_spec import variant_name
from reloss.experiment.task import tasks
from reloss.pipeline.stages import Request, surrogate_folder
from reloss.runtime.errors import UsageError
from reloss.runtime.lock import is_locked, locked
from reloss.sweep.local import _Processes, is_running, log_of, note_of, run_cell, run_local
from reloss.sweep.plan import Cell, command, estimate, is_done, needs, parse_seeds, phases
from reloss.sweep.status import of_plan


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("0", [0]), ("0-2", [0, 1, 2]), ("0,2,5-7", [0, 2, 5, 6, 7]), ("3,1,1-2", [1, 2, 3]), ("4-4", [4])],
)
def test_parse_seeds(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "1,,2", "0-b", "2-1", "0.5"])
def test_parse_seeds_refuses(text):
    with pytest.raises(UsageError, match="--seeds"):
        parse_seeds(text)


def test_phases_go_from_baseline_over_learning_to_the_rest():
    others, baselines, fits, rest = phases(DIGITS, ["ce", "approx", "reloss"], [0, 1])
    assert others == []
    assert baselines == [Cell(DIGITS, "ce", 0)]
    assert fits == [Cell(DIGITS, "approx", 0, "learn"), Cell(DIGITS, "reloss", 0, "learn")]
    assert rest == [
        Cell(DIGITS, "ce", 1),
        *(Cell(DIGITS, loss, seed) for loss in ("approx", "reloss") for seed in (0, 1)),
    ]


def test_phases_record_a_baseline_that_was_not_asked_for():
    assert phases(DIGITS, ["reloss"], [1]) == [
        [],
        [Cell(DIGITS, "ce", 0, "baseline")],
        [Cell(DIGITS, "reloss", 0, "learn")],
        [Cell(DIGITS, "reloss", 1)],
    ]
    assert phases(DIGITS, ["ce"], [3]) == [[], [], [], [Cell(DIGITS, "ce", 3)]]


def test_sweeps_over_other_seeds_and_losses_share_the_bank_and_the_fits():
    first, second = (
        phases(DIGITS, losses, seeds) for losses, seeds in ((["reloss"], [1]), (["approx", "reloss"], [2, 3]))
    )
    assert first[1] == second[1]
    assert set(first[2]) <= set(second[2])


def test_a_bank_and_a_fit_are_done_when_all_that_they_serve_is(tmp_path, run_digits):
    plan = phases(DIGITS, ["reloss"], [1], SMALL)
    runs = tmp_path / "runs"
    cells = [cell for phase in plan for cell in phase]
    assert [is_done(cell, plan, runs) for cell in cells] == [False, False, False]
    record = run_digits("reloss", seed=1)
    shutil.rmtree(runs / DIGITS / "bank")
    assert [is_done(cell, plan, runs) for cell in cells] == [True, True, True]
    shutil.rmtree(record)
    assert [is_done(cell, plan, runs) for cell in cells] == [False, False, False]


def test_phases_begin_with_the_teacher_that_students_use():
    teacher = Cell("nmt/multi30k_de_en_at", "label_smoothing", 0)
    student = "nmt/multi30k_de_en_nat"
    plan = phases(student, ["nll", "reloss"], [0])
    assert plan == [
        [teacher],
        [Cell(student, "nll", 0)],
        [Cell(student, "reloss", 0, "learn")],
        [Cell(student, "reloss", 0)],
    ]
    assert [needs(cell, plan) for (cell,) in plan] == [[], [teacher], plan[1], [*plan[2], teacher]]
    raw = ("data.distilled=false", "train.from_teacher=false")
    assert phases(student, ["nll"], [0], raw)[0] == []
    of_table = phases("nmt", [], [0])
    assert teacher in of_table[0]
    assert teacher not in of_table[1]


def test_phases_of_a_table_hold_all_its_experiments():
    _, baselines, fits, rest = phases("classification", [], [0, 1])
    names = list(tasks()["classification"].experiments)
    assert [cell.experiment for cell in baselines] == names
    assert len(fits) == 2 * len(names)
    assert len(baselines + rest) == 2 * sum(
        len(make().losses) for make in tasks()["classification"].experiments.values()
    )


@pytest.mark.parametrize(
    ("name", "losses", "message"),
    [
        ("classification/digits", [], "unknown table or experiment.*did you mean classification/digits_cnn"),
        ("clasification", [], "did you mean classification?"),
        (DIGITS, ["reolss"], "unknown loss.*did you mean reloss"),
    ],
)
def test_phases_name_the_nearest(name, losses, message):
    with pytest.raises(UsageError, match=message):
        phases(name, losses, [0])


def test_command():
    assert " ".join(command(Cell(DIGITS, "reloss", 2, settings=("train.epochs=1",)), [])) == (
        "reloss run classification/digits_cnn --loss reloss --seed 2 --set train.epochs=1"
    )
    assert command(Cell(DIGITS, "reloss", 2, "learn"), [])[-2:] == ["--stage", "learn"]


PRINT = (
    *("sweep", DIGITS, "--losses", "ce,reloss", "--seeds", "0-1", "--launcher", "print", "--data", "d"),
    *("--track", "off", "--set", "train.epochs=1", "learn.steps=5"),
)
PHASES = (("ce --seed 0",), ("reloss --seed 0 --stage learn",), ("ce --seed 1", "reloss --seed 0", "reloss --seed 1"))


def phased(start: str, end: str) -> list[str]:
    """The lines that are printed: a comment, then the commands of a phase."""
    comments = ["# when you like, side by side or not:", *["# when those before have ended, side by side or not:"] * 2]
    return [
        line
        for comment, phase in zip(comments, PHASES, strict=True)
        for line in (comment, *(f"{start}{each}{end}" for each in phase))
    ]


def test_print_launcher_prints_plain_commands_and_runs_nothing(cli, tmp_path):
    runs = tmp_path / "runs"
    code, out, _ = cli(*PRINT, "--runs", runs, "--image", "none")
    more = f"--data d --runs {runs} --track off --set train.epochs=1 learn.steps=5"
    assert code == 0
    assert out.splitlines() == phased(f"reloss run {DIGITS} --loss ", f" {more}")
    assert not runs.exists()


def test_print_launcher_prints_lines_of_docker(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = cli(*PRINT, "--runs", "my/own runs", "--image", "reloss:1")
    start = f"docker run --rm --gpus all --ipc host -v d:/data -v '{tmp_path}/my/own runs:/runs' reloss:1 run"
    assert code == 0
    assert out.splitlines() == phased(f"{start} {DIGITS} --loss ", " --track off --set train.epochs=1 learn.steps=5")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("image", ["none", "reloss"])
def test_leave_to_go_on_with_changed_data_is_handed_to_every_run(cli, tmp_path, image):
    code, out, _ = cli(*PRINT, "--runs", tmp_path, "--image", image, "--allow-changed-data")
    assert code == 0
    assert [line.count("--track off --allow-changed-data") for line in out.splitlines() if line[0] != "#"] == [1] * 5


def test_finished_runs_are_skipped_and_a_failing_one_stops_no_other(cli, run_digits, tmp_path):
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
    assert f"skip      classification/digits_cnn ce@{variant_name(SMALL)} seed 0 (finished)" in err
    assert f"FAILED 2  classification/digits_cnn ce@{variant_name(SMALL)} seed 1" in err
    assert summary.stat().st_mtime_ns == before
    assert json.loads((record.parent / "seed2" / "summary.json").read_text())["status"] == "finished"
    logs = tmp_path / "runs" / "sweep"
    name = f"classification_digits_cnn-ce@{variant_name(SMALL)}-all-seed"
    assert sorted(path.name for path in logs.iterdir()) == [f"{name}1.json", f"{name}1.log", f"{name}2.log"]
    assert "was made by another config" in (logs / f"{name}1.log").read_text()
    assert "was made by another config" in json.loads((logs / f"{name}1.json").read_text())["reason"]


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
    assert f"FAILED 1  {DIGITS} ce@{variant_name(SMALL)} seed 1" in err
    assert f"{damaged} cannot be read as JSON" in err
    assert "1 of 2 runs failed" in err
    assert json.loads((damaged.parents[1] / "seed2" / "summary.json").read_text())["status"] == "finished"


def test_a_sweep_whose_logs_cannot_be_written_ends(tmp_path):
    plan = phases(DIGITS, ["ce"], range(4), SMALL)
    tmp_path.joinpath("sweep").write_text("in the way")
    assert set(run_local(plan, [], tmp_path, slots=2, gpus=[])) == {cell for phase in plan for cell in phase}


def test_a_run_starts_as_soon_as_what_it_needs_has_ended(tmp_path, monkeypatch):
    """The baseline here ends only when a run that does not need it has."""
    plan = phases(DIGITS, ["ce", "reloss"], [0, 1])
    baseline, fit, other, *learned = (cell for phase in plan for cell in phase)
    order, began, ran = [], threading.Event(), threading.Event()

    def run_cell(cell, *_):
        if cell == other:
            assert began.wait(60)  # two threads start together: so that the baseline's is the first
        order.append(cell)
        began.set()
        if cell == other:
            ran.set()
        return 0 if cell != baseline or ran.wait(60) else 1

    monkeypatch.setattr("reloss.sweep.local.run_cell", run_cell)
    assert run_local(plan, [], tmp_path, 2, []) == []
    assert order[:3] == [baseline, other, fit]
    assert set(order[3:]) == set(learned)


def hold(folder, ready, end):
    with locked(folder):
        ready.set()
        end.wait(60)


@pytest.fixture
def holder():
    """Locks folders in processes of their own; calling what it returns ends that."""
    context, started = multiprocessing.get_context("fork"), []

    def start(folder):
        ready, end = context.Event(), context.Event()
        process = context.Process(target=hold, args=(folder, ready, end))
        process.start()
        started.append((process, end))
        assert ready.wait(60)
        return end.set

    yield start
    for process, end in started:
        end.set()
        process.join()


def test_what_another_process_is_at_work_on_is_waited_for(tmp_path, monkeypatch, capsys, holder):
    """Such as a run that outlived its sweep."""
    (cell,) = (cell for phase in phases(DIGITS, ["ce"], [0]) for cell in phase)
    let_go = holder(cell.record(tmp_path))
    seen = []

    def run_cell(cell, *_):
        seen.append(is_locked(cell.record(tmp_path)))
        return 0

    monkeypatch.setattr("reloss.sweep.local.run_cell", run_cell)
    monkeypatch.setattr("reloss.sweep.local.time.sleep", lambda seconds: let_go())
    assert run_local([[], [], [], [cell]], [], tmp_path, 1, []) == []
    assert seen == [False]
    assert f"wait      {cell.label} (another process is at work on it)" in capsys.readouterr().err


def test_a_run_that_another_process_took_at_the_same_moment_did_not_fail(tmp_path, monkeypatch, holder):
    (cell,) = (cell for phase in phases(DIGITS, ["ce"], [0]) for cell in phase)
    codes = []

    def run_cell(cell, *_):
        if codes:
            codes.append(0)
        else:
            let_go = holder(cell.record(tmp_path))
            monkeypatch.setattr("reloss.sweep.local.time.sleep", lambda seconds: let_go())
            codes.append(2)
        return codes[-1]

    monkeypatch.setattr("reloss.sweep.local.run_cell", run_cell)
    assert run_local([[], [], [], [cell]], [], tmp_path, 1, []) == []
    assert codes == [2, 0]


def test_which_fit_is_running(tmp_path, run_digits, holder):
    run_digits()
    runs = tmp_path / "runs"
    _, _, fits, _ = plan = phases(DIGITS, ["approx", "reloss"], [0], SMALL)
    assert [is_running(fit, runs) for fit in fits] == [False, False]
    holder(surrogate_folder(Request(DIGITS, "reloss", 0, settings=SMALL, runs=runs)))
    assert [is_running(fit, runs) for fit in fits] == [False, True]
    assert [row.state for row in of_plan(plan, runs) if row.stage == "learn"] == ["not run", "running"]


@pytest.mark.slow
def test_runs_that_end_with_their_sweep_are_interrupted(tmp_path, start):
    words = ("--losses", "ce", "--seeds", "1-3", "--slots", "2", "--runs", tmp_path, "--track", "off")
    process = start("sweep", DIGITS, *words, "--set", "train.epochs=500")
    limit = time.monotonic() + 120
    while len(list(tmp_path.glob("*/*/*/seed*/metrics.jsonl"))) < 2:
        assert time.monotonic() < limit
        time.sleep(0.1)
    process.terminate()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "FAILED" not in said
    assert said.count("interrupted ") == 2
    assert [json.loads(path.read_text())["status"] for path in tmp_path.glob("*/*/*/seed*/summary.json")] == [
        "interrupted"
    ] * 2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ((), "; the rest takes a minute or less in 1 processes"),
        (("train.epochs=300",), ""),  # nothing is known of that
    ],
)
def test_an_estimate_is_of_runs_with_these_settings(tmp_path, settings, said):
    assert estimate(phases(DIGITS, ["ce"], [0, 1], settings), tmp_path, 1) == f"2 runs, 0 finished{said}"


def test_an_estimate_by_what_is_finished(tmp_path, run_digits):
    path = run_digits() / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "wall_seconds": 114.0}))
    plan = phases(DIGITS, ["ce"], [0, 1, 2], SMALL)
    assert estimate(plan, tmp_path / "runs", 2) == "3 runs, 1 finished; the rest takes about 2 minutes in 2 processes"
    assert estimate(plan[1:2], tmp_path / "runs", 1) == "1 runs, 1 finished"


TERMINATED = "reloss: terminated; the same command goes on from the last checkpoint\n"
KILLED = f"{TERMINATED}E api.py:1002] failed (exitcode: -9) local_rank: 1 (pid: 7) of binary: python\nERROR\n"


@pytest.mark.parametrize(
    ("code", "said", "why"),
    [
        (1, "reloss: process 1: the loss is nan\nERROR\n", "process 1: the loss is nan"),
        (1, KILLED, "killed by signal 9 (out of memory?)"),  # torchrun then tells the others to end
        (-9, "reloss: going on from epoch 3\n", "killed by signal 9 (out of memory?)"),
        (-11, "", "killed by signal 11"),
        (1, "no such file\n", "no such file"),
        (1, "", "it said nothing"),
    ],
)
def test_why_a_run_failed(tmp_path, code, said, why):
    cell = Cell(DIGITS, "ce", 0)

    def start(words, output, environment):
        output.write(said)
        return code

    assert run_cell(cell, [], tmp_path, {}, start, launcher=TORCHRUN) == code
    assert note_of(cell, tmp_path) == {
        "state": "failed",
        "code": code,
        "reason": why,
        "log": str(log_of(cell, tmp_path)),
    }


@pytest.mark.parametrize("code", [130, 143])
def test_a_run_that_was_told_to_end_did_not_fail(tmp_path, code):
    cell = Cell(DIGITS, "ce", 0)
    assert run_cell(cell, [], tmp_path, {}, lambda *_: code) == code
    assert note_of(cell, tmp_path) == {}


@pytest.mark.parametrize(("stopped", "ended"), [(False, 1), (True, 143)])
def test_a_process_that_ends_with_its_sweep_was_told_to_whatever_its_code(tmp_path, stopped, ended):
    """Such as torchrun, which ends with 1."""
    processes = _Processes()
    processes.stopped = stopped
    script = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(1)); time.sleep(1); sys.exit(1)"
    )
    assert processes.start([sys.executable, "-c", script], subprocess.DEVNULL, {}) == ended


@pytest.mark.slow
def test_a_killed_process_of_several_is_a_failure(tmp_path):
    """torchrun tells the others to end, so the main one says that it was terminated."""
    (cell,) = (cell for phase in phases(DIGITS, ["ce"], [0], ("train.epochs=500",)) for cell in phase)
    metrics = cell.record(tmp_path) / "metrics.jsonl"

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
    assert run_cell(cell, options, tmp_path, environment, start, launcher=TORCHRUN) == 1
    assert TERMINATED in log_of(cell, tmp_path).read_text()
    assert note_of(cell, tmp_path)["reason"] == "killed by signal 9 (out of memory?)"


def test_slots_are_positive(cli):
    code, _, err = cli("sweep", DIGITS, "--slots", "0")
    assert code == 2
    assert "--slots must be at least 1" in err
