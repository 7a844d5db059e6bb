import csv
import io
import json

import pytest
from records import record
from small import DIGITS

from reloss.experiment.records import read_runs
from reloss.experiment.task import find_experiment
from reloss.report.groups import group_key, group_runs, learning_rate

CONFIG = find_experiment(DIGITS)[1]


@pytest.mark.parametrize(
    ("settings", "same"),
    [
        (["train.lr=0.10", "train.epochs=3"], ["train.epochs=3", "train.lr=1e-1"]),
        (["train.ordinary_weight=1"], ["train.ordinary_weight=1.0"]),
        (["learn.output=absolute"], ["surrogate.output=absolute"]),
        (["train.gone=1"], ["train.gone=1"]),
    ],
)
def test_settings_with_the_same_values_have_the_same_key(settings, same):
    assert group_key(CONFIG, "reloss", settings) == group_key(CONFIG, "reloss", same)


def test_other_settings_and_losses_have_other_keys():
    keys = [group_key(CONFIG, loss, settings) for loss in ("ce", "reloss") for settings in ([], ["train.lr=0.1"])]
    assert len(set(keys)) == 4


def test_the_learning_rate_is_that_of_the_config():
    assert learning_rate(CONFIG, ["train.lr='0.05'", "train.epochs=3"]) == 0.05
    assert learning_rate(CONFIG, ["train.gone=1"]) == CONFIG.train.lr


@pytest.mark.parametrize("words", [["table", "classification"], ["table", "classification", "--tuned", "accuracy"]])
def test_a_quoted_learning_rate_is_a_number_in_every_table(cli, tmp_path, words):
    for seed, rate in enumerate(("'0.05'", "0.050")):
        folder = record(tmp_path, DIGITS, "ce", seed, 0.9, settings=(f"train.lr={rate}",))
        summary = json.loads((folder / "summary.json").read_text())
        scores = {"accuracy": 0.9, "validation_accuracy": 0.9}
        (folder / "summary.json").write_text(json.dumps({**summary, "scores": scores}))
    code, out, err = cli(*words, "--runs", tmp_path, "--format", "csv")
    assert (code, err) == (0, "")
    rows = [row for row in csv.DictReader(io.StringIO(out)) if (row["experiment"], row["loss"]) == (DIGITS, "ce")]
    assert [row["n"] for row in rows] == ["2"]


def test_runs_are_grouped_whatever_the_notation_of_their_settings(tmp_path):
    for seed, weight in enumerate(("1", "1.0", "0.5")):
        record(tmp_path, DIGITS, "reloss", seed, 0.9, settings=(f"train.ordinary_weight={weight}",))
    groups = group_runs(CONFIG, read_runs(tmp_path))
    assert [[run.seed for run in group] for group in groups.values()] == [[2], [0, 1]]
