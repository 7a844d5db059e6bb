"""Metrics of one score per example for two classes."""

from torch import Tensor

from reloss.metrics.shapes import check_shapes
from reloss.metrics.ties import descending
from reloss.ranking.hard import check_values, hard_rank


def binary_f1(outputs: Tensor, targets: Tensor, *, threshold: float = 0.0) -> Tensor:
    """Return the F1 of the positive class, as scikit-learn's `f1_score(zero_division=0)`.

    Args:
        outputs: [N, B] finite scores; above the threshold, not at it, an example is predicted positive.
        targets: [N, B] in {0, 1}.
        threshold: 0 for logits, 0.5 for probabilities.

    Returns:
        [N] in [0, 1]; 0 where an item has no positive, neither predicted nor real.

    Raises:
        ValueError: the shapes do not agree, an output is not finite, or a target is neither 0 nor 1.
    """
    positive = _positive(outputs, targets)
    predicted = outputs > threshold
    either = predicted.sum(-1) + positive.sum(-1)
    return 2 * (predicted & positive).sum(-1) / either.clamp(min=1)


def average_precision(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the precision at the score of each positive, averaged: scikit-learn's `average_precision_score`.

    Args:
        outputs: [N, B] finite scores; equal scores are one threshold and count all together.
        targets: [N, B] in {0, 1}.

    Returns:
        [N] in [0, 1]; 0 for an item without positives, 1 for an item without negatives.

    Raises:
        ValueError: the shapes do not agree, an output is not finite, or a target is neither 0 nor 1.
    """
    positive = _positive(outputs, targets)
    order, _, after = descending(outputs)
    positive = positive.gather(-1, order)
    precision = positive.cumsum(-1).gather(-1, after - 1) / after
    return (precision * positive).sum(-1) / positive.sum(-1).clamp(min=1)


def auroc(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the chance that a positive scores above a negative, ties counting half: scikit-learn's `roc_auc_score`.

    Args:
        outputs: [N, B] finite scores.
        targets: [N, B] in {0, 1}.

    Returns:
        [N] in [0, 1]; 0.5 for an item with one class only.

    Raises:
        ValueError: the shapes do not agree, an output is not finite, or a target is neither 0 nor 1.
    """
    positive = _positive(outputs, targets)
    positives, negatives = positive.sum(-1), (~positive).sum(-1)
    # Mann-Whitney: what the positives' ranks exceed those that they would have if they were the lowest scores.
    above = (hard_rank(outputs).double() * positive).sum(-1) - positives * (positives - 1) / 2
    pairs = positives * negatives
    return (above / pairs.clamp(min=1)).where(pairs > 0, 0.5).float()


def _positive(outputs: Tensor, targets: Tensor) -> Tensor:
    """Check both and return which targets are 1, [N, B]."""
    check_shapes({"outputs [N, B]": outputs, "targets [N, B]": targets})
    check_values(outputs)
    positive = targets == 1
    if not (positive | (targets == 0)).all():
        raise ValueError("targets must be 0 or 1")
    return positive
