"""Metrics of one score per example, for two classes.

F1, MCC and their relatives compare the predictions at one threshold with the targets: they are formulas of four counts.
Average precision and AUROC summarise all thresholds, so they depend only on the order of the scores.
"""

from typing import NamedTuple

from torch import Tensor

from reloss.metrics.labels import as_classes
from reloss.metrics.shapes import check_shapes
from reloss.metrics.ties import descending
from reloss.ranking.hard import check_values, hard_rank


def binary_f1(outputs: Tensor, targets: Tensor, *, threshold: float = 0.0) -> Tensor:
    """Return the F1 of the positive class; equal to scikit-learn's `f1_score(zero_division=0)`.

    Args:
        outputs: [N, B] finite scores. A score above the threshold, not equal to it, predicts the positive class.
        targets: [N, B] in {0, 1}.
        threshold: 0 for logits, 0.5 for probabilities.

    Returns:
        [N] in [0, 1]; 0 for an item without a positive target or prediction.

    Raises:
        ValueError: the shapes do not agree, an output is not finite, or a target is neither 0 nor 1.
    """
    return _f_beta(outputs, targets, 1, threshold)


def binary_f2(outputs: Tensor, targets: Tensor, *, threshold: float = 0.0) -> Tensor:
    """Return the F2 of the positive class, in which recall weighs four times as much as precision.

    Equal to scikit-learn's `fbeta_score(beta=2, zero_division=0)`. Arguments, result and errors: see `binary_f1`.
    """
    return _f_beta(outputs, targets, 2, threshold)


def binary_iou(outputs: Tensor, targets: Tensor, *, threshold: float = 0.0) -> Tensor:
    """Return the intersection over union of the positive class.

    Equal to scikit-learn's `jaccard_score(zero_division=0)`. Arguments, result and errors: see `binary_f1`.
    """
    tp, fp, fn, _ = _counts(outputs, targets, threshold)
    return tp / (tp + fp + fn).clamp(min=1)


def binary_accuracy(outputs: Tensor, targets: Tensor, *, threshold: float = 0.0) -> Tensor:
    """Return the share of right predictions; equal to scikit-learn's `accuracy_score`.

    Arguments, result and errors: see `binary_f1`.
    """
    tp, fp, fn, tn = _counts(outputs, targets, threshold)
    return (tp + tn) / (tp + fp + fn + tn)


def binary_balanced_accuracy(outputs: Tensor, targets: Tensor, *, threshold: float = 0.0) -> Tensor:
    """Return the mean of the recalls of both classes; of one recall where an item has one class only.

    Equal to scikit-learn's `balanced_accuracy_score`. Arguments, result and errors: see `binary_f1`.
    """
    tp, fp, fn, tn = _counts(outputs, targets, threshold)
    positives, negatives = tp + fn, tn + fp
    recalls = tp / positives.clamp(min=1) + tn / negatives.clamp(min=1)
    return recalls / ((positives > 0).float() + (negatives > 0).float())


def binary_kappa(outputs: Tensor, targets: Tensor, *, threshold: float = 0.0) -> Tensor:
    """Return Cohen's kappa: how far the accuracy exceeds chance, [N] in [-1, 1].

    Equal to scikit-learn's `cohen_kappa_score`; 0 where targets and predictions are all of one class, for which
    scikit-learn returns NaN. Arguments and errors: see `binary_f1`.
    """
    tp, fp, fn, tn = (count.double() for count in _counts(outputs, targets, threshold))
    chance = (tp + fp) * (fp + tn) + (tp + fn) * (fn + tn)
    return (2 * (tp * tn - fn * fp) / chance.clamp(min=1)).float()


def mcc(outputs: Tensor, targets: Tensor, *, threshold: float = 0.0) -> Tensor:
    """Return the Matthews correlation coefficient of predictions and targets, [N] in [-1, 1].

    Equal to scikit-learn's `matthews_corrcoef`; 0 where targets or predictions are all of one class. Arguments and
    errors: see `binary_f1`.
    """
    tp, fp, fn, tn = (count.double() for count in _counts(outputs, targets, threshold))
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return ((tp * tn - fp * fn) / product.clamp(min=1).sqrt()).float()


def average_precision(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean, over the positives, of the precision at their score.

    Equal to scikit-learn's `average_precision_score`.

    Args:
        outputs: [N, B] finite scores. Equal scores form one threshold.
        targets: [N, B] in {0, 1}.

    Returns:
        [N] in [0, 1]; 0 for an item without positives, 1 for an item without negatives.

    Raises:
        ValueError: the shapes do not agree, an output is not finite, or a target is neither 0 nor 1.
    """
    positive = positive_targets(outputs, targets)
    order, _, end = descending(outputs)
    positive = positive.gather(-1, order)
    precision = positive.cumsum(-1).gather(-1, end - 1) / end
    return (precision * positive).sum(-1) / positive.sum(-1).clamp(min=1)


def auroc(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the probability that a positive scores above a negative; a tie counts one half.

    Equal to scikit-learn's `roc_auc_score`. Computed from ranks (Mann and Whitney, 1947).

    Args:
        outputs: [N, B] finite scores.
        targets: [N, B] in {0, 1}.

    Returns:
        [N] in [0, 1]; 0.5 for an item with one class only.

    Raises:
        ValueError: the shapes do not agree, an output is not finite, or a target is neither 0 nor 1.
    """
    positive = positive_targets(outputs, targets)
    positives, negatives = positive.sum(-1), (~positive).sum(-1)
    # The rank sum of the positives, minus the smallest possible one, counts the pairs in the right order.
    ordered_pairs = (hard_rank(outputs).double() * positive).sum(-1) - positives * (positives - 1) / 2
    pairs = positives * negatives
    return (ordered_pairs / pairs.clamp(min=1)).where(pairs > 0, 0.5).float()


class _Counts(NamedTuple):
    """True and false positives, false and true negatives; each [N]."""

    tp: Tensor
    fp: Tensor
    fn: Tensor
    tn: Tensor


def _counts(outputs: Tensor, targets: Tensor, threshold: float) -> _Counts:
    """Return the four counts of outputs [N, B] and targets [N, B]."""
    positive = positive_targets(outputs, targets)
    predicted = outputs > threshold
    tp, fp, fn = (predicted & positive).sum(-1), (predicted & ~positive).sum(-1), (~predicted & positive).sum(-1)
    return _Counts(tp, fp, fn, outputs.shape[-1] - tp - fp - fn)


def _f_beta(outputs: Tensor, targets: Tensor, beta: int, threshold: float) -> Tensor:
    tp, fp, fn, _ = _counts(outputs, targets, threshold)
    weight = beta**2
    return (1 + weight) * tp / ((1 + weight) * tp + fp + weight * fn).clamp(min=1)


def positive_targets(outputs: Tensor, targets: Tensor) -> Tensor:
    """Check outputs and targets, and return which targets are 1, [N, B]."""
    check_shapes({"outputs [N, B]": outputs, "targets [N, B]": targets})
    check_values(outputs)
    return as_classes(targets, 2) == 1
