"""What predictions of classes have to be. The messages name how others are made so."""

import torch
from torch import Tensor

from reloss.metrics.shapes import check_shapes


def check_logits(outputs: Tensor, targets: Tensor) -> None:
    """Raise ValueError unless outputs are logits [N, B, C], and targets [N, B] of no floating dtype; reads no value."""
    _check_shapes({"outputs [N, B, C]": outputs, "targets [N, B]": targets})
    if targets.is_floating_point():
        raise ValueError(
            f"targets of classes must be of a dtype of whole numbers, not {targets.dtype}: give targets.long()"
        )


def check_scores(outputs: Tensor, targets: Tensor) -> None:
    """Raise ValueError unless outputs are scores [N, B], and so are targets in shape; reads no value."""
    _check_shapes({"outputs [N, B]": outputs, "targets [N, B]": targets})


def check_classes(targets: Tensor, classes: int) -> None:
    """Raise ValueError unless all targets [N, B], of any dtype, are whole numbers from 0 to C - 1, with C >= 2."""
    if classes < 2:
        raise ValueError("a single class has no rest to be set against; give scores as [B]: outputs.squeeze(-1)")
    if targets.dtype == torch.bool:
        return
    fits = (targets >= 0) & (targets < classes) & (targets == targets.round())
    if fits.all():
        return
    wrong = targets[~fits][0].item()
    way_out = "" if wrong == round(wrong) else "; targets on a scale are not supported: make classes of them"
    if wrong < 0:
        way_out = "; leave out what is to be ignored: keep = targets >= 0; outputs[keep], targets[keep]"
    raise ValueError(f"targets must be whole numbers from 0 to {classes - 1}, not {wrong:g}{way_out}")


def _check_shapes(tensors: dict[str, Tensor]) -> None:
    try:
        check_shapes(tensors)
    except ValueError as error:
        raise ValueError(f"{error}{_way_out(*tensors.values())}") from None


def _way_out(outputs: Tensor, targets: Tensor) -> str:
    """Return how predictions [N, B, ...] of another shape can be given; its code is of one batch, [B, ...]."""
    if outputs.dim() == 2 and targets.shape == outputs.shape:
        return "; scores [B] of two classes are for SetReLoss"
    if outputs.dim() == 3 and outputs.shape[-1] == 1:
        both = ", targets.squeeze(-1)" if targets.shape == outputs.shape else ""
        return f"; give scores [B], to SetReLoss: outputs.squeeze(-1){both}"
    if outputs.dim() == 3 and targets.shape == outputs.shape:
        if bool(((targets == 0) | (targets == 1)).all() and (targets.sum(-1) == 1).all()):
            return "; one-hot targets become classes by targets.argmax(-1)"
        return "; make each label an example, for SetReLoss: outputs.flatten(), targets.flatten()"
    if outputs.dim() > 3 and targets.shape == outputs.shape[:2] + outputs.shape[3:]:
        return "; make each pixel an example: outputs.movedim(1, -1).flatten(0, -2), targets.flatten()"
    return ""
