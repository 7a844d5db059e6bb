"""The check of class labels: whole numbers from 0 to C - 1, in any dtype. Its message names the remedy."""

import torch
from torch import Tensor

MIXED = "for mixed-up or soft targets, mix losses instead: lam * loss(outputs, a) + (1 - lam) * loss(outputs, b)"


def as_classes(targets: Tensor, classes: int) -> Tensor:
    """Return the targets [...] in int64.

    Raises:
        ValueError: a target is not a whole number from 0 to classes - 1.
    """
    labels = targets if targets.is_floating_point() else targets.long()  # the number of classes may not fit their dtype
    valid = (labels >= 0) & (labels < classes) & (labels == labels.round())
    if not valid.all():
        wrong = labels[~valid][0].item()
        remedy = _remedy(labels.double(), classes)
        raise ValueError(f"targets must be whole numbers from 0 to {classes - 1}, not {wrong:g}{remedy}")
    return labels.long()


def _remedy(labels: Tensor, classes: int) -> str:
    """Return how to turn labels, some of them no classes, into classes."""
    smallest, largest = (float(value) for value in labels.aminmax())
    if not bool(torch.isfinite(labels).all()):
        return ""
    if not bool((labels == labels.round()).all()):
        if smallest >= 0 and largest <= 1:
            return f"; {MIXED}"
        return "; targets on a scale are not supported: turn them into classes, for example targets > 0.5"
    if bool((labels.abs() == 1).all()):
        return "; turn labels -1 and 1 into 0 and 1: (targets > 0).long()"
    if smallest < 0:
        return "; drop the examples to ignore: keep = targets >= 0; outputs[keep], targets[keep]"
    if smallest >= 1 and largest == classes:
        return "; count classes from 0: targets - 1"
    return "; turn grades into labels 0 and 1: (targets > 0).long()" if classes == 2 else ""
