"""Ordinary ranks, and the check of values that every kind of rank begins with."""

import math
from typing import Literal

import torch
from torch import Tensor


def check_values(values: Tensor) -> None:
    """Raise ValueError unless `values` [..., n] has n >= 1 and is finite; the message names the first bad index.

    Under `torch.compile`, and where a CUDA graph is captured, values are not looked at: that would break the graph.
    """
    if values.dim() == 0 or values.shape[-1] == 0:
        raise ValueError(f"values must be [..., n] with n >= 1, not {list(values.shape)}")
    if torch.compiler.is_compiling() or (values.is_cuda and torch.cuda.is_current_stream_capturing()):
        return
    if math.isfinite(values.detach().sum().item()):  # then all are: quicker than to ask each
        return
    finite = torch.isfinite(values)
    if not finite.all():
        index = tuple((~finite).nonzero()[0].tolist())
        raise ValueError(f"values must be finite, but values{list(index)} is {values[index].item()}")


def hard_rank(values: Tensor, ties: Literal["mean", "ordinal"] = "mean") -> Tensor:
    """Return the ranks of `values` along the last axis, ascending from 0; not differentiable.

    Args:
        values: [..., n], finite, of any real type.
        ties: `mean` gives equal values the mean of the places that they take, as statisticians do; `ordinal` gives
            them different places in an arbitrary order (double argsort, as in the release: trap 3 of the paper's code).

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
    ordered = values.sort(dim=-1).values
    first = torch.searchsorted(ordered, values, right=False)
    after = torch.searchsorted(ordered, values, right=True)
    return (first + after - 1).to(dtype) / 2
