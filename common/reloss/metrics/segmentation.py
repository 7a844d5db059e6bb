"""Metrics of masks: Dice and intersection over union, per image or pooled over an item.

Both are formulas of three counts: the pixels of a class, the pixels predicted as the class, and the pixels that are
both. Pixels without a label do not count.
"""

import torch
from torch import Tensor

from reloss.metrics.labels import MIXED
from reloss.metrics.shapes import ShapeError, check_shapes

IGNORED = -100  # target of a pixel that does not count
VOID = 255  # also such a target, unless it is a class


def dice(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the Dice score (F1 of the pixels), the mean over images and the classes that occur in each image.

    Equal to scikit-learn's `f1_score(zero_division=1)` of the pixels of one image and class.

    Args:
        outputs: [N, B, C, H, W] logits of C classes. Or, with C = 1, logits of the foreground: a pixel above 0 is
            predicted as foreground.
        targets: [N, B, H, W] classes from 0 to C - 1. With C = 1, 0 or 1, and [N, B, 1, H, W] is also accepted. Pixels
            of -100 do not count, nor do those of 255, unless 255 is a class.

    Returns:
        [N] in [0, 1]. An image without foreground (C = 1) scores 1 if none is predicted, else 0. An image without
        labelled pixels is skipped; 0 for an item of such images.

    Raises:
        ValueError: the shapes do not agree, an output is NaN, or a target is no class.
    """
    hits, predicted, actual, occurs = _counts(outputs, targets)
    return _mean(_ratio(2 * hits, predicted + actual), occurs)


def mask_iou(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the intersection over union, the mean over images and the classes that occur in each image.

    Equal to scikit-learn's `jaccard_score(zero_division=1)` of the pixels of one image and class. Arguments, result and
    errors: see `dice`.
    """
    hits, predicted, actual, occurs = _counts(outputs, targets)
    return _mean(_ratio(hits, predicted + actual - hits), occurs)


def mean_iou(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean over classes of the intersection over union of all pixels of an item.

    Equal to scikit-learn's `jaccard_score` of the pixels: for C classes with average="macro", over the classes among
    targets and predictions; with C = 1, of the foreground, with zero_division=1. Arguments and errors: see `dice`.

    Returns:
        [N] in [0, 1]; 0 for an item without labelled pixels.
    """
    hits, predicted, actual, occurs = _counts(outputs, targets)
    labelled = occurs.any(1)
    hits, predicted, actual = (count.sum(1) for count in (hits, predicted, actual))
    unions = predicted + actual - hits
    return _mean(_ratio(hits, unions), labelled if outputs.shape[2] == 1 else unions > 0)


def check_masks(outputs: Tensor, targets: Tensor) -> None:
    """Raise ValueError unless these are logits and masks as `dice` takes them; reads all targets.

    The message names the remedy.
    """
    check_mask_shapes(outputs, targets)
    classes = max(outputs.shape[2], 2)
    labels = targets if targets.is_floating_point() else targets.long()
    counts = is_labelled(labels, outputs.shape[2])
    wrong = counts & ~((labels >= 0) & (labels < classes) & (labels == labels.round()))
    if wrong.any():
        value = labels[wrong][0].item()
        remedy = "; mark pixels that do not count with -100"
        if 0 < value < 1:
            remedy = f"; {MIXED}"
        elif outputs.shape[2] == 1:
            remedy = "; turn the foreground into 1: (targets > 0).long()"
        raise ValueError(f"masks must be whole numbers from 0 to {classes - 1}, not {value:g}{remedy}")
    if outputs.shape[2] == 1 and bool((labels == VOID).any()) and not bool((labels == 1).any()):
        raise ValueError(
            "masks hold 255, which marks pixels that do not count, but no foreground 1; if 255 is the foreground, pass "
            "(targets > 0).long(); otherwise mark pixels that do not count with -100"
        )


def check_mask_shapes(outputs: Tensor, targets: Tensor) -> None:
    """Raise ValueError unless outputs are [N, B, C, H, W] and targets are masks for them; reads no values."""
    binary = outputs.dim() == 5 and outputs.shape[2] == 1
    sizes = "[N, B, 1, H, W]" if binary and targets.dim() == 5 else "[N, B, H, W]"
    try:
        check_shapes({f"outputs [N, B, {'1' if binary else 'C'}, H, W]": outputs, f"targets {sizes}": targets})
    except ShapeError as error:
        remedy = ""
        if outputs.shape == targets.shape and outputs.dim() == 5:
            remedy = "; turn one-hot masks into classes: targets.argmax(1)"
        elif outputs.shape == targets.shape and outputs.dim() == 4:
            remedy = "; add the axis of the single class: outputs.unsqueeze(1)"
        elif targets.dim() == 5 and targets.shape[2] == 1:
            remedy = "; remove the axis of length 1: targets.squeeze(1)"
        raise error.with_remedy(remedy) from None


def is_labelled(targets: Tensor, classes: int) -> Tensor:
    """Return which pixels count: those that are neither -100 nor 255, which is a class if there are more than 255."""
    return (targets != IGNORED) & (targets != VOID) if classes <= VOID else targets != IGNORED


def _counts(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the hits, the predicted and the actual pixels of each class, and which classes occur: each [N, B, C].

    With C = 1, the foreground occurs in every image that has a labelled pixel.
    """
    check_masks(outputs, targets)
    if bool(outputs.isnan().any()):
        raise ValueError("outputs must not be NaN: the model has diverged")
    classes = outputs.shape[2]
    targets = targets.long().reshape(*outputs.shape[:2], -1)
    labelled = is_labelled(targets, classes)
    if classes == 1:
        predicted, actual = (outputs.reshape(targets.shape) > 0) & labelled, targets == 1
        counts = (predicted & actual, predicted, actual)
        hits, areas, sizes = (pixels.sum(-1, keepdim=True).double() for pixels in counts)
        return hits, areas, sizes, labelled.any(-1, keepdim=True)
    predictions = outputs.argmax(2).flatten(2)

    def count(labels: Tensor, pixels: Tensor) -> Tensor:
        zeros = torch.zeros(*outputs.shape[:3], dtype=torch.float64, device=outputs.device)
        return zeros.scatter_add(-1, labels.where(pixels, 0), pixels.double())

    actual = count(targets, labelled)
    return count(targets, labelled & (predictions == targets)), count(predictions, labelled), actual, actual > 0


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """Return part / whole, and 1 where both are 0: nothing was there, and nothing was predicted."""
    return (part / whole.clamp(min=1)).where(whole > 0, 1)


def _mean(values: Tensor, counts: Tensor) -> Tensor:
    """Return the mean over the values of each item that count: [N, ...] -> [N] in float32; 0 if none counts."""
    total = (values * counts).flatten(1).sum(-1)
    return (total / counts.flatten(1).sum(-1).clamp(min=1)).float()
