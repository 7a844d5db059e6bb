"""Metrics, banks and arguments that a fit refuses."""

from pathlib import Path

import pytest
import torch
from fits import fit
from torchmetrics.classification import MulticlassAccuracy

from reloss import ClassificationReLoss
from reloss.learning import LearnOptions, PredictionBank, fit_surrogate
from reloss.metrics import PerItem, accuracy, average_precision, bleu
from reloss.runtime.errors import RelossError, UsageError


def not_finite(outputs, targets):
    return torch.full((len(outputs),), float("nan"))


def per_example(outputs, targets):
    return torch.zeros(outputs.shape[:2])


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (not_finite, "metric not_finite returned nan for item 0"),
        (per_example, r"metric per_example returned \[120, 32\] for 120"),
        (lambda o, t: 0.5, "metric <lambda> returned a float for 120 items"),
        (PerItem(lambda o, t: float("nan"), name="undefined"), "metric undefined returned nan for item 0"),
    ],
)
def test_the_error_names_a_metric_without_one_finite_value_per_item(improving_bank, metric, message):
    with pytest.raises(RelossError, match=message):
        fit(improving_bank(), metric)


@pytest.mark.parametrize("metric", [average_precision, bleu])
def test_the_error_names_a_metric_for_other_predictions(improving_bank, metric):
    with pytest.raises(RelossError, match=f"metric {metric.__name__} cannot measure the bank's predictions"):
        fit(improving_bank(), metric)


def test_a_direction_that_contradicts_a_torchmetrics_object_is_refused(improving_bank):
    with pytest.raises(UsageError, match="metric MulticlassAccuracy declares that higher is better"):
        fit(improving_bank(), MulticlassAccuracy(5), higher_is_better=False)


def constant(outputs, targets):
    return torch.full((len(outputs),), 0.25)


@pytest.mark.parametrize("mixture", ["half", "recorded", "relabelled"])
def test_a_constant_metric_is_refused(improving_bank, mixture):
    with pytest.raises(RelossError, match=r"metric constant is 0\.25 for every item, so there is nothing to rank"):
        fit(improving_bank(), constant, mixture=mixture)


def bank_of(path: Path, outputs: torch.Tensor, targets: torch.Tensor) -> PredictionBank:
    bank = PredictionBank.create(path / "other", item_size=8)
    bank.append(outputs, targets, 0)
    bank.finish()
    return bank


@pytest.mark.parametrize(
    ("outputs", "targets", "shapes"),
    [
        ((160,), (160,), r"outputs \[N, 8\] and targets \[N, 8\]"),
        ((160, 3, 4, 4), (160, 3, 4, 4), r"outputs \[N, 8, 3, 4, 4\] and targets \[N, 8, 3, 4, 4\]"),
        ((160, 5), (160, 5), r"outputs \[N, 8, 5\] and targets \[N, 8, 5\]"),
    ],
)
def test_the_error_names_a_bank_of_other_predictions(tmp_path, outputs, targets, shapes):
    bank = bank_of(tmp_path, torch.randn(outputs), torch.randint(2, targets))
    with pytest.raises(RelossError, match=f"ClassificationReLoss cannot learn from the bank {bank.path}.*{shapes}"):
        fit(bank)


def test_targets_beyond_the_classes_are_refused(tmp_path):
    bank = bank_of(tmp_path, torch.randn(160, 5), torch.full((160,), 7))
    with pytest.raises(RelossError, match=r"ClassificationReLoss cannot learn .*outputs \[N, 8, 5\]"):
        fit(bank)


def test_a_target_to_be_ignored_is_refused_in_any_item(tmp_path):
    targets = torch.randint(5, (160,))
    targets[-1] = -100
    with pytest.raises(RelossError, match=r"targets must be whole numbers from 0 to 4, not -100; drop .*keep"):
        fit(bank_of(tmp_path, torch.randn(160, 5), targets))


def test_a_bank_of_one_class_is_refused(tmp_path):
    bank = bank_of(tmp_path, torch.randn(160, 5), torch.full((160,), 3))
    with pytest.raises(
        RelossError, match=f"all targets in the bank {bank.path} are 3, so no item is better than another"
    ):
        fit(bank)


@pytest.mark.parametrize("items", [0, 1, 5])
def test_too_few_items(improving_bank, items):
    with pytest.raises(RelossError, match=f"holds {items} items, too few to learn from and to hold out 20%"):
        fit(improving_bank(steps=items))


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ({"settings": {"step": 5}}, "unknown option of the fit 'step'.*steps"),
        (
            {"settings": {"method": "laplace", "steepness": 8}},
            "steepness is an option of correlation=spearman with method=bitonic or odd_even, "
            "not of .*method=laplace, not 8",
        ),
        (
            {"settings": {"correlation": "kendall", "steepness": 8}},
            "steepness: .*not of correlation=kendall with method=bitonic",
        ),
        ({"settings": {"steps": 0}}, "options of the fit: steps: .*greater than or equal to 1, not 0"),
        ({"bank": "bank"}, "the bank must be a PredictionBank, not 'bank'; PredictionBank.open reads"),
        ({"surrogate": ClassificationReLoss}, "the surrogate must be an instance of a surrogate class, not <class"),
    ],
)
def test_the_error_names_the_mistake(improving_bank, mistake, message):
    surrogate, bank = mistake.get("surrogate", ClassificationReLoss()), mistake.get("bank", improving_bank())
    with pytest.raises(UsageError, match=message):
        fit_surrogate(surrogate, bank, accuracy, **mistake.get("settings", {}))


def test_options_and_settings_exclude_each_other(improving_bank):
    with pytest.raises(UsageError, match="either options or single settings"):
        fit_surrogate(ClassificationReLoss(), improving_bank(), accuracy, options=LearnOptions(), steps=3)


def test_a_diverging_fit_is_reported(improving_bank):
    with pytest.raises(RelossError, match="smaller learning_rate"):
        fit_surrogate(ClassificationReLoss(width=16), improving_bank(), accuracy, steps=3, items=8, learning_rate=1e30)
