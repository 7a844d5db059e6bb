"""Ordinary ranks, and the check of values that every kind of rank starts with.

The rank of a value is its place in the sorted row, counted from 0. Only ties leave a choice: equal values share the
mean of their places, or they get different places in an arbitrary order.
"""

import math
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from reloss.ranking.sorting import gather, run_starts, scatter, stable_order

Ties = Literal["mean", "ordinal"]
SMALL = 4096
# Tensors of these types have no `sort`. A wider signed type holds the first two; float64 rounds the last one.
_SORTED_AS = {
    torch.bool: torch.uint8,
    torch.uint16: torch.int32,
    torch.uint32: torch.int64,
    torch.uint64: torch.float64,
}


def check_values(values: Tensor, dim: int = -1) -> float:
    """Return the largest magnitude of `values`, after checking that the axis `dim` has n >= 1 and all are finite.

    Reading values would break a graph. So under `torch.compile`, and while a CUDA graph is captured, they are not
    checked, and 0 is returned.

    Raises:
        ValueError: n is 0, `values` is not a tensor of real, finite numbers, or `dim` is none of its axes. The message
            names the first bad index.
    """
    check_row(values, dim)
    if torch.compiler.is_compiling() or (values.is_cuda and torch.cuda.is_current_stream_capturing()):
        return 0.0
    if values.numel() == 0:
        return 0.0
    values = values.detach()
    if values.dtype in (torch.float32, torch.float64) and values.numel() <= SMALL and values.device.type == "cpu":
        largest = float(np.abs(values.numpy()).max())  # for few values in half the time of PyTorch
        if math.isfinite(largest):
            return largest
    smallest, largest = torch.stack(sortable(values).aminmax()).tolist()  # NaN and infinities are among the two
    if not (math.isfinite(smallest) and math.isfinite(largest)):
        index = tuple((~torch.isfinite(values)).nonzero()[0].tolist())
        raise ValueError(f"values must be finite, but values{list(index)} is {values[index].item()}")
    return float(max(-smallest, largest))


def check_row(values: Tensor, dim: int = -1) -> None:
    """Raise ValueError unless `values` is a tensor of real numbers whose axis `dim` has n >= 1. Reads no values."""
    if not isinstance(values, Tensor) or values.is_complex():
        kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"values must be a tensor of real numbers, not {kind}")
    if not (isinstance(dim, int) and -max(values.dim(), 1) <= dim < max(values.dim(), 1)):
        raise ValueError(f"dim must be an axis of values {list(values.shape)}, not {dim!r}")
    if values.dim() == 0 or values.shape[dim] == 0:
        if dim != -1:
            raise ValueError(f"values must have n >= 1 along dim {dim}, not the shape {list(values.shape)}")
        raise ValueError(f"values must be [..., n] with n >= 1, not {list(values.shape)}")


def check_pair(x: Tensor, y: Tensor) -> None:
    """Raise ValueError unless x [..., n] and y [..., n] have the same n >= 1 and leading sizes that broadcast.

    Reads no values.
    """
    check_row(x)
    check_row(y)
    shapes = [tuple(side.shape) for side in (x, y)]
    try:
        torch.broadcast_shapes(*(shape[:-1] for shape in shapes))
    except RuntimeError:
        agree = False
    else:
        agree = shapes[0][-1] == shapes[1][-1]
    if not agree:
        both = " and ".join(str(list(shape)) for shape in shapes)
        raise ValueError(f"x and y must be [..., n] with the same n, not {both}; correlations are along the last axis")


def sortable(values: Tensor) -> Tensor:
    """Return `values`, in another dtype if theirs cannot be sorted."""
    return values.to(_SORTED_AS.get(values.dtype, values.dtype))


def hard_rank(values: Tensor, ties: Ties = "mean") -> Tensor:
    """Return the ranks of `values` along the last axis, ascending from 0. Not differentiable.

    Args:
        values: [..., n], finite, any real dtype.
        ties: `mean` gives equal values the mean of their places, as `scipy.stats.rankdata` does. `ordinal` gives them
            different places in an arbitrary order: the double argsort of the authors' release.

    Returns:
        [..., n] in float32 (float64 for float64 values), each in [0, n - 1].

    Raises:
        ValueError: n is 0, a value is NaN or infinite, or `ties` is neither.
    """
    check_values(values)
    if ties not in get_args(Ties):
        raise ValueError(f"ties must be one of {', '.join(get_args(Ties))}, not {ties!r}")
    dtype = torch.float64 if values.dtype == torch.float64 else torch.float32
    values = sortable(values.detach())
    if ties == "ordinal":
        return values.argsort(dim=-1).argsort(dim=-1).to(dtype)
    order = stable_order(values)
    steps = gather(values, order).diff(dim=-1) != 0
    starts = run_starts(steps)
    ends = (values.shape[-1] - 1) - run_starts(steps.flip(-1)).flip(-1)
    return scatter((starts + ends).to(dtype) / 2, order)  # equal values take the places start .. end
