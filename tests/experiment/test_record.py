import errno
import json
import os

import pytest
import torch
import yaml
from safetensors.torch import load_file

from reloss.experiment.config import to_yaml
from reloss.experiment.metrics_log import MetricsFile, read_metrics
from reloss.experiment.record import Record, read_summary, read_weights, weights_file
from reloss.experiment.record_parts import LiveFolder
from reloss.experiment.records import read_run
from reloss.experiment.settings import override
from reloss.experiment.task import find_experiment
from reloss.runtime.checkpoint import load_checkpoint, previous, save_checkpoint
from reloss.runtime.errors import RelossError, UsageError

DIGITS = find_experiment("classification/digits_cnn")[1]
FACTS = {"experiment": DIGITS.name, "loss": "ce", "settings": [], "seed": 0, "protocol": "p", "data": "abc"}


def open_record(path, config=DIGITS):
    return Record(path, config, facts=FACTS)


def summary(path):
    return json.loads((path / "summary.json").read_text())


def test_the_files_of_a_record(tmp_path):
    record = open_record(tmp_path)
    record.log(5, epoch=1, accuracy=0.25)
    record.save_checkpoint({"epoch": 1})
    record.save_weights({"weight": torch.arange(6.0).view(2, 3).T})
    record.close("finished", {"accuracy": 0.25})
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "summary.json",
        "checkpoint",
    }
    assert {path.name for path in (tmp_path / "checkpoint").iterdir()} == {"last.pt", "weights.safetensors"}
    assert (tmp_path / "config.yaml").read_text() == to_yaml(DIGITS)
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment.keys() == {"commit", "image", "command", "versions", "devices", "data"}
    assert environment["data"] == "abc"
    assert environment["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 5, "epoch": 1, "accuracy": 0.25}]
    assert torch.equal(load_file(record.weights)["weight"], torch.arange(6.0).view(2, 3).T)


def test_status_follows_the_run(tmp_path):
    record = open_record(tmp_path)
    assert summary(tmp_path)["status"] == "running"
    record.close("failed", cause="no disk")
    assert summary(tmp_path)["status"] == "failed"
    assert summary(tmp_path)["cause"] == "no disk"
    record = open_record(tmp_path)
    assert summary(tmp_path)["status"] == "running"
    assert "cause" not in summary(tmp_path)
    record.close("finished", {"accuracy": 0.5})
    assert FACTS.items() <= summary(tmp_path).items()
    assert summary(tmp_path)["scores"] == {"accuracy": 0.5}


def test_wall_time_adds_up_over_resumes(tmp_path):
    open_record(tmp_path).close("interrupted")
    before = summary(tmp_path)
    (tmp_path / "summary.json").write_text(json.dumps({**before, "wall_seconds": 100.0}))
    open_record(tmp_path).close("finished")
    assert 100 <= summary(tmp_path)["wall_seconds"] < 160


def test_a_config_of_an_earlier_version_with_the_same_values_is_resumed(tmp_path):
    open_record(tmp_path).close("interrupted")
    path = tmp_path / "config.yaml"
    config = yaml.safe_load(path.read_text())
    surrogate, _, _ = config.pop("surrogate"), config.pop("scope"), config.pop("scope_note")
    config |= {"paper": "none: other words", "learn": {**config["learn"], **surrogate}}
    path.write_text(yaml.safe_dump(config))
    open_record(tmp_path).close("finished")
    assert summary(tmp_path)["status"] == "finished"
    path.write_text(yaml.safe_dump({**config, "learn": {**config["learn"], "output": "identity"}}))
    with pytest.raises(UsageError, match="belongs to a run with another config"):
        open_record(tmp_path)


def test_another_config_is_refused_and_changes_nothing(tmp_path):
    open_record(tmp_path).close("finished", {"accuracy": 0.5})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(UsageError, match=r"belongs to a run with another config.*choose another --runs"):
        open_record(tmp_path, override(DIGITS, ["train.epochs=3"]))
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}


def test_metrics_after_the_checkpoint_are_cut_on_resume(tmp_path):
    record = open_record(tmp_path)
    for step in (1, 2):
        record.log(step, loss=1 / step)
    record.save_checkpoint({"epoch": 2, "weight": torch.ones(2)})
    record.log(3, loss=1 / 3)
    again = open_record(tmp_path)
    state = again.load_checkpoint()
    assert state.keys() == {"epoch", "weight"}
    assert torch.equal(state["weight"], torch.ones(2))
    assert [entry["step"] for entry in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]
    again.log(3, loss=0.25)
    assert [entry["loss"] for entry in read_metrics(tmp_path / "metrics.jsonl")] == [1, 0.5, 0.25]


def test_without_a_checkpoint_the_metrics_start_from_scratch(tmp_path):
    open_record(tmp_path).log(1, loss=2.0)
    record = open_record(tmp_path)
    assert record.load_checkpoint() is None
    assert read_metrics(tmp_path / "metrics.jsonl") == []
    assert record.metrics.lines == 0


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint", "half"])
def test_a_damaged_checkpoint_is_named(tmp_path, damage):
    record = open_record(tmp_path)
    record.log(1, loss=2.0)
    record.save_checkpoint({"weight": torch.randn(1000)})
    path = tmp_path / "checkpoint" / "last.pt"
    path.write_bytes(path.read_bytes()[:2000] if damage == "half" else damage)
    with pytest.raises(RelossError, match=r"last\.pt is damaged; remove last\.pt to train this run from scratch"):
        open_record(tmp_path).load_checkpoint()
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_the_checkpoint_before_a_damaged_one_is_used(tmp_path, capsys, damage):
    record = open_record(tmp_path)
    for step in (1, 2):
        record.log(step, loss=2.0)
        record.save_checkpoint({"step": step, "weight": torch.full((1000,), float(step))})
    path = tmp_path / "checkpoint" / "last.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "gone":
        path.unlink()  # killed between the two renames
    else:
        path.write_bytes(content if damage == "flipped" else content[:2000])
    again = open_record(tmp_path)
    state = again.load_checkpoint()
    assert state["step"] == 1
    assert torch.equal(state["weight"], torch.ones(1000))
    assert [entry["step"] for entry in read_metrics(tmp_path / "metrics.jsonl")] == [1]
    assert ("last.pt is damaged" in capsys.readouterr().err) == (damage != "gone")
    again.close("finished")
    assert not (tmp_path / "checkpoint" / "last.previous.pt").exists()


def test_the_only_intact_checkpoint_survives_a_failed_save(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    for step in (1, 2):
        save_checkpoint(path, {"step": step})
    path.write_bytes(b"damaged")
    with monkeypatch.context() as patched:

        def fail(descriptor):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        patched.setattr("os.fsync", fail)
        with pytest.raises(RelossError, match=r"cannot write .*last\.pt: Input/output error; nothing .* was lost"):
            save_checkpoint(path, {"step": 3})
    assert load_checkpoint(path, "to start from scratch") == {"step": 1}
    save_checkpoint(path, {"step": 3})
    assert load_checkpoint(path, "to start from scratch") == {"step": 3}
    assert load_checkpoint(previous(path), "to start from scratch") == {"step": 1}  # not the damaged one
    save_checkpoint(path, {"step": 4})
    assert load_checkpoint(previous(path), "to start from scratch") == {"step": 3}


def test_a_checkpoint_that_cannot_be_read_is_not_called_damaged(tmp_path, capsys):
    path = tmp_path / "last.pt"
    path.mkdir()
    message = rf"checkpoint {path} cannot be read \(Is a directory\); make it readable, or remove last\.pt to start"
    with pytest.raises(RelossError, match=message):
        load_checkpoint(path, "to start from scratch")
    save_checkpoint(previous(path), {"step": 1})
    capsys.readouterr()
    assert load_checkpoint(path, "to start from scratch") == {"step": 1}
    assert f"checkpoint {path} cannot be read (Is a directory)" in capsys.readouterr().err
    previous(path).write_bytes(b"damaged")
    with pytest.raises(
        RelossError, match=r"last\.pt cannot be read .* remove last\.pt and last\.previous\.pt to start"
    ):
        load_checkpoint(path, "to start from scratch")


def cut_metrics(folder, lines):
    """Keep the first lines and the beginning of the next, like a disk that lost its last writes."""
    path = folder / "metrics.jsonl"
    text = path.read_text().splitlines(keepends=True)
    path.write_text("".join(text[:lines]) + "".join(text[lines:])[:5])


@pytest.mark.parametrize("lines", [0, 1, 2])
def test_a_checkpoint_that_counts_missing_metrics_is_not_resumed_from(tmp_path, lines):
    record = open_record(tmp_path)
    for step in (1, 2, 3):
        record.log(step, loss=2.0)
        record.save_checkpoint({"step": step})
    cut_metrics(tmp_path, lines)
    again = open_record(tmp_path)
    if lines == 2:  # as the previous checkpoint counts
        assert again.load_checkpoint() == {"step": 2}
        again.log(3, loss=1.0)
        assert read_metrics(tmp_path / "metrics.jsonl")[1:] == [{"step": 2, "loss": 2.0}, {"step": 3, "loss": 1.0}]
        return
    before = (tmp_path / "metrics.jsonl").read_bytes()
    message = rf"has {lines} whole lines, but the checkpoint counts 2: restore it .*, or remove {tmp_path} to train"
    with pytest.raises(RelossError, match=message):
        again.load_checkpoint()
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_an_epoch_without_metrics_before_a_checkpoint_is_named(tmp_path):
    record = open_record(tmp_path)
    for epoch in (1, 1, 2, 3):  # training and validation of the first epoch
        record.log(10 * epoch, epoch=epoch)
    assert open_record(tmp_path).epochs() == 3
    open_record(tmp_path).rewind_to_epoch(2)
    assert [entry["epoch"] for entry in read_metrics(tmp_path / "metrics.jsonl")] == [1, 1, 2]
    cut_metrics(tmp_path, 2)
    assert open_record(tmp_path).epochs() == 1
    with pytest.raises(RelossError, match="has no line of epoch 2, but the checkpoint is from epoch 3: restore it"):
        open_record(tmp_path).rewind_to_epoch(3)


def test_metrics_are_on_disk_before_the_checkpoint_that_counts_them(tmp_path, monkeypatch):
    record = open_record(tmp_path)
    flushed = []
    monkeypatch.setattr("os.fsync", lambda descriptor: flushed.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    record.log(1, loss=2.0)
    record.save_checkpoint({"step": 1})
    assert [path.rpartition("/")[2].partition(".")[0] for path in flushed[:1]] == ["metrics"]
    assert any("last.pt" in path for path in flushed[1:])


def test_an_incomplete_last_line_is_skipped_and_overwritten(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]
    metrics = MetricsFile(path)
    assert metrics.lines == 2
    metrics.cut(3)
    metrics.append({"step": 3})
    assert read_metrics(path) == [{"step": 1}, {"step": 2}, {"step": 3}]
    assert metrics.lines == 3


@pytest.mark.parametrize("line", ['{"st', "null", '{"step": "2"}'])
def test_a_damaged_line_in_the_middle_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(RelossError, match=r"metrics\.jsonl, line 2 is damaged"):
        read_metrics(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"null", r"is damaged \(wrong: status, experiment, loss"),
        (b"{}", r"is damaged \(wrong: status, experiment, loss"),
        (b"\xff\xfe", "cannot be read as text"),
        (b"{", "cannot be read as JSON"),
    ],
)
def test_a_damaged_summary_is_named(tmp_path, text, message):
    assert read_summary(tmp_path) == {}
    (tmp_path / "summary.json").write_bytes(text)
    with pytest.raises(RelossError, match=rf"{tmp_path}/summary\.json {message}"):
        read_summary(tmp_path)


def test_an_unreadable_summary_is_named(tmp_path):
    (tmp_path / "summary.json").mkdir()
    with pytest.raises(RelossError, match=r"summary\.json cannot be read \(Is a directory\); make it readable"):
        read_summary(tmp_path)


def test_a_config_that_is_cut_short_is_reported_as_such(tmp_path):
    open_record(tmp_path, DIGITS)
    path = tmp_path / "config.yaml"
    path.write_text(path.read_text()[:100])
    with pytest.raises(RelossError, match=r"config\.yaml is cut short; remove it") as error:
        open_record(tmp_path, DIGITS)
    assert error.value.exit_code == 1


def test_tied_weights_are_saved_under_each_name(tmp_path):
    """As in BART, whose encoder, decoder and output share the embedding."""
    shared = torch.nn.Embedding(3, 2)
    model = torch.nn.ModuleDict({"encoder": shared, "decoder": shared, "part": torch.nn.Linear(2, 3, bias=False)})
    model["part"].weight = shared.weight
    record = open_record(tmp_path)
    record.save_weights(model.state_dict())
    weights = read_weights(weights_file(tmp_path))
    assert len(weights) == 3
    assert all(torch.equal(value, shared.weight) for value in weights.values())
    model.load_state_dict(weights)


@pytest.mark.parametrize("scores", [{"accuracy": 0.75}, {"accuracy": 0.25, "error": 0.75}, {}])
def test_scores_that_were_changed_are_refused(tmp_path, scores):
    open_record(tmp_path).close("finished", {"accuracy": 0.25, "undefined": float("nan")})
    assert read_summary(tmp_path)["scores"] == {"accuracy": 0.25}
    (tmp_path / "summary.json").write_text(json.dumps({**summary(tmp_path), "scores": scores}))
    for read in (read_summary, lambda path: read_run(LiveFolder("run", path))):
        with pytest.raises(RelossError, match=r"summary\.json is damaged \(its scores differ from the recorded ones\)"):
            read(tmp_path)
