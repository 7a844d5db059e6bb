"""All checks of the inputs of a surrogate: shapes, labels, and the arguments of its constructor.

A message names the expected shape or range and, where predictions of another form can be converted, how.
"""

import warnings
from typing import Any, get_args

import torch
from torch import Tensor

from reloss.metrics.labels import MIXED, as_classes
from reloss.metrics.shapes import ShapeError, check_shapes
from reloss.metrics.text import NO_ANSWER

FEW_SCORES = 8  # fewer outputs cannot show whether they are probabilities

# Class logits, scores and labels


def check_logits(outputs: Tensor, targets: Tensor) -> None:
    """Raise ValueError unless outputs are logits [N, B, C] and targets [N, B] have an integer dtype or bool.

    Reads no values, except for the message, so it never waits for an accelerator.
    """
    _check_with_remedy({"outputs [N, B, C]": outputs, "targets [N, B]": targets})
    if targets.is_floating_point():
        as_classes(targets, outputs.shape[-1])  # explains targets that are no whole numbers
        raise ValueError(f"targets of classes must have an integer dtype, not {targets.dtype}: pass targets.long()")


def check_scores(outputs: Tensor, targets: Tensor) -> None:
    """Raise ValueError unless outputs [N, B] and targets [N, B] have the same shape; reads no values."""
    _check_with_remedy({"outputs [N, B]": outputs, "targets [N, B]": targets})


def check_classes(targets: Tensor, classes: int) -> None:
    """Raise ValueError unless the targets [N, B], in any dtype, are whole numbers from 0 to classes - 1.

    At least two classes are needed.
    """
    if classes < 2:
        raise ValueError("a single class cannot be compared with the rest; pass scores [B]: outputs.squeeze(-1)")
    as_classes(targets, classes)


def check_class_logits(outputs: Tensor, targets: Tensor) -> None:
    """Raise ValueError unless these are logits [N, B, C] and classes [N, B]; warn of probabilities."""
    check_logits(outputs, targets)
    check_classes(targets, outputs.shape[-1])
    warn_of_probabilities(outputs, items=True)


def check_logits_or_scores(outputs: Tensor, targets: Tensor) -> None:
    """Raise ValueError unless these are logits [N, B, C] and classes [N, B], or scores [N, B] and labels 0 or 1."""
    is_logits = outputs.dim() == 3
    (check_logits if is_logits else check_scores)(outputs, targets)
    check_classes(targets, outputs.shape[-1] if is_logits else 2)


def gather_targets(values: Tensor, targets: Tensor) -> Tensor:
    """Return each example's value at its target: values [..., C], targets [...] in an integer dtype -> [...].

    The targets' values are not read, because reading them would wait for the device in every step. So on a GPU a wrong
    target is an assertion of CUDA's `gather`, "index out of bounds". A later call raises it, as "device-side assert
    triggered", and the process cannot use the GPU any more. `check` of the loss, or the same batch on a CPU, names the
    wrong target.

    Raises:
        ValueError: on a CPU, a target is not a class from 0 to C - 1.
    """
    try:
        return values.gather(-1, targets.long()[..., None]).squeeze(-1)
    except (IndexError, RuntimeError):
        check_classes(targets, values.shape[-1])
        raise


def widen(values: Tensor) -> Tensor:
    """Return values in float32; in float64 if they are."""
    return values if values.dtype == torch.float64 else values.float()


def warn_of_probabilities(outputs: Tensor, *, items: bool = False) -> None:
    """Warn if outputs that should be logits look like probabilities; reads all values.

    Args:
        outputs: scores [B] or logits [B, C], with one more axis in front if `items`.
        items: whether the first axis counts items.
    """
    outputs = outputs.detach().float()
    classes = outputs.dim() == 2 + items
    if outputs.numel() < FEW_SCORES or not bool(((outputs >= 0) & (outputs <= 1)).all()):
        return
    if classes:
        likely = outputs.shape[-1] > 1 and bool(((outputs.sum(-1) - 1).abs() < 0.01).all())
    else:
        likely = bool(((outputs > 0) & (outputs < 1)).any() and (outputs != outputs.flatten()[0]).any())
    if likely:
        warnings.warn(
            f"all outputs are from 0 to 1, like probabilities, but this loss takes logits: pass what comes before the "
            f"{'softmax' if classes else 'sigmoid'}",
            stacklevel=2,
        )


def _check_with_remedy(tensors: dict[str, Tensor]) -> None:
    try:
        check_shapes(tensors)
    except ShapeError as error:
        raise error.with_remedy(_remedy(*tensors.values())) from None


def _remedy(outputs: Tensor, targets: Tensor) -> str:
    """Return how to convert predictions [N, B, ...] of another shape; the code in it is for one batch, [B, ...]."""
    same, dims = targets.shape == outputs.shape, outputs.dim()
    if dims == 2 and same:
        return "; scores [B] of two classes are for SetReLoss"
    if dims in (2, 3) and targets.dim() == 3 and targets.shape[-1] == 1 and targets.shape[:2] == outputs.shape[:2]:
        scores = "pass scores [B] to SetReLoss: outputs.squeeze(-1), " if dims == 3 and outputs.shape[-1] == 1 else ""
        return f"; {scores}{'' if scores else 'remove the last axis: '}targets.squeeze(-1)"
    if dims == 3 and outputs.shape[-1] == 1:
        return "; pass scores [B] to SetReLoss: outputs.squeeze(-1)"
    if dims == 3 and same:
        return _remedy_for_labels(targets.double())
    if dims > 3 and (same or (outputs.shape[2] == 1 and targets.shape == outputs.shape[:2] + outputs.shape[3:])):
        return "; turn each pixel into an example, for SetReLoss: outputs.flatten(), targets.flatten()"
    if dims > 3 and targets.shape == outputs.shape[:2] + outputs.shape[3:]:
        return "; turn each pixel into an example: outputs.movedim(1, -1).flatten(0, -2), targets.flatten()"
    if dims > 3 and targets.shape == outputs.shape[:-1]:
        return "; turn each token into an example: outputs.flatten(0, -2), targets.flatten()"
    return ""


def _remedy_for_labels(targets: Tensor) -> str:
    """Return how to convert targets [N, B, C], one number for each class."""
    one_each = bool((targets >= 0).all() and ((targets.sum(-1) - 1).abs() < 0.01).all())
    if bool(((targets == 0) | (targets == 1)).all()):
        if one_each:
            return "; turn one-hot targets into classes: targets.argmax(-1)"
        return "; turn each label into an example, for SetReLoss: outputs.flatten(), targets.flatten()"
    if one_each:
        return f"; {MIXED}"
    return "; turn each target into a labelled example, for SetReLoss: outputs.flatten(), (targets > 0.5).flatten()"


# Other predictions


def check_heatmaps(outputs: Tensor, targets: Tensor, size: tuple[int, int] | None = None) -> None:
    """Raise ValueError unless both are heatmaps [N, B, K, H, W], of this height and width if given."""
    check_shapes({"outputs [N, B, K, H, W]": outputs, "targets [N, B, K, H, W]": targets})
    if size is not None and outputs.shape[-2:] != size:
        raise ValueError(f"this surrogate is for heatmaps of {list(size)}, not {list(outputs.shape[-2:])}")


def check_tokens(outputs: Tensor, targets: Tensor) -> None:
    """Raise ValueError unless these are log-probabilities of gold tokens and gold and predicted tokens [N, B, T, 2].

    The log-probabilities are [N, B, T], or [N, B, T, T] if each position gives one to each gold token.
    """
    shape = "[N, B, T, T]" if outputs.dim() == 4 else "[N, B, T]"
    check_shapes({f"outputs {shape}": outputs, "targets [N, B, T, 2]": targets})


def check_token_matrices(outputs: Tensor, targets: Tensor) -> None:
    """Raise ValueError unless these are log-probabilities [N, B, T, T] and gold and predicted tokens [N, B, T, 2]."""
    try:
        check_shapes({"outputs [N, B, T, T]": outputs, "targets [N, B, T, 2]": targets})
    except ValueError as error:
        remedy = (
            "; a bank of an earlier version, or of an autoregressive model, holds [T] for a sentence: choose "
            "surrogate.features=likelihood, or record a non-autoregressive model again"
        )
        raise ValueError(f"{error}{remedy if outputs.dim() == 3 else ''}") from None


def check_spans(outputs: Tensor, targets: Tensor) -> None:
    """Raise ValueError unless these are start and end logits [N, B, 2, T] and gold spans [N, B, G, 2] below T."""
    check_span_shapes(outputs, targets)
    targets = targets.long()  # an unsigned dtype holds neither negative number
    positions = targets.where(targets[..., :1] > NO_ANSWER, 0)
    if bool((positions >= outputs.shape[-1]).any()):
        raise ValueError(f"a gold position is {int(positions.max())}, but there are {outputs.shape[-1]} positions")


def check_span_shapes(outputs: Tensor, targets: Tensor) -> None:
    """Raise ValueError unless outputs are [N, B, 2, T] and targets [N, B, G, 2]; reads no values."""
    check_shapes({"outputs [N, B, 2, T]": outputs, "targets [N, B, G, 2]": targets})


# Arguments of a constructor


def check_choices(**choices: tuple[Any, Any]) -> None:
    """Raise ValueError unless each option, given as name=(value, Literal type), has one of the type's values."""
    for name, (value, literal) in choices.items():
        if value not in get_args(literal):
            raise ValueError(f"{name} must be one of {', '.join(get_args(literal))}, not {value}")


def check_sizes(**sizes: Any) -> None:
    """Raise ValueError unless each size of a network is a whole number of at least 1."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, not {size!r}")
