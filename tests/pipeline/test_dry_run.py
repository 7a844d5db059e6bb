"""`reloss run --dry-run` names the steps that the command then does, and writes nothing."""

import json
import subprocess
import sys

import pytest
from small import DIGITS, SMALL

from reloss.experiment.task import Task
from reloss.runtime.errors import Unavailable

BANK = "record the prediction bank: train ce@train.epochs=1 seed 0"
FIT = "fit reloss to accuracy"
TRAIN = "train reloss@learn.items=16,learn.steps=10,train.epochs=1 seed 0"


def contents(folder):
    """Every path below a folder with its time and bytes."""
    paths = sorted(folder.rglob("*"))
    return [(path, path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"") for path in paths]


@pytest.fixture
def dry(cli, tmp_path):
    """Calls the command; returns the exit code, state and folder of each step, and standard error."""

    def call(*words, settings=SMALL):
        before = contents(tmp_path)
        where = ("--runs", tmp_path / "runs", "--data", tmp_path / "data", "--set", *settings)
        code, out, err = cli("run", DIGITS, "--track", "off", "--dry-run", *words, *where)
        assert contents(tmp_path) == before
        rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in out.splitlines()[1:]]
        home = f"{tmp_path}/runs/{DIGITS}/"
        return code, {name: (state, folder.removeprefix(home)) for name, state, folder in rows}, err

    return call


def states(steps):
    return {name: state for name, (state, _) in steps.items()}


def test_steps_are_those_that_the_run_then_does(dry, run_digits, tmp_path):
    code, steps, err = dry("--loss", "reloss")
    assert code == 0
    assert err == "nothing is missing, and nothing was written; the command without --dry-run does this\n"
    assert not (tmp_path / "runs").exists()
    assert states(steps) == {BANK: "to do", FIT: "to do", TRAIN: "to do"}
    assert steps[TRAIN][1] == "reloss@learn.items=16,learn.steps=10,train.epochs=1/seed0"

    run_digits("reloss", stage="baseline")
    code, steps, _ = dry("--loss", "reloss")
    assert states(steps) == {BANK: "finished, skipped", FIT: "to do", TRAIN: "to do"}
    assert steps[BANK][1] == "bank"
    assert states(dry("--loss", "reloss", "--stage", "learn")[1]) == {FIT: "to do"}

    run_digits("reloss", stage="learn")
    code, after, _ = dry("--loss", "reloss")
    assert states(after) == {BANK: "finished, skipped", FIT: "finished, skipped", TRAIN: "to do"}
    assert after[FIT][1] == steps[FIT][1]
    assert (tmp_path / "runs" / DIGITS / after[FIT][1] / "surrogate.safetensors").exists()

    record = run_digits("reloss")
    assert states(dry("--loss", "reloss")[1]) == {BANK: "finished, skipped", TRAIN: "finished, skipped"}
    code, _, err = dry("--loss", "reloss", "--resume", "never")
    assert (code, "--resume never does not touch it" in err) == (1, True)

    summary = json.loads((record / "summary.json").read_text())
    for status, state in (("interrupted", "resumes"), ("running", "resumes"), ("failed", "failed, tried again")):
        (record / "summary.json").write_text(json.dumps({**summary, "status": status}))
        assert states(dry("--loss", "reloss")[1])[TRAIN] == state
    (record / "summary.json").write_text("{")
    code, _, err = dry("--loss", "reloss")
    assert (code, str(record / "summary.json") in err) == (1, True)


def test_a_run_of_another_process_is_named(dry, tmp_path):
    folder = tmp_path / "runs" / DIGITS / "ce@train.epochs=1" / "seed1"
    hold = "from pathlib import Path; from reloss.runtime.lock import locked; import time\n"
    hold += f"with locked(Path({str(folder)!r})): print('locked', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        _, steps, _ = dry("--seed", "1", settings=("train.epochs=1",))
        other.kill()
    assert states(steps) == {"train ce@train.epochs=1 seed 1": "running in another process"}


def test_runs_that_are_needed_come_first(dry):
    _, steps, _ = dry("--loss", "reloss", "--seed", "2", settings=(*SMALL, "train.init=baseline", "refit=true"))
    variant = "reloss@learn.items=16,learn.steps=10,{}train.epochs=1,train.init=baseline"
    assert list(steps) == [
        BANK,
        FIT,
        f"train {variant.format('')} seed 0",
        "train ce@train.epochs=1 seed 2",
        f"{FIT}, again with validation predictions",
        f"train {variant.format('refit=true,')} seed 2",
    ]


@pytest.mark.parametrize(
    ("words", "settings", "reason"),
    [
        (["--loss", "reloss", "--stage", "train"], SMALL, "no complete bank in"),
        (["--loss", "ce", "--stage", "learn"], ("train.epochs=1",), "'ce' is not learned; --stage learn needs reloss"),
        (["--stage", "evaluate"], ("train.epochs=1",), "no record to evaluate in"),
        (["--stage", "train"], ("train.init=baseline",), "to fine-tune, first run --loss ce --seed 0"),
    ],
)
def test_what_a_single_stage_lacks_is_named(dry, words, settings, reason):
    code, steps, err = dry(*words, settings=settings)
    assert (code, steps) == (1, {})
    assert err.startswith("reloss: the run cannot start:\n- ")
    assert reason in err


def test_every_missing_thing_is_named(cli, tmp_path, monkeypatch):
    def check_packages(task):
        raise Unavailable("classification needs the package accelerate")

    monkeypatch.setattr(Task, "check_packages", check_packages)
    where = ("--runs", tmp_path / "runs", "--data", tmp_path / "data")
    code, out, err = cli("run", "classification/cifar10_cnn", "--loss", "reloss", "--dry-run", *where)
    assert code == 1
    assert out.splitlines()[0].split() == ["step", "state", "folder"]
    first, packages, data = err.splitlines()
    assert first == "reloss: the run cannot start:"
    assert packages == "- classification needs the package accelerate"
    assert data.startswith("- ")
    assert f"run `reloss data fetch cifar10 --data {tmp_path}/data`" in data
    assert not (tmp_path / "runs").exists()
