"""Soft ranks as sums of Laplace distribution functions: exact in O(n log n).

rank_i = sum over j != i of CDF((x_i - x_j) / t), with the distribution function of the standard Laplace distribution.
On sorted values its exponentials factor along the order, so that all n^2 terms collapse into two recurrences.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reloss.ranking.scans import decaying_sum


def laplace_rank(values: Tensor, temperature: float) -> Tensor:
    """Return the soft ranks of `values` [..., n], float32 or float64, with n >= 1, at the scale `temperature` > 0."""
    ranks: Tensor = _LaplaceRank.apply(values, temperature)
    return ranks


class _LaplaceRank(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, temperature: float) -> Tensor:
        order = values.argsort(dim=-1, stable=True)
        back = _inverse(order)
        ranks, decays, mass = _sorted_ranks(values.gather(-1, order), temperature)
        ctx.temperature = temperature
        ctx.save_for_backward(values, order, back, decays, mass)
        return ranks.gather(-1, back)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        values, order, back, decays, mass = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted: differentiate the recurrences themselves
            ranks = _sorted_ranks(values.gather(-1, order), ctx.temperature)[0].gather(-1, back)
            (result,) = torch.autograd.grad(ranks, values, gradient, create_graph=True)
            return result, None
        # d rank_i / d x_j = -k_ij, d rank_i / d x_i = sum_j k_ij, with k_ij = exp(-|x_i - x_j| / t) / 2t.
        gradient = gradient.gather(-1, order)
        result = (gradient * mass - _neighbours(gradient, decays)) / (2 * ctx.temperature)
        return result.gather(-1, back), None


def _sorted_ranks(values: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return ranks of ascending `values`, decays between neighbours, and sums over j != i of exp(-|x_i - x_j| / t)."""
    gaps = values.diff(dim=-1, prepend=values[..., :1]) / temperature
    decays = (-gaps).exp()
    ones = torch.ones_like(values)
    below, above = _below(ones, decays), _above(ones, decays)
    places = torch.arange(values.shape[-1], dtype=values.dtype, device=values.device)
    return places + (above - below) / 2, decays, below + above


def _neighbours(weights: Tensor, decays: Tensor) -> Tensor:
    """Return the sum over j != i of weights_j exp(-|x_i - x_j| / t)."""
    return _below(weights, decays) + _above(weights, decays)


def _below(weights: Tensor, decays: Tensor) -> Tensor:
    """Return the same sum over j < i. decays_i = exp(-(x_i - x_{i-1}) / t)."""
    shifted = torch.nn.functional.pad(weights[..., :-1], (1, 0))
    return decaying_sum(decays * shifted, decays)


def _above(weights: Tensor, decays: Tensor) -> Tensor:
    """Return the same sum over j > i."""
    flipped = torch.nn.functional.pad(decays[..., 1:], (0, 1)).flip(-1)
    return _below(weights.flip(-1), flipped).flip(-1)


def _inverse(order: Tensor) -> Tensor:
    places = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)
