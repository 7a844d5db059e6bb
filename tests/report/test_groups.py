import pytest
from records import record
from small import DIGITS

from reloss.experiment.records import read_runs
from reloss.experiment.task import find_experiment
from reloss.report.groups import group_key, group_runs

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


def test_runs_are_grouped_whatever_the_notation_of_their_settings(tmp_path):
    for seed, weight in enumerate(("1", "1.0", "0.5")):
        record(tmp_path, DIGITS, "reloss", seed, 0.9, settings=(f"train.ordinary_weight={weight}",))
    groups = group_runs(CONFIG, read_runs(tmp_path))
    assert [[run.seed for run in group] for group in groups.values()] == [[2], [0, 1]]
