import json
import time

import pytest
from small import DIGITS, SMALL

from reloss.experiment.run_spec import variant_name
from reloss.runtime.lock import locked
from reloss.sweep.local import note_of, run_local, write_note
from reloss.sweep.plan import phases
from reloss.sweep.status import of_plan


def wait_for(condition, seconds=120):
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.05)


def edit(record, **changes):
    path = record / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def states(rows):
    return [(row["loss"].partition("@")[0], row["seed"], row["stage"], row["state"]) for row in rows]


@pytest.fixture
def status(cli, tmp_path):
    def call(*words):
        code, out, err = cli("status", DIGITS, "--runs", tmp_path / "runs", "--json", *words)
        assert code == 0, err
        return json.loads(out)

    return call


GRID = ("--losses", "ce,reloss", "--seeds", "0-1", "--set", *SMALL)


def test_a_grid_before_its_sweep_is_not_run(status):
    assert states(status(*GRID)) == [
        ("ce", 0, "all", "not run"),
        ("reloss", 0, "learn", "not run"),
        ("ce", 1, "all", "not run"),
        ("reloss", 0, "all", "not run"),
        ("reloss", 1, "all", "not run"),
    ]


def test_states_and_reasons(status, run_digits, tmp_path):
    record = run_digits()
    (row,) = [row for row in status(*GRID) if row["state"] == "finished"]
    assert (row["progress"], row["record"]) == ("epoch 1/1", f"{DIGITS}/ce@{variant_name(SMALL)}/seed0")
    assert row["updated"].startswith("20")
    edit(record, status="failed", cause="the loss is nan")
    rows = status(*GRID)
    assert (rows[0]["state"], rows[0]["reason"]) == ("failed", "the loss is nan")
    why = f"needs ce@{variant_name(SMALL)} seed 0, which failed"
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
        assert rows[3]["reason"] == f"needs ce@{variant_name(SMALL)} seed 0, which is damaged"


def test_a_record_without_its_config_or_that_may_not_be_read(status, run_digits):
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
    bank, _, run = (cell for phase in phases(DIGITS, ["reloss"], [1], SMALL) for cell in phase)
    path = tmp_path / "runs" / DIGITS / "bank" / "bank.json"
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    write_note(run, tmp_path / "runs", state="failed", reason="no disk")
    note = tmp_path / "runs" / "sweep" / f"{run.file_name}.json"
    note.write_text(note.read_text()[:20])
    rows = status(*grid)
    assert [row["state"] for row in rows] == ["damaged", "not run", "damaged"]
    assert rows[0]["reason"] == f"{path} is damaged (wrong: complete); remove it or restore it from a copy"
    assert rows[1]["reason"] == f"needs {bank.changed_loss} --stage baseline, which is damaged"
    assert f"{note} cannot be read as JSON" in rows[2]["reason"]


def test_a_run_is_running_while_a_process_holds_its_record(status, start, run_digits, tmp_path):
    words = ("run", DIGITS, "--seed", "1", "--runs", tmp_path / "runs", "--track", "off", "--set", "train.epochs=500")
    process = start(*words)
    lines = tmp_path / "runs" / DIGITS / "ce@train.epochs=500" / "seed1" / "metrics.jsonl"
    wait_for(lambda: lines.exists() and lines.read_text().count("\n"))
    (row,) = [row for row in status() if row["seed"] == 1]
    assert row["state"] == "running"
    assert row["progress"].endswith("/500")
    process.kill()
    process.wait()
    (row,) = [row for row in status() if row["seed"] == 1]
    assert row["state"] == "killed"


def test_without_seeds_all_records_are_shown_and_losses_without_any(status, run_digits):
    run_digits(seed=3)
    run_digits(seed=3, settings=(*SMALL, "train.lr=0.2"))
    rows = status("--losses", "ce,reloss")
    assert states(rows) == [("ce", 3, "all", "finished"), ("ce", 3, "all", "finished"), ("reloss", 0, "all", "not run")]


def test_as_text_with_a_count(cli, run_digits, tmp_path):
    run_digits()
    code, out, _ = cli("status", DIGITS, "--runs", tmp_path / "runs", *GRID)
    assert code == 0
    assert out.splitlines()[0].split() == ["experiment", "loss", "seed", "state", "progress", "updated", "why"]
    assert out.splitlines()[-1] == "4 runs: 1 finished, 3 not run"


def test_settings_need_seeds(cli):
    code, _, err = cli("status", DIGITS, "--set", "train.epochs=1")
    assert code == 2
    assert "--set says which sweep is meant, and needs its --seeds" in err


def test_what_needs_a_failed_baseline_is_not_run_and_says_why(tmp_path, capsys):
    plan = phases(DIGITS, ["ce", "reloss"], [0, 1], SMALL)
    broken = plan[1][0].record(tmp_path)
    broken.mkdir(parents=True)
    (broken / "config.yaml").write_text("of another experiment")
    failed = run_local(plan, ["--runs", str(tmp_path), "--track", "off"], tmp_path, 2, [])
    assert failed == [plan[1][0]]
    said = capsys.readouterr().err
    changed = variant_name(SMALL)
    for cell in (*plan[2], *plan[3][1:]):
        assert f"NOT RUN   {cell.label}: it needs" in said
    rows = {(row.loss, row.seed, row.stage): row for row in of_plan(plan, tmp_path)}
    assert rows[f"ce@{changed}", 1, "all"].state == "finished"
    assert rows[f"ce@{changed}", 0, "all"].state == "failed"
    assert "was made by another config" in rows[f"ce@{changed}", 0, "all"].reason
    assert rows[f"reloss@{changed}", 1, "all"].reason == f"needs ce@{changed} seed 0, which failed"


def test_each_slot_has_its_gpu(tmp_path, monkeypatch):
    seen = []

    def run_cell(cell, options, runs, environment, start):
        seen.append(environment["CUDA_VISIBLE_DEVICES"])
        time.sleep(0.05)
        return 0

    monkeypatch.setattr("reloss.sweep.local.run_cell", run_cell)
    run_local(phases(DIGITS, ["ce"], [1, 2, 3, 4]), [], tmp_path, 2, ["4", "7"])
    assert sorted(seen) == ["4", "4", "7", "7"]


def test_a_note_is_kept_until_the_cell_ends_well(tmp_path):
    cell = phases(DIGITS, ["ce"], [1])[3][0]
    assert note_of(cell, tmp_path) == {}
    write_note(cell, tmp_path, state="submitted", job="12")
    assert note_of(cell, tmp_path) == {"state": "submitted", "job": "12"}
    write_note(cell, tmp_path)
    assert note_of(cell, tmp_path) == {}


def test_a_second_process_refuses(start, run_digits, tmp_path):
    with locked(tmp_path / "runs" / DIGITS / "ce@train.epochs=1" / "seed1"):
        process = start(
            "run", DIGITS, "--seed", "1", "--runs", tmp_path / "runs", "--track", "off", "--set", "train.epochs=1"
        )
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "is being written by process" in said
    assert "wait until it ends, then run the command again" in said
    assert run_digits(seed=1, settings=("train.epochs=1",)).name == "seed1"
