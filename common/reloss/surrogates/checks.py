"""All checks of the inputs of a surrogate: shapes, labels, and the arguments of its constructor.

A message names the expected shape or range and, where predictions of another form can be converted, how.
"""

from typing import Any, get_args

import torch
from torch import Tensor

from reloss.metrics.shapes import check_shapes
from reloss.metrics.text import NO_ANSWER

# Class logits, scores and labels


def check_logits(outputs: Tensor, targets: Tensor) -> None:
    """Raise ValueError unless outputs are logits [N, B, C] and targets [N, B] have an integer dtype or bool.

    Reads no values, so it never waits for an accelerator.
    """
    _check_with_remedy({"outputs [N, B, C]": outputs, "targets [N, B]": targets})
    if targets.is_floating_point():
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
    if targets.dtype == torch.bool:
        return
    valid = (targets >= 0) & (targets < classes) & (targets == targets.round())
    if valid.all():
        return
    wrong = targets[~valid][0].item()
    remedy = "" if wrong == round(wrong) else "; targets on a scale are not supported: turn them into classes"
    if wrong < 0:
        remedy = "; drop the examples to ignore: keep = targets >= 0; outputs[keep], targets[keep]"
    raise ValueError(f"targets must be whole numbers from 0 to {classes - 1}, not {wrong:g}{remedy}")


def check_logits_or_scores(outputs: Tensor, targets: Tensor) -> None:
    """Raise ValueError unless these are logits [N, B, C] and classes [N, B], or scores [N, B] and labels 0 or 1."""
    is_logits = outputs.dim() == 3
    (check_logits if is_logits else check_scores)(outputs, targets)
    check_classes(targets, outputs.shape[-1] if is_logits else 2)


def _check_with_remedy(tensors: dict[str, Tensor]) -> None:
    try:
        check_shapes(tensors)
    except ValueError as error:
        raise ValueError(f"{error}{_remedy(*tensors.values())}") from None


def _remedy(outputs: Tensor, targets: Tensor) -> str:
    """Return how to convert predictions [N, B, ...] of another shape; the code in it is for one batch, [B, ...]."""
    if outputs.dim() == 2 and targets.shape == outputs.shape:
        return "; scores [B] of two classes are for SetReLoss"
    if outputs.dim() == 3 and outputs.shape[-1] == 1:
        squeezed_targets = ", targets.squeeze(-1)" if targets.shape == outputs.shape else ""
        return f"; pass scores [B] to SetReLoss: outputs.squeeze(-1){squeezed_targets}"
    if outputs.dim() == 3 and targets.shape == outputs.shape:
        if bool(((targets == 0) | (targets == 1)).all() and (targets.sum(-1) == 1).all()):
            return "; turn one-hot targets into classes: targets.argmax(-1)"
        return "; turn each label into an example, for SetReLoss: outputs.flatten(), targets.flatten()"
    if outputs.dim() > 3 and targets.shape == outputs.shape[:2] + outputs.shape[3:]:
        return "; turn each pixel into an example: outputs.movedim(1, -1).flatten(0, -2), targets.flatten()"
    return ""


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
