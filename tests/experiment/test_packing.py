import json

import pytest
from small import DIGITS
from small_records import CONFIG, ENVIRONMENT, METRICS, NAMES, SUMMARY, live, packed

from reloss.commands.pack import pack
from reloss.experiment import packing
from reloss.experiment.records import read_records, read_runs
from reloss.runtime.errors import RelossError, UsageError
from reloss.runtime.files import read_json, write_json, write_text


@pytest.fixture
def folders(tmp_path):
    """A live folder of runs, and where to pack it."""
    live(tmp_path / "runs")
    return tmp_path / "runs", tmp_path / "packed"


def contents(folder):
    """Everything that readers can get from records, in a form that compares."""
    records = read_records(folder)
    runs = [(run.model_dump(exclude={"source"}), run.config(), run.metrics()) for run in records.runs]
    surrogates = [(each.model_dump(exclude={"source"}), each.history(), each.picture()) for each in records.surrogates]
    return runs, surrogates, records.rankings


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_packed_records_read_as_live_ones(folders):
    runs, out = folders
    assert pack(runs, out) == (3, 1, [])
    assert contents(out) == contents(runs)
    assert set(files(out)) == {f"{DIGITS}.jsonl", "surrogates.jsonl", "configs.json", "environments.json"}
    assert len((out / f"{DIGITS}.jsonl").read_text().splitlines()) == 3
    assert list(read_json(out / "configs.json").values()) == [CONFIG]
    assert list(read_json(out / "environments.json").values()) == [ENVIRONMENT]


def test_only_ended_runs_and_small_files_are_packed(folders):
    runs, out = folders
    for name, status in zip(NAMES, ("running", "interrupted", "failed"), strict=True):
        write_json(runs / name / "summary.json", {**SUMMARY, "status": status, "seed": 2, "cause": "no disk"})
    for name in ("examples.json", "persons.png", "checkpoint/weights.safetensors", "predictions/0001.safetensors"):
        write_text(runs / NAMES[2] / name, "a secret")
    write_text(runs / DIGITS / "surrogates" / "one" / "surrogate.safetensors", "a secret")
    write_text(runs / DIGITS / "bank" / "bank.json", "a secret")
    assert pack(runs, out).runs == 1
    (run,) = read_runs(out)
    assert (run.name, run.status, run.cause) == (NAMES[2], "failed", "no disk")
    assert not any("secret" in text for text in files(out).values())


def test_packing_again_replaces_runs_by_name_and_keeps_the_others(folders, tmp_path):
    runs, out = folders
    pack(runs, out)
    before = files(out)
    pack(runs, out)
    assert files(out) == before
    more, name = tmp_path / "more", "classification/digits8_cnn/ce/seed0"
    for changed in (name, NAMES[1]):
        write_json(more / changed / "summary.json", {**SUMMARY, "seed": 1, "scores": {"accuracy": 0.75}})
        write_text(more / changed / "config.yaml", "a: 1")
    assert pack(more, out).runs == 2
    found = {run.name: run for run in read_runs(out)}
    assert list(found) == [name, *NAMES]
    assert [run.scores["accuracy"] for run in found.values()] == [0.75, 0.5, 0.75, 0.5]
    assert found[NAMES[1]].config() == {"a": 1}
    assert found[NAMES[1]].metrics() == []
    assert len(read_json(out / "configs.json")) == 2
    assert len(read_records(out).surrogates) == 1
    pack(runs, out)
    write_json(more / name / "summary.json", {**SUMMARY, "seed": 1})
    write_text(more / name / "config.yaml", json.dumps(CONFIG))
    pack(more, out)
    assert found[NAMES[0]].config() == CONFIG


def test_a_config_that_no_run_has_any_longer_goes(folders):
    runs, out = folders
    pack(runs, out)
    for name in NAMES:
        write_text(runs / name / "config.yaml", "a: 1")
    pack(runs, out)
    assert list(read_json(out / "configs.json").values()) == [{"a": 1}]


def test_packed_records_can_be_packed_into_others(tmp_path):
    packed(tmp_path / "one")
    pack(tmp_path / "one", tmp_path / "two")
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_values_that_are_not_finite_are_not_packed(folders):
    runs, out = folders
    write_text(runs / NAMES[0] / "metrics.jsonl", '{"step": 1, "loss": NaN}\n')
    pack(runs, out)
    assert "NaN" not in (out / f"{DIGITS}.jsonl").read_text()
    assert [run.metrics() for run in read_runs(out)] == [[{"step": 1}], METRICS, METRICS]


@pytest.mark.parametrize("part", ["summary.json", "environment.json", "config.yaml", "metrics.jsonl"])
def test_damaged_runs_are_named_and_skipped(folders, part, cli):
    runs, out = folders
    (runs / NAMES[1] / part).write_bytes(b"\xff\n\xff\n")
    code, text, err = cli("pack", runs, out)
    assert (code, text) == (0, f"{out}: packed 2 runs and 1 surrogates\n")
    assert f"skipped: {runs / NAMES[1] / part} cannot be read" in err
    assert [run.name for run in read_runs(out)] == [NAMES[0], NAMES[2]]


@pytest.mark.parametrize("part", ["surrogate.json", "history.jsonl", "picture.json", "diagnostics.json"])
def test_damaged_surrogates_are_named_and_skipped(folders, part):
    runs, out = folders
    path = runs / DIGITS / "surrogates" / "one" / part
    path.write_bytes(b"\xff\n\xff\n")
    done = pack(runs, out)
    assert (done.runs, done.surrogates) == (3, 0)
    assert len(done.damaged) == 1
    assert str(path) in done.damaged[0]
    assert read_records(out).surrogates == []


def test_nothing_to_pack(tmp_path):
    with pytest.raises(UsageError, match="no folder of records"):
        pack(tmp_path / "runs", tmp_path / "packed")
    (tmp_path / "runs").mkdir()
    with pytest.raises(UsageError, match="has finished or failed"):
        pack(tmp_path / "runs", tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


def test_a_damaged_pack_is_not_overwritten(folders):
    runs, out = folders
    pack(runs, out)
    path = out / f"{DIGITS}.jsonl"
    path.write_text(path.read_text() + "{")
    before = files(out)
    with pytest.raises(RelossError, match=r"digits_cnn\.jsonl, line 4 cannot be read as JSON"):
        pack(runs, out)
    assert files(out) == before


@pytest.mark.parametrize("write", range(6))
def test_an_interruption_leaves_a_folder_that_reads(folders, monkeypatch, write):
    """Six files are written: the shared parts, two kinds of lines, and the shared parts once more."""
    runs, out = folders
    pack(runs, out)
    before = contents(out)
    for name in NAMES:
        write_text(runs / name / "config.yaml", "a: 1")
        write_json(runs / name / "environment.json", {"commit": "def"})
    writes = []

    def interrupted(path, text):
        writes.append(path)
        if len(writes) > write:
            raise KeyboardInterrupt
        write_text(path, text)

    monkeypatch.setattr(packing, "write_text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pack(runs, out)
    assert contents(out) in (before, contents(runs))
    monkeypatch.undo()
    pack(runs, out)
    assert contents(out) == contents(runs)
    assert len(read_json(out / "configs.json")) == 1
