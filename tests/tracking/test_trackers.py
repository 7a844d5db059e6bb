"""Metrics in a CSV file and for TensorBoard, alone and next to each other."""

import csv

import pytest

from reloss.experiment.metrics_log import read_metrics
from reloss.experiment.task import find_experiment
from reloss.experiment.tracker import Tracker
from reloss.runtime.errors import Unavailable, UsageError
from reloss.runtime.files import read_json
from reloss.tracking import trackers
from reloss.tracking.client import WandbTracker
from reloss.tracking.files import CsvTracker, TensorBoardTracker
from reloss.tracking.trackers import Trackers, check_track, make_tracker

CONFIG = find_experiment("classification/digits_cnn")[1]
FACTS = {"loss": "ce", "seed": 0}


def rows(path):
    """The rows of a CSV file as numbers, without empty fields."""
    with path.open(newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def scalars(folder):
    """The curves that TensorBoard reads: (step, value) by name."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_a_run_leaves_its_metrics_as_csv(run_digits):
    record = run_digits(track="csv", settings=("train.epochs=2",))
    logged = read_metrics(record / "metrics.jsonl")
    assert len(logged) == 2
    assert rows(record / "metrics.csv") == logged
    assert (record / "metrics.csv").read_text().startswith("step,epoch,")
    assert read_json(record / "summary.json")["tracking"]["seconds"] < 1
    assert not (record / "wandb").exists()
    run_digits(track="csv", settings=("train.epochs=2",), stage="evaluate")
    assert rows(record / "metrics.csv") == logged


def test_a_new_metric_becomes_the_last_column(tmp_path):
    tracker = CsvTracker()
    tracker.start(tmp_path, CONFIG, "train", "unknown", FACTS)
    tracker.log({"step": 1, "loss": 0.5})
    tracker.log({"step": 2, "loss": 0.25})
    tracker.log({"step": 2, "score": 3})
    tracker.log({"step": 3, "loss": 0.125})
    assert (tmp_path / "metrics.csv").read_text() == "step,loss,score\n1,0.5,\n2,0.25,\n2,,3\n3,0.125,\n"


def test_a_resumed_run_has_every_row_once(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 9.0}\n')
    (tmp_path / "metrics.csv").write_text("step,loss\n1,0.5\n2,9.0\n")
    tracker = CsvTracker()
    tracker.start(tmp_path, CONFIG, "train", "unknown", FACTS)
    tracker.replay(tmp_path / "metrics.jsonl", 1)
    tracker.log({"step": 2, "loss": 0.25})
    assert rows(tmp_path / "metrics.csv") == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]


def test_tensorboard_shows_curves_scores_and_figures(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from PIL import Image

    Image.new("RGB", (4, 3), "red").save(tmp_path / "figure.png")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 9.0}\n')
    for _ in range(2):  # the second one resumes the run
        tracker = TensorBoardTracker()
        tracker.start(tmp_path, CONFIG, "train", "unknown", FACTS)
        tracker.replay(tmp_path / "metrics.jsonl", 1)
        tracker.log({"step": 2, "loss": 0.25})
        tracker.figure("heatmaps", tmp_path / "figure.png", 2)
        tracker.finish({"status": "finished", "accuracy": 0.75}, failed=False)
    assert scalars(tmp_path / "tensorboard") == {"loss": [(1, 0.5), (2, 0.25)], "final/accuracy": [(2, 0.75)]}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(image.width, image.height) for image in events.Images("heatmaps")] == [(4, 3)]
    assert events.Tags()["tensors"] == ["config/text_summary", "run/text_summary"]


def test_several_trackers_get_the_same_rows(run_digits):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    record = run_digits("reloss", track="tensorboard,csv")
    (logged,) = read_metrics(record / "metrics.jsonl")
    assert rows(record / "metrics.csv") == [logged]
    curves = scalars(record / "tensorboard")
    assert curves["train_loss"] == [(logged["step"], pytest.approx(logged["train_loss"]))]
    assert curves["final/accuracy"][0][1] == pytest.approx(read_json(record / "summary.json")["scores"]["accuracy"])
    (fit,) = record.parents[1].glob("surrogates/*/metrics.csv")
    assert rows(fit)[-1]["step"] == 10


class Full(Tracker):
    """A tracker whose disk is full."""

    def log(self, values):
        raise OSError(28, "No space left on device")


def test_a_tracker_that_fails_is_reported_once_and_stops_nothing(tmp_path, capsys):
    both = Trackers({"tensorboard": Full(), "csv": CsvTracker()})
    both.start(tmp_path, CONFIG, "train", "unknown", FACTS)
    for step in (1, 2):
        both.log({"step": step})
    both.finish({}, failed=False)
    assert rows(tmp_path / "metrics.csv") == [{"step": 1}, {"step": 2}]
    err = capsys.readouterr().err
    assert err.count("--track tensorboard failed (OSError: [Errno 28] No space left on device); the run continues") == 1


@pytest.mark.parametrize(
    ("track", "message"),
    [
        ("tensorbord", "unknown tracker 'tensorbord'; did you mean tensorboard?"),
        ("wandb,off", "--track wandb,off: off stands alone"),
        ("", "unknown tracker ''; valid: csv, off, tensorboard, wandb"),
    ],
)
def test_wrong_names_are_refused_before_anything_runs(cli, tmp_path, track, message):
    with pytest.raises(UsageError, match=message.replace("?", r"\?")):
        check_track(track)
    for command in ("run", "sweep"):
        code, _, err = cli(command, "classification/digits_cnn", "--runs", tmp_path / "runs", "--track", track)
        assert (code, message in err) == (2, True)
    assert not (tmp_path / "runs").exists()


def test_names_are_taken_apart():
    assert check_track("off") == []
    assert check_track("csv, wandb,csv") == ["csv", "wandb"]
    assert type(make_tracker("off")) is Tracker
    assert type(make_tracker("wandb")) is WandbTracker


def test_missing_packages_are_named(monkeypatch, capsys):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(Unavailable, match=r"needs the package tensorboard, .*: `pip install '\.\[tensorboard\]'`"):
        check_track("csv,tensorboard")
    assert type(make_tracker("wandb")) is Tracker
    assert "note: W&B is not installed, so metrics stay in the run's folder" in capsys.readouterr().err
    assert type(make_tracker("wandb,csv")) is Trackers
