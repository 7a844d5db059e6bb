"""Soft ranks as sums of Laplace distribution functions, exact in O(n log n).

A hard rank counts the smaller values: one step function per other value. Here each step becomes the cumulative
distribution function (CDF) of the standard Laplace distribution: rank_i = sum over j != i of CDF((x_i - x_j) / t). Its
tails are exponentials, which factor along the sorted values, so that all n^2 terms collapse into two running sums.

Source: the operator F-Rank of Struski, Bednarczyk, Podolak and Tabor, "LapSum - One Method to Differentiate Them All:
Ranking, Sorting and Top-k Selection", ICML 2025.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reloss.ranking.laplace_row import MAX_SIZE, RowRanks, row_gradient, row_ranks
from reloss.ranking.scans import decay_factors, decayed_sums
from reloss.ranking.sorting import gather, scatter, stable_order


def laplace_rank(values: Tensor, temperature: float) -> Tensor:
    """Return the soft ranks [..., n] of `values` [..., n], float32 or float64, n >= 1, for `temperature` > 0."""
    if values.numel() != values.shape[-1]:
        ranks: Tensor = _LaplaceRank.apply(values, temperature)
        return ranks
    if values.numel() <= MAX_SIZE and values.device.type == "cpu" and not torch.compiler.is_compiling():
        row = row_ranks(values.detach().numpy().reshape(-1), temperature)
        if row is not None:
            ranks = _ShortRowRank.apply(values, row, temperature)
            return ranks
    ranks = _LaplaceRank.apply(values.flatten(), temperature)  # a 1-d gather takes half the time
    return ranks.view(values.shape)


def laplace_counts(values: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """Return the sums over j != i of weights_j CDF((x_i - x_j) / t) for `values` and `weights` [..., n].

    Weights of 1 give the ranks. Differentiable in both, any number of times.
    """
    order = stable_order(values.detach())
    scaled, ordered = gather(values, order).double() / temperature, gather(weights, order).double()
    left_sums, right_sums = decayed_sums(ordered, decay_factors(scaled))
    return scatter((ordered.cumsum(-1) - ordered + (right_sums - left_sums) / 2).to(values.dtype), order)


class _LaplaceRank(torch.autograd.Function):
    """The ranks of `laplace_rank` with a gradient in closed form."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, temperature: float) -> Tensor:
        order = stable_order(values)
        sorted_values = gather(values, order)
        ranks, kernel_sums, factors = _sorted_ranks(sorted_values.double().div_(temperature))
        ctx.temperature = temperature
        ctx.save_for_backward(values, order, kernel_sums, *factors)
        return scatter(ranks.to(values.dtype), order)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        values, order, kernel_sums, *factors = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _twice_differentiable(values, order, gradient, ctx.temperature), None
        # With k_ij = exp(-|x_i - x_j| / t) / 2t: d rank_i / d x_j = -k_ij, d rank_i / d x_i = sum over j != i of k_ij.
        # The sums below run over all j, and the terms with j = i cancel.
        gradient = gather(gradient, order).double()
        left_sums, right_sums = decayed_sums(gradient, tuple(factors))
        result = (gradient * kernel_sums).sub_(left_sums).sub_(right_sums).div_(2 * ctx.temperature)
        return scatter(result.to(values.dtype), order), None


class _ShortRowRank(torch.autograd.Function):
    """The same for a short row on a CPU, with less overhead; the ranks are computed before."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, row: RowRanks, temperature: float) -> Tensor:
        ctx.row, ctx.temperature = row, temperature
        ctx.save_for_backward(values)
        return torch.from_numpy(row.ranks.reshape(values.shape))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        if torch.is_grad_enabled():
            (values,) = ctx.saved_tensors
            order = torch.from_numpy(ctx.row.order).expand_as(values)
            return _twice_differentiable(values, order, gradient, ctx.temperature), None, None
        result = row_gradient(gradient.numpy().reshape(-1), ctx.row, ctx.temperature)
        return torch.from_numpy(result.reshape(gradient.shape)), None, None


def _twice_differentiable(values: Tensor, order: Tensor, gradient: Tensor, temperature: float) -> Tensor:
    """Return the gradient in the values by autograd through the sums, which can be differentiated again."""
    scaled = gather(values, order).double() / temperature
    ranks = scatter(_sorted_ranks(scaled)[0].to(values.dtype), order)
    (result,) = torch.autograd.grad(ranks, values, gradient, create_graph=True)
    return result


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
