"""Soft ranks and soft Kendall correlation from all pairs, in chunks of rows so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

CHUNK = 1 << 22  # pairs held at a time, over all rows of the batch


def pairwise_rank(values: Tensor, temperature: float) -> Tensor:
    """Return rank_i = sum over j != i of sigmoid((x_i - x_j) / t) for `values` [..., n]; O(n^2) work in chunks."""
    ranks: Tensor = _PairSum.apply(values, values.detach(), temperature, SIGMOID)
    return ranks - 0.5  # the term of j = i


def soft_concordance(x: Tensor, y: Tensor, temperature: float) -> Tensor:
    """Return sum over i, j of tanh((x_i - x_j) / t) sign(y_i - y_j), [...]; differentiable in x."""
    sums: Tensor = _PairSum.apply(x, y.detach(), temperature, TANH)
    return sums.sum(-1)


def concordance(x: Tensor, y: Tensor) -> Tensor:
    """Return sum over i, j of sign(x_i - x_j) sign(y_i - y_j), [...]; not differentiable."""
    return _pair_sum(x.detach(), y.detach(), 1.0, SIGN).sum(-1)


class _Term(NamedTuple):
    """A function of (x_i - x_j) / t and y_i - y_j, with its derivative in the first.

    `parity` is that derivative's when i and j change places: 1 if it stays, -1 if it changes its sign.
    """

    value: Callable[[Tensor, Tensor], Tensor]
    slope: Callable[[Tensor, Tensor], Tensor]
    parity: int


SIGMOID = _Term(lambda x, y: torch.sigmoid(x), lambda x, y: torch.sigmoid(x) * torch.sigmoid(-x), 1)
TANH = _Term(lambda x, y: torch.tanh(x) * y.sign(), lambda x, y: (1 - torch.tanh(x).square()) * y.sign(), -1)
SIGN = _Term(lambda x, y: x.sign() * y.sign(), lambda x, y: torch.zeros_like(x), 1)


def _chunks(values: Tensor) -> Iterator[slice]:
    rows = max(1, CHUNK // max(values.numel(), 1))
    for start in range(0, values.shape[-1], rows):
        yield slice(start, start + rows)


def _differences(values: Tensor, rows: slice) -> Tensor:
    return values[..., rows, None] - values[..., None, :]


class _PairSum(torch.autograd.Function):
    """[..., n]: sum over j of a term of (x_i - x_j) / t and y_i - y_j; differentiable in x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, temperature: float, term: _Term) -> Tensor:
        ctx.temperature, ctx.term = temperature, term
        ctx.save_for_backward(x, y)
        return _pair_sum(x, y, temperature, term)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        x, y = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted: differentiate the sum itself
            sums = _pair_sum(x, y, ctx.temperature, ctx.term)
            (result,) = torch.autograd.grad(sums, x, gradient, create_graph=True)
            return result, None, None, None
        parts = []
        for rows in _chunks(x):
            slopes = ctx.term.slope(_differences(x, rows) / ctx.temperature, _differences(y, rows))
            # x_i stands in its own sum, and with the other sign in those of all j.
            in_others = (slopes @ gradient[..., None]).squeeze(-1)
            parts.append(slopes.sum(-1) * gradient[..., rows] - ctx.term.parity * in_others)
        return torch.cat(parts, -1) / ctx.temperature, None, None, None


def _pair_sum(x: Tensor, y: Tensor, temperature: float, term: _Term) -> Tensor:
    parts = [term.value(_differences(x, rows) / temperature, _differences(y, rows)).sum(-1) for rows in _chunks(x)]
    return torch.cat(parts, -1)
