"""Metrics of class scores.

The accuracies look at single examples. Balanced accuracy and macro F1 average over classes, so that rare classes count
as much as frequent ones; they are computed from three counts per class. Of equal largest scores, the first is the
prediction.
"""

import torch
from torch import Tensor

from reloss.metrics.labels import as_classes
from reloss.metrics.shapes import check_shapes


def topk_accuracy(outputs: Tensor, targets: Tensor, k: int) -> Tensor:
    """Return the share of examples whose target is among the k largest outputs.

    Args:
        outputs: [N, B, C] scores; of equal scores, the class with the smaller index comes first.
        targets: [N, B] classes.
        k: from 1 to C.

    Returns:
        [N] in [0, 1].

    Raises:
        ValueError: the shapes do not agree, an output is NaN, a target is not in 0..C-1, or k is not in 1..C.
    """
    predictions, targets = _predict(outputs, targets)
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= outputs.shape[-1]:
        raise ValueError(f"k must be from 1 to the {outputs.shape[-1]} classes, not {k}")
    if k == 1:
        return (predictions == targets).float().mean(-1)
    places, own = torch.arange(outputs.shape[-1], device=outputs.device), targets[..., None]
    scores = outputs.gather(-1, own)
    ahead = (outputs > scores) | ((outputs == scores) & (places < own))
    return (ahead.sum(-1) < k).float().mean(-1)


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the share of examples whose target has the largest output: outputs [N, B, C], targets [N, B] -> [N]."""
    return topk_accuracy(outputs, targets, 1)


def top5_accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the share of examples whose target is among the five largest outputs. Needs at least five classes."""
    return topk_accuracy(outputs, targets, 5)


def balanced_accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean recall over the classes among an item's targets.

    Equal to scikit-learn's `balanced_accuracy_score`.

    Args:
        outputs: [N, B, C] scores.
        targets: [N, B] classes.

    Returns:
        [N] in [0, 1]; the accuracy for an item whose targets are all of one class.

    Raises:
        ValueError: the shapes do not agree, an output is NaN, or a target is not in 0..C-1.
    """
    hits, _, target_counts = _class_counts(outputs, targets)
    return (hits / target_counts.clamp(min=1)).sum(-1) / (target_counts > 0).sum(-1)


def macro_f1(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean F1 over the classes among an item's targets or predictions.

    Equal to scikit-learn's `f1_score(average="macro", zero_division=0)`.

    Args:
        outputs: [N, B, C] scores.
        targets: [N, B] classes.

    Returns:
        [N] in [0, 1].

    Raises:
        ValueError: the shapes do not agree, an output is NaN, or a target is not in 0..C-1.
    """
    hits, prediction_counts, target_counts = _class_counts(outputs, targets)
    total = prediction_counts + target_counts
    return (2 * hits / total.clamp(min=1)).sum(-1) / (total > 0).sum(-1)


def _class_counts(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each class the number of correct predictions, of predictions, and of targets: each [N, C]."""
    predictions, targets = _predict(outputs, targets)
    items, _, classes = outputs.shape

    def count(labels: Tensor, weights: Tensor) -> Tensor:
        return torch.zeros(items, classes, device=labels.device).scatter_add(-1, labels, weights.float())

    ones = torch.ones_like(targets)
    return count(targets, predictions == targets), count(predictions, ones), count(targets, ones)


def _predict(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Check outputs [N, B, C] and targets [N, B]; return predicted and target classes in int64, each [N, B]."""
    check_shapes({"outputs [N, B, C]": outputs, "targets [N, B]": targets})
    targets = as_classes(targets, outputs.shape[-1])
    largest, predictions = outputs.max(-1)  # the first of equal ones; NaN counts as the largest
    if largest.isnan().any():
        raise ValueError("outputs must not be NaN: the model has diverged")
    return predictions, targets
