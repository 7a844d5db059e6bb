"""Soft ranks and Kendall correlations from all pairs, in chunks of rows so that memory stays bounded.

Both are sums over all pairs (i, j) of a function of x_i - x_j. A rank sums a sigmoid, the smooth version of "x_j is
smaller" (Qin, Liu and Li, "A general approximation framework for direct optimization of information retrieval
measures", Information Retrieval 2010). A soft concordance, the numerator of Kendall's tau, sums a tanh, the smooth
version of the sign of x_i - x_j, times the sign of y_i - y_j. One autograd function computes both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

CHUNK = 1 << 22  # pairs in memory at a time, over all rows of the batch


def pairwise_rank(values: Tensor, temperature: float) -> Tensor:
    """Return rank_i = sum over j != i of sigmoid((x_i - x_j) / t) for `values` [..., n]; O(n^2) work in chunks."""
    ranks: Tensor = _PairSum.apply(values, values.detach(), temperature, SIGMOID)
    return ranks - 0.5  # the term with j = i


def soft_concordance(x: Tensor, y: Tensor, temperature: float) -> Tensor:
    """Return the sum over i, j of tanh((x_i - x_j) / t) sign(y_i - y_j), [...]. Differentiable in x."""
    sums: Tensor = _PairSum.apply(x, y.detach(), temperature, TANH)
    return sums.sum(-1)


class _Term(NamedTuple):
    """A function of (x_i - x_j) / t and y_i - y_j, with its derivative in the first argument.

    `parity` is 1 if that derivative is the same for (j, i) as for (i, j), and -1 if it changes its sign.
    """

    value: Callable[[Tensor, Tensor], Tensor]
    slope: Callable[[Tensor, Tensor], Tensor]
    parity: int


SIGMOID = _Term(lambda x, y: torch.sigmoid(x), lambda x, y: torch.sigmoid(x) * torch.sigmoid(-x), 1)
TANH = _Term(lambda x, y: torch.tanh(x) * y.sign(), lambda x, y: (1 - torch.tanh(x).square()) * y.sign(), -1)


def _chunks(values: Tensor) -> Iterator[slice]:
    rows = max(1, CHUNK // max(values.numel(), 1))
    for start in range(0, values.shape[-1], rows):
        yield slice(start, start + rows)


def _differences(values: Tensor, rows: slice) -> Tensor:
    return values[..., rows, None] - values[..., None, :]


class _PairSum(torch.autograd.Function):
    """[..., n]: the sum over j of a term of (x_i - x_j) / t and y_i - y_j. Differentiable in x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, temperature: float, term: _Term) -> Tensor:
        ctx.temperature, ctx.term = temperature, term
        ctx.save_for_backward(x, y)
        return _pair_sum(x, y, temperature, term)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        x, y = ctx.saved_tensors
        if torch.is_grad_enabled():  # for second derivatives: let autograd differentiate the sum
            sums = _pair_sum(x, y, ctx.temperature, ctx.term)
            (result,) = torch.autograd.grad(sums, x, gradient, create_graph=True)
            return result, None, None, None
        parts = []
        with torch.autocast(x.device.type, enabled=False):  # the product of matrices would run in half precision
            for rows in _chunks(x):
                slopes = ctx.term.slope(_differences(x, rows) / ctx.temperature, _differences(y, rows))
                # x_i appears in sum i, and with the opposite sign in every sum j.
                column_sums = (slopes @ gradient[..., None]).squeeze(-1)
                parts.append(slopes.sum(-1) * gradient[..., rows] - ctx.term.parity * column_sums)
        return torch.cat(parts, -1) / ctx.temperature, None, None, None


def _pair_sum(x: Tensor, y: Tensor, temperature: float, term: _Term) -> Tensor:
    parts = [term.value(_differences(x, rows) / temperature, _differences(y, rows)).sum(-1) for rows in _chunks(x)]
    return torch.cat(parts, -1)
