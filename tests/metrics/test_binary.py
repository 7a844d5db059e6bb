"""Binary metrics equal scikit-learn and torchmetrics, and define every edge case."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    cohen_kappa_score,
    f1_score,
    fbeta_score,
    jaccard_score,
    matthews_corrcoef,
    roc_auc_score,
)
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, binary_average_precision, binary_f1_score

from reloss.metrics import (
    auroc,
    average_precision,
    binary_accuracy,
    binary_balanced_accuracy,
    binary_f1,
    binary_f2,
    binary_iou,
    binary_kappa,
    mcc,
)

FROM_0_TO_1 = [*(binary_f1, average_precision, auroc, binary_f2, binary_iou, binary_accuracy, binary_balanced_accuracy)]
CORRELATIONS = [binary_kappa, mcc]
METRICS = [*FROM_0_TO_1, *CORRELATIONS]


def scores(seed: int, n: int, b: int, levels: int | None = None) -> tuple[Tensor, Tensor]:
    """Return scores that correlate with the targets, rounded to `levels`. The share of positives varies."""
    generator = torch.Generator().manual_seed(seed)
    targets = (torch.rand(n, b, generator=generator) < torch.rand(n, 1, generator=generator)).long()
    outputs = torch.randn(n, b, generator=generator) + targets
    return (outputs if levels is None else (outputs * levels / 4).round()), targets


@pytest.mark.parametrize("b", [1, 2, 7, 64])
@pytest.mark.parametrize("levels", [None, 1, 2, 5])
def test_equal_scikit_learn(b, levels):
    outputs, targets = scores(b, 60, b, levels)
    one_class = (targets == targets[:, :1]).all(1)
    expected_auroc = [
        0.5 if single else roc_auc_score(t, o) for t, o, single in zip(targets, outputs, one_class, strict=True)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # no positive class
        expected_ap = [average_precision_score(t, o) for t, o in zip(targets, outputs, strict=True)]
    expected_f1 = [f1_score(t, o > 0, zero_division=0) for t, o in zip(targets, outputs, strict=True)]
    assert one_class.any()
    assert auroc(outputs, targets).tolist() == pytest.approx(expected_auroc, abs=1e-6)
    assert average_precision(outputs, targets).tolist() == pytest.approx(expected_ap, abs=1e-6)
    assert binary_f1(outputs, targets).tolist() == pytest.approx(expected_f1, abs=1e-6)


@pytest.mark.parametrize(
    ("metric", "reference"),
    [
        (binary_f2, lambda t, p: fbeta_score(t, p, beta=2, zero_division=0)),
        (binary_iou, lambda t, p: jaccard_score(t, p, zero_division=0)),
        (binary_accuracy, accuracy_score),
        (binary_balanced_accuracy, balanced_accuracy_score),
        (binary_kappa, lambda t, p: cohen_kappa_score(t, p, labels=[0, 1])),
        (mcc, matthews_corrcoef),
    ],
)
@pytest.mark.parametrize("b", [1, 2, 7, 64])
def test_metrics_of_one_threshold_equal_scikit_learn(metric, reference, b):
    outputs, targets = scores(b, 60, b)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one class only
        expected = [float(reference(t, o > 0.3)) for t, o in zip(targets.numpy(), outputs.numpy(), strict=True)]
    expected = [0 if value != value else value for value in expected]
    assert metric(outputs, targets, threshold=0.3).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("levels", [None, 3])
def test_equal_torchmetrics(levels):
    outputs, targets = scores(0, 20, 40, levels)
    two_classes = (targets != targets[:, :1]).any(1)  # torchmetrics gives 0 for items of one class
    assert two_classes.sum() > 10
    outputs, targets = outputs[two_classes], targets[two_classes]
    probabilities = outputs.sigmoid()
    pairs = list(zip(probabilities, targets, strict=True))
    assert auroc(outputs, targets).tolist() == pytest.approx([float(binary_auroc(*p)) for p in pairs], abs=1e-6)
    expected = [float(binary_average_precision(*p)) for p in pairs]
    assert average_precision(outputs, targets).tolist() == pytest.approx(expected, abs=1e-6)
    expected = [float(binary_f1_score(*p)) for p in pairs]
    assert binary_f1(probabilities, targets, threshold=0.5).tolist() == pytest.approx(expected, abs=1e-6)


def test_by_hand():
    outputs = torch.tensor([[3.0, 2, 2, -1]])
    targets = torch.tensor([[1, 0, 1, 1]])
    assert auroc(outputs, targets).item() == pytest.approx((1 + 0.5 + 0) / 3)
    assert average_precision(outputs, targets).item() == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    assert binary_f1(outputs, targets).item() == pytest.approx(2 * 2 / (3 + 3))
    assert binary_f1(outputs, targets, threshold=2).item() == pytest.approx(2 * 1 / (1 + 3))  # 2 is not above 2


@pytest.mark.parametrize(
    ("target", "expected"),
    [(0, (0.0, 0.0, 0.5, *[0.0] * 6)), (1, (1.0, 1.0, 0.5, *[1.0] * 4, 0.0, 0.0))],
    ids=["no positive", "no negative"],
)
@pytest.mark.parametrize("b", [1, 5])
def test_one_class_only(target, expected, b):
    outputs = torch.arange(1.0, b + 1)[None]
    targets = torch.full((1, b), target)
    assert tuple(metric(outputs, targets).item() for metric in METRICS) == expected
    assert binary_f1(-outputs, targets).item() == 0


def test_constant_scores_are_uninformative():
    targets = torch.tensor([[1, 0, 0, 0]])
    constant = torch.full((1, 4), 2.5)
    assert auroc(constant, targets).item() == 0.5
    assert average_precision(constant, targets).item() == 0.25  # the share of positives
    assert binary_f1(constant, targets).item() == pytest.approx(2 / 5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_any_dtype_of_scores_and_targets(dtype):
    outputs, targets = scores(3, 10, 20, 3)
    for metric in METRICS:
        values = metric(outputs.to(dtype), targets.bool())
        assert values.dtype == torch.float32
        assert torch.equal(values, metric(outputs, targets))


def test_scores_that_differ_only_in_float64():
    outputs = torch.tensor([[1.0, 1.0 + 1e-12]], dtype=torch.float64)
    assert auroc(outputs, torch.tensor([[0, 1]])).item() == 1
    assert average_precision(outputs, torch.tensor([[1, 0]])).item() == 0.5


def test_scores_in_any_memory_layout():
    outputs, targets = scores(3, 10, 20, 3)
    for metric in METRICS:
        assert torch.equal(metric(outputs.t().contiguous().t(), targets.t().contiguous().t()), metric(outputs, targets))


@pytest.mark.parametrize("metric", METRICS)
@given(st.integers(0, 10_000), st.integers(1, 20), st.sampled_from([None, 1, 4]))
@settings(max_examples=25, deadline=None)
def test_values_are_in_range_and_ignore_the_order_of_examples(metric, seed, b, levels):
    outputs, targets = scores(seed, 3, b, levels)
    order = torch.randperm(b, generator=torch.Generator().manual_seed(seed))
    values = metric(outputs, targets)
    assert values.shape == (3,)
    assert (-1 if metric in CORRELATIONS else 0) <= values.min() <= values.max() <= 1
    assert values.tolist() == pytest.approx(metric(outputs[:, order], targets[:, order]).tolist(), abs=1e-6)


@pytest.mark.parametrize("metric", [average_precision, auroc])
@given(st.integers(0, 10_000), st.integers(1, 20), st.sampled_from([1, 4, 16]))
@settings(max_examples=25, deadline=None)
def test_monotone_transforms_of_the_scores_change_nothing(metric, seed, b, levels):
    outputs, targets = scores(seed, 3, b, levels)
    assert torch.equal(metric(outputs**3 - 7, targets), metric(outputs, targets))
    assert torch.equal(metric((outputs.double() / 10).exp(), targets), metric(outputs, targets))


@given(st.integers(0, 10_000), st.integers(1, 20), st.sampled_from([None, 1, 4]))
@settings(max_examples=25, deadline=None)
def test_auroc_of_negated_scores_or_swapped_classes_is_one_minus_auroc(seed, b, levels):
    outputs, targets = scores(seed, 3, b, levels)
    assert (auroc(outputs, targets) + auroc(-outputs, targets)).tolist() == pytest.approx([1, 1, 1])
    assert (auroc(outputs, targets) + auroc(outputs, 1 - targets)).tolist() == pytest.approx([1, 1, 1])


@pytest.mark.parametrize("metric", METRICS)
class TestInvalidInput:
    @pytest.mark.parametrize(
        ("outputs", "targets"), [((4,), (4,)), ((2, 4), (2, 5)), ((2, 4, 1), (2, 4)), ((2, 0), (2, 0))]
    )
    def test_shapes_must_agree(self, metric, outputs, targets):
        with pytest.raises(ValueError, match=r"expected outputs \[N, B\] and targets \[N, B\].*not \["):
            metric(torch.zeros(outputs), torch.zeros(targets))

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_outputs_must_be_finite(self, metric, value):
        with pytest.raises(ValueError, match=r"values must be finite, but values\[0, 1\] is"):
            metric(torch.tensor([[0, value]]), torch.tensor([[0, 1]]))

    @pytest.mark.parametrize("value", [-1, 0.5, 2])
    def test_targets_must_be_zero_or_one(self, metric, value):
        with pytest.raises(ValueError, match=f"targets must be whole numbers from 0 to 1, not {value}"):
            metric(torch.zeros(1, 2), torch.tensor([[0, value]]))

    def test_no_items_give_no_values(self, metric):
        assert metric(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)
