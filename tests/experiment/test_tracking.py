import json
import sys

import pytest

from reloss.experiment.tracking import WandbMirror, read_metrics


def recorded_rows(folder):
    """The exit code and the rows, as logged, of each offline W&B run in `folder`."""
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        store = DataStore()
        store.open_for_scan(str(path))
        rows, exits = [], []
        while data := store.scan_data():
            record = Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                row = {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
                }
                rows.append({key: value for key, value in row.items() if not key.startswith("_")})
            elif record.WhichOneof("record_type") == "exit":
                exits.append(record.exit.exit_code)
        yield exits, rows


def test_an_offline_run_mirrors_the_metrics(run_digits):
    record = run_digits(track="wandb", settings=("train.epochs=2",))
    metrics = read_metrics(record / "metrics.jsonl")
    assert len(metrics) == 2
    assert list(recorded_rows(record)) == [([0], metrics)]


class Broken:
    """Stands for a W&B run whose helper process died."""

    def __init__(self):
        self.calls = 0

    def log(self, values):
        self.calls += 1
        raise ConnectionResetError("the helper is gone")


def test_a_failing_log_is_said_once_and_stops_nothing(run_digits, monkeypatch, capsys):
    broken = Broken()
    monkeypatch.setattr(WandbMirror, "_start", lambda self, folder, settings: setattr(self, "_run", broken))
    record = run_digits(track="wandb", settings=("train.epochs=3",))
    assert broken.calls == 1
    assert capsys.readouterr().err.count("W&B failed (ConnectionResetError: the helper is gone)") == 1
    assert len(read_metrics(record / "metrics.jsonl")) == 3
    assert json.loads((record / "summary.json").read_text())["status"] == "finished"


def test_a_missing_wandb_is_said_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    mirror = WandbMirror("wandb", tmp_path, name="x")
    mirror.log({"step": 1})
    mirror.finish({"accuracy": 1.0}, failed=False)
    assert capsys.readouterr().err.count("W&B failed (ModuleNotFoundError") == 1


@pytest.mark.parametrize("track", ["off", "wandb"])
def test_off_does_not_import_wandb(tmp_path, monkeypatch, capsys, track):
    monkeypatch.setitem(sys.modules, "wandb", None)
    WandbMirror(track, tmp_path, name="x").log({"step": 1})
    assert ("W&B failed" in capsys.readouterr().err) == (track == "wandb")
