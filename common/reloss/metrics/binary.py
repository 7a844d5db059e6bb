"""Metrics of one score per example, for two classes.

F1 compares the predictions at one threshold with the targets. Average precision and AUROC summarise all thresholds, so
they depend only on the order of the scores.
"""

from torch import Tensor

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
    positive = _positive_targets(outputs, targets)
    predicted = outputs > threshold
    total = predicted.sum(-1) + positive.sum(-1)
    return 2 * (predicted & positive).sum(-1) / total.clamp(min=1)


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
    positive = _positive_targets(outputs, targets)
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
    positive = _positive_targets(outputs, targets)
    positives, negatives = positive.sum(-1), (~positive).sum(-1)
    # The rank sum of the positives, minus the smallest possible one, counts the pairs in the right order.
    ordered_pairs = (hard_rank(outputs).double() * positive).sum(-1) - positives * (positives - 1) / 2
    pairs = positives * negatives
    return (ordered_pairs / pairs.clamp(min=1)).where(pairs > 0, 0.5).float()


def _positive_targets(outputs: Tensor, targets: Tensor) -> Tensor:
    """Check outputs and targets, and return which targets are 1, [N, B]."""
    check_shapes({"outputs [N, B]": outputs, "targets [N, B]": targets})
    check_values(outputs)
    positive = targets == 1
    if not (positive | (targets == 0)).all():
        raise ValueError("targets must be 0 or 1")
    return positive
