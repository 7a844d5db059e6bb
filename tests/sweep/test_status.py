import json
import time

import pytest
from small import DIGITS, SMALL, SMALL_CE
from waiting import wait_for

from reloss.experiment.status import Status
from reloss.experiment.workspace import Workspace
from reloss.runtime.lock import locked
from reloss.sweep.job import read_note, remove_note, write_note
from reloss.sweep.local import run_local
from reloss.sweep.plan import make_plan
from reloss.sweep.status import of_plan


def edit(record, **changes):
    path = record / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def states(rows):
    return [(row["loss"].partition("@")[0], row["seed"], row["stage"], row["state"]) for row in rows]


@pytest.fixture
def status(cli, tmp_path):
    (tmp_path / "runs").mkdir(exist_ok=True)

    def call(*words):
        code, out, err = cli("status", DIGITS, "--runs", tmp_path / "runs", "--json", *words)
        assert code == 0, err
        return json.loads(out)

    return call


GRID = ("--losses", "ce,reloss", "--seeds", "0-1", "--set", *SMALL)


def test_before_its_sweep_a_grid_is_not_run(status):
    assert states(status(*GRID)) == [
        ("ce", 0, "all", "not_run"),
        ("reloss", 0, "learn", "not_run"),
        ("ce", 1, "all", "not_run"),
        ("reloss", 0, "all", "not_run"),
        ("reloss", 1, "all", "not_run"),
    ]


def test_states_and_reasons(status, run_digits, tmp_path):
    record = run_digits()
    (row,) = [row for row in status(*GRID) if row["state"] == "finished"]
    assert (row["progress"], row["record"]) == ("epoch 1/1", f"{DIGITS}/{SMALL_CE}/seed0")
    assert row["updated"].startswith("20")
    edit(record, status="failed", cause="the loss is nan")
    rows = status(*GRID)
    assert (rows[0]["state"], rows[0]["reason"]) == ("failed", "the loss is nan")
    why = f"needs {SMALL_CE} seed 0, which failed"
    assert [row["reason"] for row in rows[1:]] == [why, "", why, why]
    edit(record, status="running")
    assert status(*GRID)[0]["state"] == "killed"
    (record / "summary.json").write_text("{")
    row = status(*GRID)[0]
    assert row["state"] == "damaged"
    assert "summary.json cannot be read" in row["reason"]


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("summary.json", b"null", "summary.json is damaged (empty)"),
        ("summary.json", b"{", "summary.json cannot be read as JSON"),
        ("metrics.jsonl", b"\xff\xfe", "metrics.jsonl cannot be read as text"),
        ("metrics.jsonl", b"null\nnull\n", "metrics.jsonl, line 1 is damaged"),
        ("config.yaml", b"train: [", "config.yaml cannot be read as YAML"),
        ("config.yaml", b"train:", "config.yaml is damaged (wrong: train)"),
    ],
)
def test_a_damaged_record_is_a_row_of_its_grid(status, run_digits, name, content, why):
    (run_digits() / name).write_bytes(content)
    rows = status(*GRID)
    assert len(rows) == 5
    assert rows[0]["state"] == "damaged"
    assert why in rows[0]["reason"]
    assert status("--losses", "ce")[0] == rows[0]
    if name == "summary.json":
        assert rows[3]["reason"] == f"needs {SMALL_CE} seed 0, which is damaged"


def test_a_record_without_its_config_or_with_an_unreadable_summary(status, run_digits):
    record = run_digits()
    (record / "config.yaml").unlink()
    assert [status(*GRID)[0][name] for name in ("state", "progress")] == ["finished", "epoch 1/?"]
    (record / "summary.json").unlink()
    (record / "summary.json").mkdir()
    row = status(*GRID)[0]
    assert (row["state"], row["reason"]) == (
        "damaged",
        f"{record}/summary.json cannot be read (Is a directory); make it readable",
    )


def test_a_damaged_bank_and_a_damaged_note_are_rows(status, tmp_path):
    grid = ("--losses", "reloss", "--seeds", "1", "--set", *SMALL)
    workspace = Workspace(tmp_path / "runs")
    bank, _, run = make_plan(DIGITS, ["reloss"], [1], SMALL)
    path = workspace.bank(DIGITS) / "bank.json"
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    write_note(run, workspace, Status.FAILED, reason="no disk")
    note = workspace.sweep_note(run.file_name)
    note.write_text(note.read_text()[:20])
    rows = status(*grid)
    assert [row["state"] for row in rows] == ["damaged", "not_run", "damaged"]
    assert rows[0]["reason"] == f"{path} is damaged (wrong: complete); remove it or restore it from a copy"
    assert rows[1]["reason"] == f"needs {bank.run.loss_with_variant} --stage baseline, which is damaged"
    assert f"{note} cannot be read as JSON" in rows[2]["reason"]


def test_a_run_is_running_while_a_process_holds_its_record(status, fork, run_digits, tmp_path):
    words = ("run", DIGITS, "--seed", "1", "--runs", tmp_path / "runs", "--track", "off", "--set", "train.epochs=500")
    process = fork(*words)
    lines = tmp_path / "runs" / DIGITS / "ce@train.epochs=500" / "seed1" / "metrics.jsonl"
    wait_for(lambda: lines.exists() and lines.read_text().count("\n"))
    (row,) = [row for row in status() if row["seed"] == 1]
    assert row["state"] == "running"
    assert row["progress"].endswith("/500")
    process.kill()
    process.wait()
    (row,) = [row for row in status() if row["seed"] == 1]
    assert row["state"] == "killed"


def test_without_seeds_it_shows_all_records_and_losses_without_any(status, run_digits):
    run_digits(seed=3)
    run_digits(seed=3, settings=(*SMALL, "train.lr=0.2"))
    rows = status("--losses", "ce,reloss")
    assert states(rows) == [("ce", 3, "all", "finished"), ("ce", 3, "all", "finished"), ("reloss", 0, "all", "not_run")]


def test_the_text_ends_with_the_number_of_runs_in_each_state(cli, run_digits, tmp_path):
    run_digits()
    code, out, _ = cli("status", DIGITS, "--runs", tmp_path / "runs", *GRID)
    assert code == 0
    assert out.splitlines()[0].split() == ["experiment", "loss", "seed", "state", "progress", "updated", "why"]
    assert out.splitlines()[-1] == "4 runs: 1 finished, 3 not run"


def test_settings_need_seeds(cli):
    code, _, err = cli("status", DIGITS, "--set", "train.epochs=1")
    assert code == 2
    assert "--set describes a sweep and needs its --seeds" in err


def test_jobs_that_need_a_failed_baseline_are_not_run_and_have_a_reason(tmp_path, capsys):
    plan, workspace = make_plan(DIGITS, ["ce", "reloss"], [0, 1], SMALL), Workspace(tmp_path)
    (baseline,), (other, *learned) = plan.baselines, plan.runs
    record = workspace.record(baseline.run)
    record.mkdir(parents=True)
    (record / "config.yaml").write_text("of another experiment")
    assert run_local(plan, ["--runs", str(tmp_path), "--track", "off"], workspace, 2, []) == [baseline]
    messages = capsys.readouterr().err
    for job in (*plan.fits, *learned):
        assert f"NOT RUN   {job.label}: it needs" in messages
    rows = dict(zip(plan, of_plan(plan, workspace), strict=True))
    assert rows[other].state == Status.FINISHED
    assert rows[baseline].state == Status.FAILED
    assert "belongs to a run with another config" in rows[baseline].reason
    assert rows[learned[1]].reason == f"needs {baseline.run.loss_with_variant} seed 0, which failed"


def test_each_slot_has_its_gpu(tmp_path, monkeypatch):
    gpus = []

    def run_job(job, options, workspace, environment, start):
        gpus.append(environment["CUDA_VISIBLE_DEVICES"])
        time.sleep(0.05)
        return 0

    monkeypatch.setattr("reloss.sweep.local.run_job", run_job)
    run_local(make_plan(DIGITS, ["ce"], [1, 2, 3, 4]), [], Workspace(tmp_path), 2, ["4", "7"])
    assert sorted(gpus) == ["4", "4", "7", "7"]


def test_a_note_is_a_file_until_it_is_removed(tmp_path):
    (job,) = make_plan(DIGITS, ["ce"], [1])
    workspace = Workspace(tmp_path)
    assert read_note(job, workspace) == {}
    write_note(job, workspace, Status.QUEUED, job="12")
    assert read_note(job, workspace) == {"state": "queued", "job": "12"}
    remove_note(job, workspace)
    remove_note(job, workspace)
    assert read_note(job, workspace) == {}


def test_a_second_process_refuses(fork, run_digits, tmp_path):
    with locked(tmp_path / "runs" / DIGITS / "ce@train.epochs=1" / "seed1"):
        process = fork(
            "run", DIGITS, "--seed", "1", "--runs", tmp_path / "runs", "--track", "off", "--set", "train.epochs=1"
        )
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "is being written by process" in output
    assert "wait until it ends, then run the command again" in output
    assert run_digits(seed=1, settings=("train.epochs=1",)).name == "seed1"
