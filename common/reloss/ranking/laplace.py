"""Soft ranks as sums of Laplace distribution functions, exact in O(n log n).

A hard rank counts the smaller values: one step function per other value. Here each step becomes the cumulative
distribution function (CDF) of the standard Laplace distribution: rank_i = sum over j != i of CDF((x_i - x_j) / t). Its
tails are exponentials, which factor along the sorted values, so that all n^2 terms collapse into two running sums.

Source: the operator F-Rank of Struski, Bednarczyk, Podolak and Tabor, "LapSum - One Method to Differentiate Them All:
Ranking, Sorting and Top-k Selection", ICML 2025.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from reloss.ranking.scans import decay_factors, decayed_sums


def laplace_rank(values: Tensor, temperature: float) -> Tensor:
    """Return the soft ranks [..., n] of `values` [..., n], float32 or float64, n >= 1, for `temperature` > 0."""
    rows = values.flatten() if values.numel() == values.shape[-1] else values  # a 1-d gather takes half the time
    ranks: Tensor = _LaplaceRank.apply(rows, temperature)
    return ranks.view(values.shape)


class _LaplaceRank(torch.autograd.Function):
    """The ranks of `laplace_rank` with a gradient in closed form."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, temperature: float) -> Tensor:
        sorted_values, order = _sort(values)
        ranks, kernel_sums, factors = _sorted_ranks(sorted_values.double().div_(temperature))
        ctx.temperature = temperature
        ctx.save_for_backward(values, order, kernel_sums, *factors)
        return _scatter(ranks.to(values.dtype), order)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        values, order, kernel_sums, *factors = ctx.saved_tensors
        if torch.is_grad_enabled():  # for second derivatives: let autograd differentiate the sums
            scaled = _gather(values, order).double() / ctx.temperature
            ranks = _scatter(_sorted_ranks(scaled)[0].to(values.dtype), order)
            (result,) = torch.autograd.grad(ranks, values, gradient, create_graph=True)
            return result, None
        # With k_ij = exp(-|x_i - x_j| / t) / 2t: d rank_i / d x_j = -k_ij, d rank_i / d x_i = sum over j != i of k_ij.
        # The sums below run over all j, and the terms with j = i cancel.
        gradient = _gather(gradient, order).double()
        left_sums, right_sums = decayed_sums(gradient, tuple(factors))
        result = (gradient * kernel_sums).sub_(left_sums).sub_(right_sums).div_(2 * ctx.temperature)
        return _scatter(result.to(values.dtype), order), None


def _sorted_ranks(scaled: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Return the ranks of ascending `scaled` = x / t, [..., n], and two intermediate results for the gradient.

    Returns:
        The ranks; 1 + the sums over all j of exp(-|x_i - x_j| / t), both [..., n]; and the factors of `decayed_sums`.
    """
    factors = decay_factors(scaled)
    left_sums, right_sums = decayed_sums(None, factors)
    places = torch.arange(scaled.shape[-1], dtype=scaled.dtype, device=scaled.device)
    kernel_sums = left_sums + right_sums
    return right_sums.sub_(left_sums).div_(2).add_(places), kernel_sums, factors


def _sort(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return `values` in ascending order, and the order. On a CPU by radix sort, in a quarter of PyTorch's time."""
    if values.device.type != "cpu":
        return values.sort(dim=-1)
    order = _radix_order(values)
    return _gather(values, order), order


def _radix_order(values: Tensor) -> Tensor:
    """Return the stable ascending order of float32 or float64 `values` [..., n] on a CPU, in O(n).

    Read as integers, the bits of floats sort like the floats once the sign bit is flipped, and for negative numbers all
    other bits too. The integers are sorted by 16 bits at a time, lowest bits first; NumPy sorts 16-bit integers by
    counting.
    """
    size = 8 * values.itemsize
    bits = values.numpy().view(f"i{values.itemsize}")
    keys = bits ^ (bits >> (size - 1) | np.iinfo(bits.dtype).min)
    order = _digit_order(torch.from_numpy(keys.astype(np.int16)))
    for shift in range(16, size, 16):
        digits = _gather(torch.from_numpy((keys >> shift).astype(np.int16)), order)
        order = _gather(order, _digit_order(digits))
    return order


def _digit_order(digits: Tensor) -> Tensor:
    return torch.from_numpy(digits.numpy().view(np.uint16).argsort(-1, kind="stable"))


def _gather(values: Tensor, order: Tensor) -> Tensor:
    return values.index_select(0, order) if values.dim() == 1 else values.gather(-1, order)


def _scatter(sorted_values: Tensor, order: Tensor) -> Tensor:
    return torch.empty_like(sorted_values).scatter(-1, order, sorted_values)
