import json
import os
import random
import signal
import time

import pytest
import torch
from processes import TORCHRUN, recorders
from safetensors.torch import load_file
from small import DIGITS
from waiting import wait_for

from reloss.experiment.metrics_log import read_metrics
from reloss.learning import PredictionBank
from reloss.surrogates import ClassificationReLoss

SETTINGS = ("train.epochs=5", "learn.steps=60", "learn.items=32")


def summary(record):
    return json.loads((record / "summary.json").read_text())


def surrogate_of(record):
    """What the summary says of the surrogate, less how long it took."""
    found = summary(record).get("surrogate")
    return found and {**found, "seconds": None}


def metrics(record):
    return [{**entry, "seconds": None} for entry in read_metrics(record / "metrics.jsonl")]


def words(runs, loss="reloss", settings=SETTINGS):
    return ("run", DIGITS, "--loss", loss, "--seed", "0", "--runs", runs, "--track", "off", "--set", *settings)


def record_of(runs, loss, epochs=5):
    """The record of a loss; how a surrogate was learned names no variant of the baseline that it needs."""
    learned = "learn.items=32,learn.steps=60," if loss == "reloss" else ""
    return runs / DIGITS / f"{loss}@{learned}train.epochs={epochs}" / "seed0"


def test_the_whole_line(cli, tmp_path):
    runs = tmp_path / "runs"
    for stage in ("baseline", "learn", "train", "evaluate"):
        code, _, err = cli(*words(runs), "--stage", stage)
        assert code == 0, err

    baseline, learned = record_of(runs, "ce"), record_of(runs, "reloss")
    for record in (baseline, learned):
        names = {str(path.relative_to(record)) for path in record.rglob("*") if path.is_file()}
        checkpoint = {"checkpoint/last.pt", "checkpoint/weights.safetensors"}
        assert sum(name.startswith("predictions/") for name in names) == 5  # one an epoch
        assert {name for name in names if not name.startswith("predictions/")} == {
            "config.yaml",
            "environment.json",
            "metrics.jsonl",
            "summary.json",
        } | checkpoint
        assert summary(record)["status"] == "finished"
        assert [entry["epoch"] for entry in metrics(record)] == [1, 2, 3, 4, 5]
    bank = runs / DIGITS / "bank"
    assert {path.name for path in bank.iterdir()} == {"bank.json", "shards"}
    surrogate = runs / DIGITS / summary(learned)["surrogate"]["folder"]
    assert {path.name for path in surrogate.iterdir()} == {
        "surrogate.safetensors",
        "surrogate.json",
        "history.jsonl",
        "picture.json",
    }
    assert ClassificationReLoss.from_pretrained(surrogate).input == "log_probability"

    assert summary(baseline)["scores"]["accuracy"] > 0.8
    assert summary(learned)["scores"]["accuracy"] > 0.8  # chance is 0.1
    assert summary(learned)["surrogate"]["spearman"] > 0.8

    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    assert cli(*words(runs))[0] == 0
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*")} == before

    code, out, _ = cli("table", "classification", "--runs", runs, "--format", "json")
    rows = {row["loss"]: row for row in json.loads(out) if row["experiment"] == DIGITS}
    assert code == 0
    for loss, record in (("ce", baseline), ("reloss", learned)):
        assert rows[loss]["mean"] == pytest.approx(100 * summary(record)["scores"]["accuracy"])
        assert (rows[loss]["std"], rows[loss]["n"]) == (None, 1)
        assert rows[loss]["records"] == [str(record.relative_to(runs))]
        changes = " ".join(record.parent.name.partition("@")[2].split(","))
        assert rows[loss]["status"].startswith(f"reduced: {changes}")
    assert rows["reloss"]["difference"] == pytest.approx(rows["reloss"]["mean"] - rows["ce"]["mean"])
    assert rows["approx"]["status"] == "not run (no record)"


def test_the_same_seed_gives_the_same_metrics(cli, tmp_path):
    short = ("train.epochs=2", *SETTINGS[1:])
    found = []
    for runs in (tmp_path / "one", tmp_path / "other"):
        assert cli(*words(runs, settings=short))[0] == 0
        record = record_of(runs, "reloss", epochs=2)
        found.append((metrics(record), surrogate_of(record), summary(record)["scores"]))
    assert found[0] == found[1]
    assert len(found[0][0]) == 2


# Killed


def lines(path):
    return path.read_text().count("\n") if path.exists() else 0


def moments(runs, chance):
    """Conditions at which to kill, one in each stage, at a random epoch or validation."""
    epoch = chance.randrange(1, 4)
    return {
        "baseline": lambda: lines(record_of(runs, "ce") / "metrics.jsonl") >= epoch,
        "learn": lambda: any((runs / DIGITS).glob("surrogates/*/fit.pt")),
        "train": lambda: lines(record_of(runs, "reloss") / "metrics.jsonl") >= epoch,
    }


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_killed_line_ends_as_an_uninterrupted_one(cli, fork, finish, tmp_path, seed):
    whole, runs = tmp_path / "whole", tmp_path / "runs"
    assert cli(*words(whole))[0] == 0
    chance = random.Random(seed)
    for condition in moments(runs, chance).values():
        process = fork(*words(runs))
        wait_for(condition, process)
        time.sleep(chance.uniform(0, 0.2))
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    finish(*words(runs))
    for loss in ("ce", "reloss"):
        ours, theirs = record_of(runs, loss), record_of(whole, loss)
        assert summary(ours)["status"] == "finished"
        assert metrics(ours) == metrics(theirs)
        assert summary(ours)["scores"] == summary(theirs)["scores"]
        assert surrogate_of(ours) == surrogate_of(theirs)
        weights = [load_file(record / "checkpoint" / "weights.safetensors") for record in (ours, theirs)]
        assert all(bool((weights[0][name] == weights[1][name]).all()) for name in weights[1])


@pytest.mark.slow
def test_sigterm_is_recorded(start, finish, tmp_path):
    record = record_of(tmp_path, "ce")
    process = start(*words(tmp_path, "ce", SETTINGS[:1]))
    wait_for(lambda: lines(record / "metrics.jsonl") >= 2, process)
    process.terminate()
    said, _ = process.communicate()
    assert process.returncode == 143, said
    assert "terminated; the same command resumes from the last checkpoint" in said
    assert "Traceback" not in said
    assert summary(record)["status"] == "interrupted"
    assert len(metrics(record)) < 5
    assert "resuming from epoch" in finish(*words(tmp_path, "ce", SETTINGS[:1]))
    assert summary(record)["status"] == "finished"


@pytest.mark.slow
def test_sigterm_while_learning_is_reported(fork, finish, tmp_path):
    finish(*words(tmp_path), "--stage", "baseline")
    process = fork(*words(tmp_path), "--stage", "learn")
    wait_for(lambda: any((tmp_path / DIGITS).glob("surrogates/*/fit.pt")), process)
    process.terminate()
    said, _ = process.communicate()
    assert process.returncode == 143, said
    assert "terminated; the same command resumes from the last checkpoint" in said
    assert "resuming the fit at step" in finish(*words(tmp_path), "--stage", "learn")


@pytest.mark.slow
def test_two_killed_processes_end_as_uninterrupted_ones(start, finish, tmp_path):
    settings = ("train.epochs=8", *SETTINGS[1:])
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(*words(whole, "ce", settings), processes=2)
    process = start(*words(killed, "ce", settings), launcher=TORCHRUN)
    record = record_of(killed, "ce", epochs=8)
    wait_for(lambda: lines(record / "metrics.jsonl") >= 3, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert summary(record)["status"] == "running"
    finish(*words(killed, "ce", settings), launcher=TORCHRUN)
    ours, theirs = (load_file(runs / record.relative_to(killed) / "checkpoint" / "weights.safetensors")
                    for runs in (killed, whole))  # fmt: skip
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    banks = [PredictionBank.open(runs / DIGITS / "bank") for runs in (killed, whole)]
    assert len({bank.fingerprint() for bank in banks}) == 1


@pytest.mark.slow
def test_two_processes_measure_what_one_measures(finish, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    finish(*words(one))
    finish(*words(two), processes=2)
    for loss in ("ce", "reloss"):
        ours, theirs = record_of(two, loss), record_of(one, loss)
        assert summary(ours)["status"] == "finished"
        assert [entry["epoch"] for entry in metrics(ours)] == [1, 2, 3, 4, 5]
        # Each step sees other images; the score differs by a few of 449.
        assert metrics(ours)[0]["train_loss"] == pytest.approx(metrics(theirs)[0]["train_loss"], rel=0.1)
        assert summary(ours)["scores"]["accuracy"] == pytest.approx(summary(theirs)["scores"]["accuracy"], abs=0.05)
    # Each of the two records its half.
    banks = [PredictionBank.open(runs / DIGITS / "bank") for runs in (one, two)]
    assert [len(bank) for bank in banks] == [160, 160]
    assert recorders(two / DIGITS) == [0, 1]
    steps = [bank.steps().bincount().tolist() for bank in banks]
    assert steps[0] == steps[1]
    record = record_of(one, "reloss")
    scores = summary(record)["scores"]
    finish(*words(one), "--stage", "evaluate", processes=2)
    assert summary(record)["scores"] == pytest.approx(scores, abs=1e-6)
