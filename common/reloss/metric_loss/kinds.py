"""Kinds of predictions: how the outputs and targets of a training loop become what a surrogate takes.

Training loops agree on what a prediction is, but not on its form: labels come as 0 and 1, as -1 and 1, or one-hot;
scores have a last axis of size 1 or none; ignored tokens are labelled -100. `detect` recognises the kind from shapes,
dtypes and values of one batch. `Kind.prepare` then turns every batch into one form, so that surrogates stay simple.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from reloss.learning.options import MIXTURES
from reloss.runtime.errors import UsageError

Batch = tuple[Tensor, Tensor]
"""Outputs [B, ...] and targets [B, ...]."""

SET_CLASSES = 32  # with more classes, each example is scored by itself: a set for each class costs too much
IGNORED = 255  # label of ignored pixels in many data sets


@dataclass(frozen=True)
class Kind:
    """A kind of predictions.

    Attributes:
        name: its name, for example `binary`.
        title: what it is, for messages and tables.
        shapes: the forms that it takes, for messages and tables.
        surrogate: the kind of surrogate; a key of `reloss.surrogates.registry.EXPECTED_KINDS`.
        ordinary: name of the ordinary loss.
        prepare: turns a batch in any of the forms into the surrogate's; differentiable in the outputs.
        labels: predicted labels of prepared outputs, as a metric of labels takes them: [B, ...] -> [B, ...].
        probabilities: probabilities of prepared outputs; None if there are none.
        thresholded: whether the labels depend on a threshold that can be tuned.
        item_size: examples in an item; None for the size of a batch.
        full_precision: whether recordings need float32.
        mixture: shares of the sources of items; see `reloss.learning.options.MIXTURES`.
    """

    name: str
    title: str
    shapes: str
    surrogate: str
    ordinary: str
    prepare: Callable[[Tensor, Tensor], Batch]
    labels: Callable[[Tensor], Tensor]
    probabilities: Callable[[Tensor], Tensor] | None = None
    thresholded: bool = False
    item_size: int | None = None
    full_precision: bool = False
    mixture: Mapping[str, float] = field(default_factory=lambda: MIXTURES["perturbed"])


def detect(outputs: Tensor, targets: Tensor) -> str:
    """Return the kind of predictions in one batch: outputs [B, ...], targets [B, ...] -> a key of `KINDS`.

    Raises:
        UsageError: no kind has such shapes, and the message lists all kinds; or the two seem to be swapped.
    """
    if outputs.dim() and targets.dim() and len(outputs) != len(targets):
        raise UsageError(f"{len(outputs)} outputs, but {len(targets)} targets: pass one of each per example")
    kind = _recognise(outputs, targets)
    if _are_swapped(outputs, targets, kind):
        raise UsageError(
            f"outputs {list(outputs.shape)} look like targets, and targets {list(targets.shape)} like the outputs of a "
            "model: pass (outputs, targets) in this order, or name the kind of predictions with kind"
        )
    if kind is None:
        forms = "\n".join(f"  {kind.name}: {kind.shapes}" for kind in KINDS.values())
        raise UsageError(
            f"no kind of predictions has outputs {list(outputs.shape)} with targets {list(targets.shape)} of "
            f"{targets.dtype}; the kinds are:\n{forms}"
        )
    return kind


def _recognise(outputs: Tensor, targets: Tensor) -> str | None:
    recognise = {1: _of_scores, 2: _of_rows, 3: _of_sequences, 4: _of_maps}.get(outputs.dim())
    return recognise(outputs, targets) if recognise and targets.dim() else None


def _are_swapped(outputs: Tensor, targets: Tensor, kind: str | None) -> bool:
    """Return whether the targets are scores, and the outputs are labels that fit them."""
    if kind not in (None, "regression") or not _is_whole(outputs) or _is_whole(targets):
        return False
    return _recognise(targets, outputs) not in (None, "regression", "lists")


def _of_scores(outputs: Tensor, targets: Tensor) -> str | None:
    """Return the kind of one number per example."""
    if targets.numel() != len(targets):
        return None
    return "binary" if _values_in(targets, 0, 1) or _values_in(targets, -1, 1) else "regression"


def _of_rows(outputs: Tensor, targets: Tensor) -> str | None:
    """Return the kind of one row of numbers per example."""
    if outputs.shape[1] == 1:
        return _of_scores(outputs, targets)
    if targets.dim() == 1 or targets.shape == (len(targets), 1):
        return "classes" if _is_whole(targets) else None
    if targets.shape != outputs.shape:
        return None
    if bool((targets >= 0).all() and ((targets.double().sum(1) - 1).abs() < 1e-3).all()):
        return "classes"
    if _values_in(targets, -1, 1):
        return "signed_labels"
    if _values_in(targets, -1, 0, 1):
        return "labels"
    return "lists" if _is_whole(targets) and bool((targets >= -1).all()) else "regression"


def _of_sequences(outputs: Tensor, targets: Tensor) -> str | None:
    """Return the kind of logits for each token, or for the start and the end of a span."""
    b, second, third = outputs.shape
    if targets.is_floating_point():
        return None
    if second == 2 and targets.shape[-1] == 2 and targets.dim() in (2, 3) and third > 2:
        return "spans"
    return "tokens" if targets.shape in ((b, second), (b, third)) else None


def _of_maps(outputs: Tensor, targets: Tensor) -> str | None:
    """Return the kind of logits for each pixel, or of heatmaps."""
    pixels = outputs.shape[2:]
    if targets.shape[1:] == pixels and not (targets.is_floating_point() and not _is_whole(targets)):
        return "masks"
    if targets.shape != outputs.shape:
        return None
    return "masks" if _values_in(targets, 0, 1, IGNORED) else "heatmaps"


def check_labels(targets: Tensor, kind: Kind) -> None:
    """Check the targets of two classes: anything but two labels is likely the outputs. Waits for the device.

    Raises:
        ValueError: they hold another value.
    """
    if kind.name != "binary" or _values_in(targets, 0, 1) or _values_in(targets, -1, 1):
        return
    value = next(value for value in targets.flatten().tolist() if value not in (0, 1))
    raise ValueError(
        f"targets must be 0 or 1, -1 or 1, or bool, not {value:g}; the loss takes (outputs, targets) in this order"
    )


def _values_in(targets: Tensor, *values: int) -> bool:
    """Return whether the targets hold no other values than these."""
    return bool(torch.isin(targets.float(), torch.tensor(values, dtype=torch.float32, device=targets.device)).all())


def _is_whole(targets: Tensor) -> bool:
    return not targets.is_floating_point() or bool((targets == targets.round()).all())


# Preparing a batch. Everything but dropping ignored examples reads shapes only, so that no step waits for a device.


def _prepare_binary(outputs: Tensor, targets: Tensor) -> Batch:
    return outputs.reshape(len(outputs)), (targets.reshape(len(targets)) > 0).long()


def _prepare_classes(outputs: Tensor, targets: Tensor) -> Batch:
    if targets.dim() == 2:
        targets = targets.argmax(1) if targets.shape[1] > 1 else targets[:, 0]
    return _counted(outputs, targets.long())


def _prepare_tokens(outputs: Tensor, targets: Tensor) -> Batch:
    if targets.shape[1] != outputs.shape[1]:  # [B, C, T], as torch's cross-entropy takes them
        outputs = outputs.movedim(1, -1)
    return _counted(outputs.flatten(0, 1), targets.long().flatten())


def _counted(outputs: Tensor, targets: Tensor) -> Batch:
    """Return the examples that are not ignored: outputs [B, C], targets [B], negative where ignored."""
    counted = targets >= 0
    return (outputs, targets) if bool(counted.all()) else (outputs[counted], targets[counted])


def _prepare_signed_labels(outputs: Tensor, targets: Tensor) -> Batch:
    return outputs, (targets > 0).long()


def _prepare_masks(outputs: Tensor, targets: Tensor) -> Batch:
    if outputs.shape[1] > 1 and targets.shape == outputs.shape:  # each channel is a mask of its own
        outputs, targets = outputs.flatten(0, 1)[:, None], targets.flatten(0, 1)[:, None]
    if targets.dim() == 4 and outputs.shape[1] == 1:
        targets = targets[:, 0]
    targets = targets.long()
    return outputs, targets.masked_fill(targets == IGNORED, -100) if outputs.shape[1] <= IGNORED else targets


def _prepare_regression(outputs: Tensor, targets: Tensor) -> Batch:
    shape = (len(outputs),) if outputs.numel() == len(outputs) else outputs.shape
    return outputs.reshape(shape), targets.reshape(shape).float()


def _prepare_lists(outputs: Tensor, targets: Tensor) -> Batch:
    return outputs, targets.float()


def _prepare_spans(outputs: Tensor, targets: Tensor) -> Batch:
    return outputs, (targets[:, None] if targets.dim() == 2 else targets).long()


def _unchanged(outputs: Tensor, targets: Tensor) -> Batch:
    return outputs, targets


def _positive(outputs: Tensor) -> Tensor:
    return (outputs > 0).long()


def _largest(outputs: Tensor) -> Tensor:
    return outputs.argmax(-1)


def _softmax(outputs: Tensor) -> Tensor:
    return outputs.softmax(-1)


def _mask_labels(outputs: Tensor) -> Tensor:
    return _positive(outputs[:, 0]) if outputs.shape[1] == 1 else outputs.argmax(1)


def _mask_probabilities(outputs: Tensor) -> Tensor:
    return outputs[:, 0].sigmoid() if outputs.shape[1] == 1 else outputs.softmax(1)


def unchanged_outputs(outputs: Tensor) -> Tensor:
    """Return the outputs, which are what a metric takes as predictions."""
    return outputs


THRESHOLDS = {**MIXTURES["thresholds"], "noisy": 1}

_CLASSES = Kind(
    name="classes",
    title="class logits",
    shapes="outputs [B, C]; targets [B], whole numbers, negative where ignored; or one-hot or soft [B, C]",
    surrogate="set",
    ordinary="cross-entropy",
    prepare=_prepare_classes,
    labels=_largest,
    probabilities=_softmax,
    mixture=THRESHOLDS,
)

_LABELS = Kind(
    name="labels",
    title="scores of several labels",
    shapes="outputs [B, L]; targets [B, L], 0 or 1, and -1 where ignored",
    surrogate="labels",
    ordinary="binary cross-entropy",
    prepare=_unchanged,
    labels=_positive,
    probabilities=torch.sigmoid,
)

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            name="binary",
            title="scores of two classes",
            shapes="outputs [B] or [B, 1], logits of the positive class; targets the same, 0 or 1, -1 or 1, or bool",
            surrogate="set",
            ordinary="binary cross-entropy",
            prepare=_prepare_binary,
            labels=_positive,
            probabilities=torch.sigmoid,
            thresholded=True,
            mixture=THRESHOLDS,
        ),
        _CLASSES,
        _LABELS,
        replace(
            _LABELS,
            name="signed_labels",
            shapes="outputs [B, L]; targets [B, L], -1 or 1",
            prepare=_prepare_signed_labels,
        ),
        replace(
            _CLASSES,
            name="tokens",
            title="class logits of tokens",
            shapes="outputs [B, T, C] or [B, C, T]; targets [B, T], whole numbers, negative where ignored",
            prepare=_prepare_tokens,
            item_size=256,
        ),
        Kind(
            name="masks",
            title="logits of pixels",
            shapes="outputs [B, C, H, W] and targets [B, H, W]; or outputs [B, 1, H, W] and targets [B, 1, H, W] or "
            "[B, H, W], 0 or 1; negative or 255 where ignored",
            surrogate="masks",
            ordinary="cross-entropy",
            prepare=_prepare_masks,
            labels=_mask_labels,
            probabilities=_mask_probabilities,
            item_size=8,
        ),
        Kind(
            name="regression",
            title="real numbers",
            shapes="outputs [B], [B, 1] or [B, D]; targets the same",
            surrogate="regression",
            ordinary="squared error",
            prepare=_prepare_regression,
            labels=unchanged_outputs,
            full_precision=True,
        ),
        Kind(
            name="lists",
            title="scores of ranked lists",
            shapes="outputs [Q, D], scores of D documents for Q queries; targets [Q, D], relevance, -1 for padding",
            surrogate="lists",
            ordinary="list-wise cross-entropy",
            prepare=_prepare_lists,
            labels=unchanged_outputs,
            item_size=16,
        ),
        Kind(
            name="heatmaps",
            title="heatmaps of joints",
            shapes="outputs [B, K, H, W]; targets the same, heatmaps",
            surrogate="pose",
            ordinary="squared error",
            prepare=_unchanged,
            labels=unchanged_outputs,
            item_size=16,
            mixture=MIXTURES["shuffled"],
        ),
        Kind(
            name="spans",
            title="logits of start and end",
            shapes="outputs [B, 2, T]; targets [B, 2] or [B, G, 2], gold starts and ends",
            surrogate="reading",
            ordinary="cross-entropy of start and end",
            prepare=_prepare_spans,
            labels=unchanged_outputs,
            item_size=16,
            mixture=MIXTURES["shuffled"],
        ),
    )
}


def surrogate_of(kind: Kind, shape: Sequence[int]) -> str:
    """Return the kind of surrogate for prepared outputs of this shape per example; see SET_CLASSES."""
    many_classes = kind.surrogate == "set" and len(shape) == 1 and shape[0] > SET_CLASSES
    return "classification" if many_classes else kind.surrogate


def as_tensor(values: Any, name: str) -> Tensor:
    """Return outputs or targets as a tensor.

    Raises:
        UsageError: they are neither a tensor nor an array of numbers.
    """
    try:
        return values if isinstance(values, Tensor) else torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"{name} must be a tensor or an array of numbers, not {type(values).__name__}: {error}"
        ) from None
