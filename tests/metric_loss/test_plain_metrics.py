"""A metric that somebody else wrote is called as it expects, whatever it expects."""

import inspect

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics
from torch import Tensor
from torchmetrics.classification import BinaryF1Score

from reloss import UsageError
from reloss.metric_loss.kinds import KINDS
from reloss.metric_loss.plain_metrics import resolve_metric

N, B, C = 6, 40, 3
generator = torch.Generator().manual_seed(0)
SCORES = torch.randn(N, B, generator=generator), torch.randint(2, (N, B), generator=generator)
LOGITS = torch.randn(N, B, C, generator=generator), torch.randint(C, (N, B), generator=generator)
REALS = torch.randn(N, B, generator=generator), torch.randn(N, B, generator=generator)


def resolve(metric, kind="binary", items=SCORES, predictions=None, higher_is_better=None):
    return resolve_metric(metric, KINDS[kind], items, predictions, higher_is_better)


def values(metric, kind="binary", items=SCORES, **options) -> list[float]:
    return resolve(metric, kind, items, **options).metric(*items).tolist()


def loop(function, items) -> list[float]:
    return [function(outputs.numpy(), targets.numpy()) for outputs, targets in zip(*items, strict=True)]


def sigmoid(scores):
    return 1 / (1 + np.exp(-scores.astype(np.float64)))


def by_hand(function):
    """Return the same metric as a function that only its arguments' names tell anything about."""
    if "y_score" in inspect.signature(function).parameters:
        return lambda y_true, y_score: function(y_true, y_score)
    return lambda y_true, y_pred: function(y_true, y_pred)


LABELS = ["f1_score", "matthews_corrcoef", "accuracy_score", "cohen_kappa_score", "jaccard_score", "hamming_loss"]


@pytest.mark.parametrize("name", LABELS)
def test_functions_of_labels_from_scikit_learn(name):
    function = getattr(sklearn_metrics, name)
    expected = pytest.approx(loop(lambda o, t: function(t, o > 0), SCORES), abs=1e-6)
    assert values(function) == expected
    assert values(by_hand(function)) == expected
    assert (resolve(function).plain is None) == (name != "hamming_loss")


@pytest.mark.parametrize("name", ["roc_auc_score", "average_precision_score"])
def test_functions_of_scores_from_scikit_learn(name):
    function = getattr(sklearn_metrics, name)
    expected = pytest.approx(loop(lambda o, t: function(t, o), SCORES), abs=1e-6)
    assert values(function) == expected
    assert values(by_hand(function)) == expected


def test_functions_of_probabilities_from_scikit_learn():
    expected = loop(lambda o, t: sklearn_metrics.brier_score_loss(t, sigmoid(o)), SCORES)
    assert values(sklearn_metrics.brier_score_loss) == pytest.approx(expected, abs=1e-6)
    assert not resolve(sklearn_metrics.brier_score_loss).higher_is_better


def test_class_logits_become_labels_or_probabilities():
    balanced = sklearn_metrics.balanced_accuracy_score
    expected = loop(lambda o, t: balanced(t, o.argmax(1)), LOGITS)
    assert values(balanced, "classes", LOGITS) == pytest.approx(expected, abs=1e-6)

    def auroc(y_true, y_score):
        return sklearn_metrics.roc_auc_score(y_true, y_score, multi_class="ovr")

    expected = loop(lambda o, t: auroc(t, torch.tensor(o).double().softmax(1).numpy()), LOGITS)
    assert values(auroc, "classes", LOGITS) == pytest.approx(expected, abs=1e-6)


def test_real_numbers_are_their_own_labels():
    function = sklearn_metrics.mean_absolute_error
    assert values(function, "regression", REALS) == pytest.approx(loop(lambda o, t: function(t, o), REALS), abs=1e-5)
    assert not resolve(function, "regression", REALS).higher_is_better


def test_names_without_a_meaning_are_tried():
    def share(a, b):  # of labels: with logits it would be 0 for all items
        return (a == b).float().mean()

    expected = loop(lambda o, t: np.mean((o > 0) == t), SCORES)
    assert values(share) == pytest.approx(expected, abs=1e-6)
    assert resolve(share).plain.takes == "labels"

    def arrays_only(a, b):
        return float(np.add.reduce(a * b) if isinstance(a, np.ndarray) else a.no_such_method())

    assert resolve(arrays_only).plain.as_arrays


def test_predictions_can_be_chosen():
    def metric(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs * targets).mean()

    assert values(metric, predictions="labels") == pytest.approx(loop(lambda o, t: np.mean((o > 0) * t), SCORES))
    assert values(metric) == pytest.approx(loop(lambda o, t: np.mean(o * t), SCORES), abs=1e-6)
    with pytest.raises(UsageError, match="unknown form of predictions 'label'; did you mean labels"):
        resolve(metric, predictions="label")


def test_names_depend_on_the_kind():
    assert resolve("f1").name == "binary_f1"
    assert resolve("f1", "classes", LOGITS).name == "macro_f1"
    assert resolve("accuracy").name == "binary_accuracy"
    assert resolve("mcc").vectorised == "mcc"
    with pytest.raises(UsageError, match="unknown metric 'f11'"):
        resolve("f11")


def test_a_choice_of_predictions_calls_the_function_itself():
    auroc = sklearn_metrics.roc_auc_score
    assert values(auroc, predictions="labels") == pytest.approx(loop(lambda o, t: auroc(t, o > 0), SCORES), abs=1e-6)


def test_the_direction_can_be_stated():
    assert not resolve(sklearn_metrics.f1_score, higher_is_better=False).higher_is_better
    assert resolve(sklearn_metrics.zero_one_loss, higher_is_better=True).higher_is_better


@pytest.mark.parametrize("metric", [3, None, dict, lambda a: 0.0, lambda a, b: "no number", lambda a, b: float("nan")])
def test_what_is_no_metric_is_refused(metric):
    with pytest.raises(UsageError, match="metric"):
        resolve(metric)


def test_torchmetrics_objects_take_outputs():
    metric = BinaryF1Score()
    expected = loop(lambda o, t: float(metric(torch.tensor(o), torch.tensor(t))), SCORES)
    assert values(metric) == pytest.approx(expected, abs=1e-6)
    assert resolve(metric).higher_is_better
