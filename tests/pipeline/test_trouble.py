"""Faults of real machines, caused on purpose: nothing recorded is lost, and the message names the remedy."""

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import DIGITS, SMALL

from reloss.experiment.metrics_log import read_metrics
from reloss.learning import PredictionBank
from reloss.runtime import checkpoint
from reloss.runtime.errors import RelossError

SETTINGS = ("train.epochs=4", "learn.steps=60", "learn.items=32")


def summary(record):
    return json.loads((record / "summary.json").read_text())


def result(runs):
    """The results of all stages: metrics, scores, weights and surrogates, without their durations."""
    results = {}
    for path in sorted((runs / DIGITS).glob("*/seed*")):
        metrics = [{**entry, "seconds": None} for entry in read_metrics(path / "metrics.jsonl")]
        weights = load_file(path / "checkpoint" / "weights.safetensors")
        results[path.relative_to(runs)] = (
            summary(path)["status"],
            summary(path)["scores"],
            {**(summary(path).get("surrogate") or {}), "seconds": None},
            metrics,
            {name: value.tolist() for name, value in weights.items()},
        )
    return results


# Killed


def processor_seconds(process):
    """Processor time of the process so far: under load, wall time would kill it before it did anything."""
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has just ended
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_24_kills_at_random_moments_change_nothing(fork, tmp_path, run_digits):
    """SIGKILL ends the run at random moments, in any stage; the same command is run again.

    When all stages have ended, one of them is removed and run again, until each stage was killed often enough.
    """
    whole, runs = tmp_path / "whole", tmp_path / "runs"
    run_digits("reloss", settings=SETTINGS, runs=whole)
    words = ["run", DIGITS, "--loss", "reloss", "--runs", str(runs), "--track", "off", "--set", *SETTINGS]
    generator = random.Random(0)
    kills = dict.fromkeys(("baseline", "learn", "train"), 0)
    for _ in range(200):
        process = fork(*words)
        life = generator.uniform(0.1, 1.5)
        while process.poll() is None and (processor_seconds(process) < life or kills[stage_of(runs)] >= 8):
            time.sleep(0.005)
        stage = stage_of(runs)
        if process.poll() is None:
            process.kill()
        if process.wait() != 0:
            assert process.returncode == -signal.SIGKILL
            kills[stage] += 1
        elif min(kills.values()) >= 8:
            break
        else:
            forget(runs, next(stage for stage in kills if kills[stage] < 8))
    assert sum(kills.values()) >= 24
    assert result(runs) == result(whole)
    assert not list(runs.rglob("*.tmp"))


def stage_of(runs):
    bank = runs / DIGITS / "bank" / "bank.json"
    if not (bank.exists() and json.loads(bank.read_text())["complete"]):
        return "baseline"
    return "train" if any((runs / DIGITS).glob("surrogates/*/surrogate.json")) else "learn"


def forget(runs, stage):
    """Remove what a stage and the later ones produced."""
    for path in (runs / DIGITS).iterdir():
        if stage == "baseline" or path.name.startswith("reloss") or (stage == "learn" and path.name == "surrogates"):
            shutil.rmtree(path)


# Full and read-only disks


@contextmanager
def small_disk(path: Path, size: str):
    """Mount a disk of that size, as root; if that is refused, skip the test, or fail with RELOSS_REQUIRE_MOUNT=1."""
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        if os.environ.get("RELOSS_REQUIRE_MOUNT") == "1":
            pytest.fail(f"cannot mount: {mounted.stderr}")
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(disk: Path, leave: int) -> Path:
    """Leave so many bytes free; return the file that takes the rest."""
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(max(shutil.disk_usage(disk).free - leave, 0)))
    return ballast


@pytest.mark.parametrize(
    ("settings", "leave"),
    [
        (("train.epochs=1",), 4096),  # the record's first files
        (("train.epochs=6",), 400_000),  # a checkpoint
        (("train.epochs=6", "recording.item_size=16"), 60_000),  # a checkpoint or a shard of the bank
    ],
)
def test_a_full_disk_is_reported_and_the_run_resumes_when_there_is_room(run_digits, tmp_path, settings, leave, capsys):
    disk = tmp_path / "disk"
    with small_disk(disk, "30m"):
        ballast = fill(disk, leave)
        with pytest.raises(RelossError, match=r"cannot write .*No space left on device"):
            run_digits(settings=settings, runs=disk / "runs")
        assert not list((disk / "runs").rglob("*.tmp"))
        ballast.unlink()
        run_digits(settings=settings, runs=disk / "runs")
        run_digits(settings=settings, runs=tmp_path / "whole")
        assert result(disk / "runs") == result(tmp_path / "whole")
        banks = [PredictionBank.open(runs / DIGITS / "bank") for runs in (disk / "runs", tmp_path / "whole")]
        assert banks[0].fingerprint() == banks[1].fingerprint()


def test_a_full_disk_during_a_fit_is_reported(run_digits, tmp_path):
    disk = tmp_path / "disk"
    with small_disk(disk, "30m"):
        run_digits(settings=SETTINGS[:1], runs=disk / "runs")
        ballast = fill(disk, 10_000)
        with pytest.raises(RelossError, match=r"cannot write .*(fit\.pt|surrogate\.safetensors).*No space left"):
            run_digits("reloss", settings=SETTINGS, stage="learn", runs=disk / "runs")
        ballast.unlink()
        run_digits("reloss", settings=SETTINGS, runs=disk / "runs")
        run_digits("reloss", settings=SETTINGS, runs=tmp_path / "whole")
        assert result(disk / "runs") == result(tmp_path / "whole")


def test_a_bank_on_a_full_disk_keeps_its_items(tmp_path, improving_bank):
    disk = tmp_path / "disk"
    with small_disk(disk, "1m"):
        source = improving_bank(steps=60)
        bank = PredictionBank.create(disk / "bank", item_size=32)
        bank.append(*(part[0] for part in source.items(torch.tensor([0]))), 0)
        bank.flush()
        fill(disk, 0)
        for index in range(1, 60):
            bank.append(*(part[0] for part in source.items(torch.tensor([index]))), index)
        with pytest.raises(RelossError, match=r"cannot write .*safetensors.*No space left"):
            bank.flush()
        assert len(PredictionBank.open(disk / "bank")) == 1


def test_a_read_only_folder_is_reported(run_digits, tmp_path):
    disk = tmp_path / "disk"
    with small_disk(disk, "5m"):
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(RelossError, match=r"cannot write .*Read-only file system; make it writable"):
            run_digits(runs=disk / "runs")


# Damaged files


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content if how == "flipped" else content[: len(content) // 2])


@pytest.mark.parametrize("how", ["cut", "flipped"])
def test_a_run_resumes_from_the_checkpoint_before_a_damaged_one(run_digits, tmp_path, monkeypatch, capsys, how):
    stop_after(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        run_digits(settings=SETTINGS[:1])
    monkeypatch.undo()
    (last,) = (tmp_path / "runs").rglob("last.pt")
    damage(last, how)
    run_digits(settings=SETTINGS[:1])
    assert f"checkpoint {last} is damaged" in capsys.readouterr().err
    run_digits(settings=SETTINGS[:1], runs=tmp_path / "whole")
    assert result(tmp_path / "runs") == result(tmp_path / "whole")


def stop_after(monkeypatch, count):
    """Interrupt the run after so many checkpoints."""
    numbers = itertools.count(1)

    def save(path, state):
        checkpoint.save_checkpoint(path, state)
        if next(numbers) == count:
            raise KeyboardInterrupt

    monkeypatch.setattr("reloss.experiment.record.save_checkpoint", save)


@pytest.mark.parametrize("how", ["cut", "flipped"])
def test_a_damaged_shard_is_named(run_digits, tmp_path, how):
    run_digits()
    bank = tmp_path / "runs" / DIGITS / "bank"
    (shard,) = (bank / "shards").iterdir()
    damage(shard, how)
    with pytest.raises(RelossError, match=f"bank shard {shard} .*; restore it from a copy, or remove {bank} to record"):
        run_digits("reloss")


def test_no_second_surrogate_is_fitted_on_an_incomplete_bank(run_digits, tmp_path):
    settings = (*SMALL, "recording.item_size=16")
    run_digits("reloss", settings=settings)
    bank = PredictionBank.open(tmp_path / "runs" / DIGITS / "bank")
    shard = next((bank.path / "shards").iterdir())
    save_file({name: value[:-1].contiguous() for name, value in load_file(shard).items()}, shard)
    items = f"{len(bank) - 1} of its {len(bank)} items"
    message = f"the bank {bank.path} has {items}: .* or remove {bank.path} to record again"
    with pytest.raises(RelossError, match=message):
        run_digits("reloss", seed=1, settings=settings)
    assert len(list((tmp_path / "runs" / DIGITS / "surrogates").iterdir())) == 1


@pytest.mark.parametrize("how", ["cut", "flipped"])
def test_a_damaged_surrogate_is_named_and_fitted_again(run_digits, tmp_path, how):
    record = run_digits("reloss")
    scores = summary(record)["scores"]
    (weights,) = (tmp_path / "runs").rglob("surrogate.safetensors")
    damage(weights, how)
    shutil.rmtree(record)
    with pytest.raises(RelossError, match=f"remove {weights.parent} to fit the surrogate on the bank again"):
        run_digits("reloss")
    shutil.rmtree(weights.parent)
    assert summary(run_digits("reloss"))["scores"] == scores


# Two at a time


@pytest.mark.slow
def test_of_two_processes_that_start_the_same_run_one_refuses(fork, tmp_path):
    words = ("run", DIGITS, "--runs", tmp_path, "--track", "off", "--set", "train.epochs=8")
    processes = [fork(*words) for _ in range(2)]
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    codes = sorted(process.returncode for process in processes)
    assert codes in ([0, 2], [0, 0]), outputs  # 0, 0: the second started after the first had finished
    if codes == [0, 2]:
        assert sum("is being written by process" in output for output in outputs) == 1
    (record,) = tmp_path.rglob("seed0")
    assert [entry["epoch"] for entry in read_metrics(record / "metrics.jsonl")] == list(range(1, 9))
    assert summary(record)["status"] == "finished"


# Clocks


def test_a_clock_that_jumps_back_changes_nothing(run_digits, tmp_path, monkeypatch):
    run_digits("reloss", settings=SMALL, runs=tmp_path / "whole")
    hours = itertools.count()
    monkeypatch.setattr("time.time", lambda: 2e9 - 3600 * next(hours))
    monkeypatch.setattr("time.time_ns", lambda: 2 * 10**18 - 3600 * 10**9 * next(hours))
    record = run_digits("reloss", settings=SMALL)
    monkeypatch.undo()
    assert result(tmp_path / "runs") == result(tmp_path / "whole")
    assert 0 <= summary(record)["wall_seconds"] < 600


# Secrets


@pytest.mark.slow
def test_no_secret_is_written_to_a_record(finish, tmp_path, monkeypatch):
    secrets = {
        "WANDB_API_KEY": "0123456789abcdef" * 2 + "01234567",
        "HF_TOKEN": "hf_verysecrettoken",
        "MY_PASSWORD": "hunter2!",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_MODE", "offline")
    output = finish("run", DIGITS, "--runs", tmp_path / "runs", "--seed", "1", "--set", "train.epochs=1")
    files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert any("wandb" in path.parts for path in files)
    for value in secrets.values():
        assert value not in output
        assert [path for path in files if value.encode() in path.read_bytes()] == []
