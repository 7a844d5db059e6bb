"""Ordinary ranks, and the check of values that every kind of rank starts with.

The rank of a value is its place in the sorted row, counted from 0. Only ties leave a choice: equal values share the
mean of their places, or they get different places in an arbitrary order.
"""

import math
from typing import Literal

import torch
from torch import Tensor


def check_values(values: Tensor) -> None:
    """Raise ValueError unless `values` [..., n] has n >= 1 and is finite. The message names the first bad index.

    Reading values would break a graph. So they are not checked under `torch.compile` or while a CUDA graph is captured.
    """
    if values.dim() == 0 or values.shape[-1] == 0:
        raise ValueError(f"values must be [..., n] with n >= 1, not {list(values.shape)}")
    if torch.compiler.is_compiling() or (values.is_cuda and torch.cuda.is_current_stream_capturing()):
        return
    if math.isfinite(values.detach().sum().item()):  # a finite sum means finite values: faster than checking each one
        return
    finite = torch.isfinite(values)
    if not finite.all():
        index = tuple((~finite).nonzero()[0].tolist())
        raise ValueError(f"values must be finite, but values{list(index)} is {values[index].item()}")


def hard_rank(values: Tensor, ties: Literal["mean", "ordinal"] = "mean") -> Tensor:
    """Return the ranks of `values` along the last axis, ascending from 0. Not differentiable.

    Args:
        values: [..., n], finite, any real dtype.
        ties: `mean` gives equal values the mean of their places, as `scipy.stats.rankdata` does. `ordinal` gives them
            different places in an arbitrary order: the double argsort of the authors' release.

    Returns:
        [..., n] in float32 (float64 for float64 values), each in [0, n - 1].

    Raises:
        ValueError: n is 0, or a value is NaN or infinite.
    """
    check_values(values)
    dtype = torch.float64 if values.dtype == torch.float64 else torch.float32
    values = values.detach()
    values = values.byte() if values.dtype == torch.bool else values
    if ties == "ordinal":
        return values.argsort(dim=-1).argsort(dim=-1).to(dtype)
    values = values.contiguous()
    sorted_values = values.sort(dim=-1).values
    start = torch.searchsorted(sorted_values, values, right=False)  # equal values take the places start .. end - 1
    end = torch.searchsorted(sorted_values, values, right=True)
    return (start + end - 1).to(dtype) / 2
