import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from offline import offline_runs
from small import DIGITS
from waiting import wait_for

from reloss.experiment.metrics_log import read_metrics
from reloss.experiment.task import find_experiment
from reloss.runtime.files import read_json
from reloss.tracking import client
from reloss.tracking.client import WandbTracker, describe_run
from reloss.tracking.trackers import make_tracker
from reloss.tracking.worker import read_run

FAILED = "W&B failed ("


def summary(record):
    return read_json(record / "summary.json")


def processes(parent):
    """The command lines of the processes below a process, by their ids."""
    found = {}
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        try:
            stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if int(stat[1]) == parent and stat[0] != "Z":
            found |= {pid: words, **processes(pid)}
    return found


def core(parent=None):
    """The process of W&B itself."""
    return wait_for(lambda: [pid for pid, words in processes(parent or os.getpid()).items() if "wandb-core" in words])[
        0
    ]


@pytest.fixture
def tracked(tmp_path):
    """Start a tracker that does not outlive the test."""
    trackers = []

    def start(folder=tmp_path, **settings):
        trackers.append(WandbTracker())
        trackers[-1].start_run(folder, **{"name": "x", "config": {}, **settings})
        return trackers[-1]

    yield start
    for tracker in trackers:
        tracker._close(timeout=0)
    assert not [words for words in processes(os.getpid()).values() if "wandb" in words]


def test_all_stages_leave_three_linked_runs(run_digits):
    settings = ("train.epochs=2", "learn.steps=40", "learn.items=16")
    record = run_digits("reloss", track="wandb", settings=settings)
    home = record.parents[1]
    baseline_record = home / "ce@train.epochs=2" / "seed0"
    (baseline,), (trained,) = offline_runs(baseline_record), offline_runs(record)
    folder = home / summary(record)["surrogate"]["folder"]
    (learned,) = offline_runs(folder)
    config = find_experiment(DIGITS)[1]

    assert [run.job_type for run in (baseline, learned, trained)] == ["baseline", "learn", "train"]
    assert {run.group for run in (baseline, learned, trained)} == {DIGITS}
    assert trained.name == f"{DIGITS} reloss@learn.items=16,learn.steps=40,train.epochs=2 seed 0"
    for run, loss in ((baseline, "ce"), (learned, "reloss"), (trained, "reloss")):
        assert run.tags[:2] == ["classification", loss]
        assert config.scope_text() in run.tags
        assert run.tags[-1] in ("git: clean", "git: changes", "git: unknown")
        assert run.exits == [0]
        assert run.step_metrics == {"*": "step"}
        assert run.wandb_steps == sorted(run.wandb_steps)
        assert run.config["loss"] == loss
        assert run.config["resumed_from"] is None
        assert run.config["data"] == config.data.model_dump(mode="json")

    # The rows are the same as on disk.
    assert baseline.rows == read_metrics(baseline_record / "metrics.jsonl")
    assert trained.rows == read_metrics(record / "metrics.jsonl")
    assert learned.rows == read_metrics(folder / "history.jsonl")
    assert trained.config["train"]["epochs"] == 2
    assert trained.config["record"] == f"{DIGITS}/{record.parent.name}/seed0"
    assert trained.summary["accuracy"] == summary(record)["scores"]["accuracy"]
    assert trained.summary["status"] == "finished"

    # Bank -> surrogate -> run: the same name and content on both sides of an arrow.
    bank, surrogate = "bank-classification-digits_cnn", f"surrogate-classification-digits_cnn-{folder.name}"
    assert (baseline.artifacts[bank]["used"], learned.artifacts[bank]["used"]) == (False, True)
    assert (learned.artifacts[surrogate]["used"], trained.artifacts[surrogate]["used"]) == (False, True)
    assert baseline.artifacts[bank]["digest"] == learned.artifacts[bank]["digest"]
    assert learned.artifacts[surrogate]["digest"] == trained.artifacts[surrogate]["digest"]
    assert learned.artifacts[surrogate]["files"] == {"surrogate.safetensors", "surrogate.json"}
    assert learned.artifacts[surrogate]["type"] == "model"
    assert baseline.artifacts[bank]["type"] == "dataset"
    fingerprint = read_json(folder / "surrogate.json")["bank"]
    assert baseline.artifacts[bank]["references"] == [f"reloss://{DIGITS}/bank/{fingerprint}"]
    assert baseline.artifacts[bank]["files"] == set()
    assert learned.config["bank"] == fingerprint
    assert trained.config["fitted_surrogate"]["folder"] == learned.config["fitted_surrogate"]["folder"]

    (result,) = (artifact for artifact in trained.artifacts.values() if artifact["type"] == "result")
    files = {"config.yaml", "environment.json", "metrics.jsonl", "summary.json", "scores.table.json"}
    assert result["files"] == files

    cost = summary(record)["tracking"]
    assert 0 < cost["seconds"] < summary(record)["wall_seconds"]
    assert cost["share"] == pytest.approx(cost["seconds"] / summary(record)["wall_seconds"], rel=0.1)
    assert cost["cpu_seconds"] > 0


def test_a_figure_is_logged_at_the_last_step_and_is_part_of_the_result(run_digits, monkeypatch, tmp_path):
    from reloss.experiment.record import Record
    from reloss.report.figures import _figure, _save

    config = find_experiment(DIGITS)[1]
    facts = {"experiment": DIGITS, "loss": "ce", "seed": 0}
    record = Record(tmp_path / "a" / "b" / "ce" / "seed0", config, facts=facts, tracker=make_tracker("wandb"))
    record.log(7, epoch=1)
    record.save_figure("curve", lambda path: _save(_figure(1)[0], path))
    record.close("finished", {"accuracy": 1.0})
    (run,) = offline_runs(record.path)
    assert run.metrics() == [{"step": 7, "epoch": 1}]
    assert run.rows[1]["step"] == 7
    assert run.rows[1]["curve/_type"] == "image-file"
    (result,) = run.artifacts.values()
    assert "curve.png" in result["files"]


@pytest.mark.slow
def test_a_killed_run_resumes_in_a_linked_run(start, finish, tmp_path):
    words = ("run", DIGITS, "--runs", tmp_path, "--data", tmp_path, "--set", "train.epochs=40")
    record = tmp_path / DIGITS / "ce@train.epochs=40" / "seed0"
    process = start(*words)
    last = record / "checkpoint" / "last.pt"
    wait_for(lambda: last.exists() and list(record.glob("wandb/offline-run-*/*.wandb")), process)
    process.kill()
    process.wait()
    wait_for(lambda: read_run(*record.glob("wandb/offline-run-*/*.wandb"))["exit_code"] is not None)
    assert FAILED not in finish(*words)
    first, second = offline_runs(record)
    assert first.id != second.id
    assert second.config["resumed_from"] == first.id
    assert (first.config["record"], first.group) == (second.config["record"], second.group)
    assert (first.exits, second.exits) == ([1], [0])  # crashed; finished
    assert second.rows == read_metrics(record / "metrics.jsonl")
    assert len(second.rows) == 40
    assert second.wandb_steps == list(range(40))
    assert [row["step"] for row in first.rows] == [row["step"] for row in second.rows[: len(first.rows)]]


@pytest.mark.parametrize("victim", ["wandb-core", pytest.param("reloss.tracking.worker", marks=pytest.mark.slow)])
def test_death_of_the_service_stops_nothing_and_is_reported_once(run_digits, monkeypatch, capsys, victim):
    from reloss.experiment.record import Record

    log = Record.log

    def kill_then_log(self, step, **values):
        if values["epoch"] == 2:
            core()
            for pid, words in processes(os.getpid()).items():
                if victim in words:
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.2)
        log(self, step, **values)

    monkeypatch.setattr(Record, "log", kill_then_log)
    record = run_digits(track="wandb", settings=("train.epochs=4",))
    assert summary(record)["status"] == "finished"
    assert len(read_metrics(record / "metrics.jsonl")) == 4
    assert capsys.readouterr().err.count(FAILED) == 1


def test_a_hanging_service_delays_no_step_and_the_end_only_until_the_deadline(tracked, monkeypatch, capsys):
    monkeypatch.setattr(client, "DEADLINE", 1)
    hanging = tracked()
    assert core()
    for pid, words in processes(os.getpid()).items():
        if "wandb" in words or "reloss.tracking.worker" in words:  # others would stay stopped
            os.kill(pid, signal.SIGSTOP)
    start = time.monotonic()
    for step in range(20000):  # far more than a pipe holds
        hanging.log({"step": step, "loss": 1.0})
    assert time.monotonic() - start < 5
    hanging.finish({}, failed=False)
    assert time.monotonic() - start < 8
    assert hanging.seconds == pytest.approx(time.monotonic() - start, rel=0.3)
    messages = capsys.readouterr().err
    assert messages.count(FAILED) == 1
    assert "no answer within 1 seconds" in messages


def test_a_full_disk_is_reported_once(tracked, tmp_path, capsys):
    folder = tmp_path / "wandb"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        full = tracked()
        for step in range(5000):
            full.log({"step": step, "loss": 1.0})
        full.finish({"accuracy": 1.0}, failed=False)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
    assert capsys.readouterr().err.count(FAILED) == 1


@pytest.mark.parametrize("broken", ["raise ModuleNotFoundError('No module named wandb')", "import sys; sys.exit(3)"])
def test_a_broken_wandb_stops_nothing_and_is_reported_once(run_digits, tmp_path, monkeypatch, capsys, broken):
    (tmp_path / "path" / "wandb").mkdir(parents=True)
    (tmp_path / "path" / "wandb" / "__init__.py").write_text(broken)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    record = run_digits(track="wandb")
    assert summary(record)["status"] == "finished"
    messages = capsys.readouterr().err
    assert messages.count(FAILED) == 1
    assert ("No module named wandb" if "Module" in broken else "its process ended with code 3") in messages


def test_without_a_network_an_online_run_goes_offline(tracked, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    online = tracked()
    online.log({"step": 1})
    online.finish({}, failed=False)
    (run,) = offline_runs(tmp_path)
    assert run.rows == [{"step": 1}]
    messages = capsys.readouterr().err
    assert messages.count(FAILED) == 1
    assert "`reloss sync` uploads it" in messages


def test_only_the_main_process_tracks(tmp_path, monkeypatch):
    from reloss.experiment.record import Record

    monkeypatch.setenv("RANK", "1")
    record = Record(
        tmp_path, find_experiment(DIGITS)[1], facts={"loss": "ce", "seed": 0}, tracker=make_tracker("wandb")
    )
    record.log(1, loss=1.0)
    record.close("finished")
    assert list(tmp_path.iterdir()) == []


def test_off_starts_nothing(run_digits):
    record = run_digits(track="off")
    assert not (record / "wandb").exists()
    assert "tracking" not in summary(record)


def test_the_cost_adds_up_over_sessions(run_digits, tmp_path):
    record = run_digits(track="wandb")
    before = summary(record)
    first = before["tracking"]
    (record / "summary.json").write_text(json.dumps({**before, "tracking": {**first, "seconds": 100.0}}))
    run_digits(track="wandb", stage="evaluate")
    assert summary(record)["tracking"]["seconds"] > 100
    assert summary(record)["tracking"]["cpu_seconds"] > first["cpu_seconds"]


def test_tags_and_names_are_short_enough_for_wandb():
    config = find_experiment("pose/lsp_resnet18")[1]
    facts = {"loss": "reloss", "variant": "x" * 100, "seed": 3}
    described = describe_run(config, "train", "0123456789ab+changes", facts)
    assert [len(tag) <= 64 for tag in described["tags"]] == [True] * 5
    assert described["tags"][-1] == "git: changes"
    assert describe_run(config, "train", "0123456789ab", facts)["tags"][-1] == "git: clean"
    assert describe_run(config, "train", "unknown", facts)["tags"][-1] == "git: unknown"
    json.dumps(described)


def test_the_tracker_outlives_sigterm(tracked, tmp_path, capsys):
    """A run that receives SIGTERM writes its state, then ends its W&B run itself."""
    signalled = tracked()
    signalled.log({"step": 1})
    core()
    for pid, words in processes(os.getpid()).items():
        if "reloss.tracking.worker" in words:
            os.kill(pid, signal.SIGTERM)
    signalled.log({"step": 2})
    signalled.finish({}, failed=True)
    (run,) = offline_runs(tmp_path)
    assert run.rows == [{"step": 1}, {"step": 2}]
    assert run.exits == [1]
    assert FAILED not in capsys.readouterr().err


def test_an_evaluation_logs_the_whole_run_again(run_digits):
    record = run_digits(track="wandb", settings=("train.epochs=2",))
    run_digits(track="wandb", settings=("train.epochs=2",), stage="evaluate")
    first, second = offline_runs(record)
    assert first.rows == second.rows == read_metrics(record / "metrics.jsonl")
    assert second.config["resumed_from"] == first.id
