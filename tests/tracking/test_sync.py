"""Uploads with W&B's own command, to a server on this machine that answers as much as that command needs."""

import os
import signal
import time
from typing import ClassVar

import pytest
from offline import offline_runs
from small import DIGITS, SMALL
from waiting import wait_for
from wandb_server import wandb_server

from reloss.commands.sync import record_tables
from reloss.experiment.workspace import Workspace
from reloss.runtime.errors import RelossError
from reloss.runtime.files import write_json
from reloss.tracking.artifacts import Artifact
from reloss.tracking.client import WandbTracker
from reloss.tracking.worker import read_run


@pytest.fixture
def server(monkeypatch):
    with wandb_server() as kept:
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setenv("WANDB_BASE_URL", kept.address)
        yield kept
    assert kept.unknown == []


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """Record an offline run of three rows and an artifact; return its contents, or the tracker of an unfinished run."""

    def record(name="a", finished=True):
        monkeypatch.setenv("WANDB_MODE", "offline")
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "weights").write_text(name)
        tracker = WandbTracker()
        tracker.start_run(folder, name=name, group="g", job_type="train", tags=["t"], config={"x": 1})
        for step in (10, 20, 30):
            tracker.log({"step": step, "loss": 1 / step})
        tracker.log_artifact(Artifact("weights", "model", files={"weights": folder / "weights"}))
        if finished:
            tracker.finish({"accuracy": 0.5}, failed=False)
        monkeypatch.delenv("WANDB_MODE")
        return tracker if not finished else offline_runs(folder)[-1]

    return record


def test_each_run_is_uploaded_once_under_its_id(server, recorded, cli, tmp_path):
    run = recorded()
    code, _, err = cli("sync", "--runs", tmp_path / "runs")
    assert code == 0, err
    assert "1 uploaded, 0 failed, 0 not ended yet, 0 uploaded before" in err
    assert list(server.runs) == [run.id]
    sent = server.runs[run.id]
    assert (sent["groupName"], sent["jobType"], sent["tags"], sent["project"]) == ("g", "train", ["t"], "reloss")
    assert server.rows[run.id] == run.rows
    assert server.exits == {run.id: 0}
    assert server.committed == ["weights"]

    requests = server.requests
    code, _, err = cli("sync", "--runs", tmp_path / "runs")
    assert code == 0
    assert "0 uploaded, 0 failed, 0 not ended yet, 1 uploaded before" in err
    assert server.requests == requests


class Tables(WandbTracker):
    """A tracker that keeps the settings of its runs, and starts none."""

    started: ClassVar[list[dict]] = []

    def start_run(self, folder, **settings):
        self.started.append(settings)


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """One table of results; return the settings of the runs that log it."""
    monkeypatch.setattr(Tables, "started", [])
    monkeypatch.setattr("reloss.commands.sync.WandbTracker", Tables)
    monkeypatch.setattr("reloss.commands.sync._write_tables", lambda workspace: {"t.md": tmp_path / "runs/a/weights"})
    return Tables.started


def test_the_tables_go_to_the_project_of_the_runs(recorded, tables, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "other")
    monkeypatch.setenv("WANDB_ENTITY", "group")
    recorded()
    for name in ("WANDB_PROJECT", "WANDB_ENTITY"):
        monkeypatch.delenv(name)
    for _ in range(2):
        record_tables(Workspace(tmp_path / "runs"))
    (started,) = tables  # they did not change
    assert (started["project"], started["entity"], started["mode"]) == ("other", "group", "offline")


def test_without_runs_the_tables_go_to_the_default_project(tables, tmp_path):
    write_json(tmp_path / "runs" / "a" / "weights", {})
    record_tables(Workspace(tmp_path / "runs"))
    assert "project" not in tables[0]


def test_tables_that_wandb_does_not_record_are_tried_again(tables, tmp_path, monkeypatch):
    write_json(tmp_path / "runs" / "a" / "weights", {})
    monkeypatch.setattr(Tables, "finish", lambda self, *_, **__: self._report("no space"))
    for _ in range(2):
        with pytest.raises(RelossError, match=r"does not record the results tables \(no space\)"):
            record_tables(Workspace(tmp_path / "runs"))
    assert len(tables) == 2


def test_without_a_network_the_message_names_the_server(recorded, cli, tmp_path, monkeypatch):
    recorded()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("reloss.commands.sync._write_tables", lambda workspace: {"t.md": tmp_path / "runs/a/weights"})
    code, out, err = cli("sync", "--runs", tmp_path / "runs")
    assert code == 1
    assert "reloss: W&B does not answer at http://127.0.0.1:9 (ConnectionError:" in err
    assert "2 runs wait for upload: run the same command again when it answers" in err
    assert "the run continues" not in out + err
    assert "`reloss sync`" not in out + err


@pytest.mark.parametrize(
    "refused",
    [
        "weights",
        *(pytest.param(each, marks=pytest.mark.slow) for each in ("CommitArtifact", "file_stream", "UpsertBucket")),
    ],
)
def test_a_partly_failed_upload_is_reported_and_repeated(server, recorded, cli, tmp_path, refused):
    run = recorded()
    server.refused = refused
    code, _, err = cli("sync", "--runs", tmp_path / "runs")
    assert code == 1
    assert "FAILED" in err
    assert "1 of 1 uploads failed; the same command tries them again" in err
    server.refused = ""
    code, _, err = cli("sync", "--runs", tmp_path / "runs")
    assert code == 0, err
    assert server.rows[run.id][-3:] == run.rows
    assert "weights" in server.committed
    assert list(server.runs) == [run.id]


def test_the_upload_to_a_silent_server_ends_at_the_deadline(server, recorded, cli, tmp_path):
    recorded()
    server.silent.set()
    start = time.monotonic()
    code, _, err = cli("sync", "--runs", tmp_path / "runs", "--deadline", 3)
    assert code == 1
    assert time.monotonic() - start < 15
    assert "no end within 3 seconds" in err


def test_a_running_run_is_uploaded_after_its_end(server, recorded, cli, tmp_path):
    tracker = recorded(finished=False)
    wait_for(lambda: list((tmp_path / "runs").glob("*/wandb/offline-run-*/*.wandb")))
    code, _, err = cli("sync", "--runs", tmp_path / "runs")
    assert code == 0
    assert "0 uploaded, 0 failed, 1 not ended yet" in err
    tracker.finish({}, failed=True)
    _, _, err = cli("sync", "--runs", tmp_path / "runs")
    assert "1 uploaded" in err
    assert list(server.exits.values()) == [1]


@pytest.mark.slow
def test_a_run_without_an_end_is_uploaded_once_its_record_has_ended(server, recorded, cli, tmp_path):
    run = recorded()
    run.path.write_bytes(run.path.read_bytes()[:-40])  # as after W&B's process was killed
    assert read_run(run.path) == {"rows": 3, "exit_code": None}
    summary = tmp_path / "runs" / "a" / "summary.json"
    facts = {"experiment": "none", "loss": "ce", "settings": [], "seed": 0, "protocol": "p", "scores": {}}
    for status, uploaded in (("damaged", 0), ("running", 0), ("interrupted", 1)):
        write_json(summary, {**facts, "status": None if status == "damaged" else status})
        code, _, err = cli("sync", "--runs", tmp_path / "runs")
        assert code == 0, err
        assert (f"skipped: {summary} is damaged" in err) == (status == "damaged")
        assert f"{uploaded} uploaded, 0 failed, {1 - uploaded} not ended yet" in err
    assert server.rows[run.id] == run.rows


@pytest.mark.slow
def test_an_interrupted_run_and_its_resumption_are_two_runs_of_one_group(server, start, finish, cli, tmp_path):
    os.environ["WANDB_MODE"] = "offline"
    words = ("run", DIGITS, "--runs", tmp_path / "runs", "--data", tmp_path, "--set", "train.epochs=30")
    record = tmp_path / "runs" / DIGITS / "ce@train.epochs=30" / "seed0"
    process = start(*words)
    last = record / "checkpoint" / "last.pt"
    wait_for(lambda: last.exists() and list(record.glob("wandb/offline-run-*/*.wandb")), process)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=60)
    finish(*words)
    code, _, err = cli("sync", "--runs", tmp_path / "runs")
    assert code == 0, err
    first, second = offline_runs(record)
    assert [run for run in server.runs if run in (first.id, second.id)] == [first.id, second.id]
    assert len(server.runs) == 3  # with the run of the results tables
    assert {server.runs[run.id]["groupName"] for run in (first, second)} == {DIGITS}
    assert (server.exits[first.id], server.exits[second.id]) == (1, 0)
    assert len(server.rows[second.id]) == 30


@pytest.mark.slow
def test_the_lineage_is_uploaded(server, run_digits, cli, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run_digits("reloss", track="wandb", settings=SMALL)
    code, _, err = cli("sync", "--runs", tmp_path / "runs")
    assert code == 0, err
    stage = {run: sent["jobType"] for run, sent in server.runs.items()}
    made = {(stage[run], name.partition("-")[0]) for run, name in server.made}
    used = {(stage[run], name.partition("-")[0]) for run, name in server.used}
    results = {(kind, "result") for kind in ("baseline", "train")}
    assert made == {("baseline", "bank"), ("learn", "surrogate"), ("table", "results"), *results}
    assert used == {("learn", "bank"), ("train", "surrogate")}
    assert len({name for name, _ in server.versions}) == len(server.versions) == 5

    # The tables are uploaded too, and only once if they do not change.
    tables = tmp_path / "runs" / "tables"
    assert {path.name for path in tables.iterdir()} == {
        *(f"classification.{format}" for format in ("md", "csv", "json")),
        "uploaded.json",
    }
    requests = server.requests
    cli("sync", "--runs", tmp_path / "runs")
    assert server.requests == requests


@pytest.mark.slow
def test_with_a_key_and_a_server_a_run_is_online_and_leaves_nothing_to_upload(server, run_digits, cli, tmp_path):
    record = run_digits(track="wandb")
    (run,) = server.runs
    assert server.exits == {run: 0}
    assert len(server.rows[run]) == 1
    code, _, err = cli("sync", "--runs", tmp_path / "runs")
    assert code == 0
    assert "1 uploaded, 0 failed, 0 not ended yet, 1 uploaded before" in err  # the results tables, and the run
    assert (record / "summary.json").exists()


def test_without_a_key_the_message_names_the_remedy(recorded, cli, tmp_path, monkeypatch):
    recorded()
    monkeypatch.setenv("HOME", str(tmp_path))  # no ~/.netrc
    code, _, err = cli("sync", "--runs", tmp_path / "runs")
    assert code == 2
    assert err == (
        "reloss: 1 runs wait for upload, but there is no W&B key: set WANDB_API_KEY, or call `wandb login`\n"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--runs", "nowhere"), "no folder of records at nowhere; name it with --runs"),
        (("--deadline", "0"), "--deadline must be more than 0"),
    ],
)
def test_wrong_usage(cli, words, message):
    code, _, err = cli("sync", *words)
    assert code == 2
    assert message in err
