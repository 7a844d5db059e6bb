"""Soft ranks as sums of Laplace distribution functions: exact in O(n log n).

rank_i = sum over j != i of CDF((x_i - x_j) / t), with the distribution function of the standard Laplace distribution.
On sorted values its exponentials factor along the order, so that all n^2 terms collapse into sums from either side.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from reloss.ranking.scans import decay_factors, decayed_sums


def laplace_rank(values: Tensor, temperature: float) -> Tensor:
    """Return the soft ranks of `values` [..., n], float32 or float64, with n >= 1, at the scale `temperature` > 0."""
    rows = values.flatten() if values.numel() == values.shape[-1] else values  # one row is gathered in half the time
    ranks: Tensor = _LaplaceRank.apply(rows, temperature)
    return ranks.view(values.shape)


class _LaplaceRank(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, temperature: float) -> Tensor:
        ordered, order = _sort(values)
        ranks, mass, factors = _sorted_ranks(ordered.double().div_(temperature))
        ctx.temperature = temperature
        ctx.save_for_backward(values, order, mass, *factors)
        return _scatter(ranks.to(values.dtype), order)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        values, order, mass, *factors = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted: differentiate the sums themselves
            scaled = _gather(values, order).double() / ctx.temperature
            ranks = _scatter(_sorted_ranks(scaled)[0].to(values.dtype), order)
            (result,) = torch.autograd.grad(ranks, values, gradient, create_graph=True)
            return result, None
        # d rank_i / d x_j = -k_ij, d rank_i / d x_i = sum_j k_ij over j != i, with k_ij = exp(-|x_i - x_j| / t) / 2t.
        # The sums below run over all j, so that the term j = i cancels.
        gradient = _gather(gradient, order).double()
        below, above = decayed_sums(gradient, tuple(factors))
        result = (gradient * mass).sub_(below).sub_(above).div_(2 * ctx.temperature)
        return _scatter(result.to(values.dtype), order), None


def _sorted_ranks(scaled: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Return ranks of ascending x / t, 1 + the sums over all j of exp(-|x_i - x_j| / t), and the factors of sums."""
    factors = decay_factors(scaled)
    below, above = decayed_sums(None, factors)
    places = torch.arange(scaled.shape[-1], dtype=scaled.dtype, device=scaled.device)
    mass = below + above
    return above.sub_(below).div_(2).add_(places), mass, factors


def _sort(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return `values` in ascending order, and that order; on a CPU by radix sort, at a quarter of PyTorch's time."""
    if values.device.type != "cpu":
        return values.sort(dim=-1)
    order = _radix_order(values)
    return _gather(values, order), order


def _radix_order(values: Tensor) -> Tensor:
    """Return the stable order of float32 or float64 `values` [..., n] on a CPU, in O(n).

    Their bits, of negative numbers all flipped and of others the sign, are whole numbers of the same order. These are
    sorted by 16 bits at a time, the last first, which NumPy does by counting.
    """
    size = 8 * values.itemsize
    bits = values.numpy().view(f"i{values.itemsize}")
    keys = bits ^ (bits >> (size - 1) | np.iinfo(bits.dtype).min)
    order = _order_of_digits(torch.from_numpy(keys.astype(np.int16)))
    for shift in range(16, size, 16):
        digits = _gather(torch.from_numpy((keys >> shift).astype(np.int16)), order)
        order = _gather(order, _order_of_digits(digits))
    return order


def _order_of_digits(digits: Tensor) -> Tensor:
    return torch.from_numpy(digits.numpy().view(np.uint16).argsort(-1, kind="stable"))


def _gather(values: Tensor, order: Tensor) -> Tensor:
    return values.index_select(0, order) if values.dim() == 1 else values.gather(-1, order)


def _scatter(ordered: Tensor, order: Tensor) -> Tensor:
    return torch.empty_like(ordered).scatter(-1, order, ordered)
