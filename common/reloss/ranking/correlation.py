"""Correlations along the last axis. A constant side has no correlation: 0, with zero gradient, never NaN."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from reloss.ranking.hard import check_values, hard_rank
from reloss.ranking.pairwise import concordance, soft_concordance
from reloss.ranking.soft import Method, soft_rank, standardized


def pearson(x: Tensor, y: Tensor) -> Tensor:
    """Return Pearson's correlation of x [..., n] and y [..., n] as [...]; 0 where a side is constant or n is 1.

    Computed in float32 (float64 where a side is float64), at any scale; differentiable in both.

    Raises:
        ValueError: n is 0.
    """
    return (standardized(x) * standardized(y)).mean(-1)


def spearman(x: Tensor, y: Tensor) -> Tensor:
    """Return Spearman's rank correlation of x [..., n] and y [..., n] as [...], with mean ranks for ties.

    Equal to SciPy's, except that a constant side gives 0 and not NaN. Not differentiable.

    Raises:
        ValueError: n is 0, or a value is NaN or infinite.
    """
    return pearson(hard_rank(x), hard_rank(y))


def soft_spearman(
    x: Tensor,
    y: Tensor,
    method: Method = "bitonic",
    *,
    standardize: bool = True,
    ties: Literal["mean", "ordinal"] = "mean",
    **options: Any,
) -> Tensor:
    """Return Spearman's rank correlation with soft ranks of x and hard ranks of y; differentiable in x.

    Args:
        x: [..., n] values to learn.
        y: [..., n] values to agree with.
        method: how x is ranked, see `soft_rank`.
        standardize: give x mean 0 and standard deviation 1 first; without it the soft ranks degrade with the scale of
            x, see `soft_rank`.
        ties: how equal values of y are ranked, see `hard_rank`; the release takes `ordinal`.
        options: of `soft_rank`, those of the method.

    Returns:
        [...] correlations in [-1, 1].

    Raises:
        ValueError: n is 0, a value is NaN or infinite, or an option is wrong or of other methods.
    """
    check_values(x)
    # The soft ranks of a constant row need not be equal, so that row's correlation is set to 0, not computed.
    varies = (x != x[..., :1]).any(-1)
    ranks = soft_rank(x, method, standardize=standardize, **options)
    return torch.where(varies, pearson(ranks, hard_rank(y, ties)), 0.0)


def kendall(x: Tensor, y: Tensor) -> Tensor:
    """Return Kendall's tau-b of x [..., n] and y [..., n] as [...].

    All pairs are compared, in bounded memory: O(n^2) work, about 3 s at n = 10,000 on one core.
    Equal to SciPy's, except that a constant side gives 0 and not NaN. Not differentiable.

    Raises:
        ValueError: n is 0, or a value is NaN or infinite.
    """
    check_values(x)
    check_values(y)
    x, y = torch.broadcast_tensors(_wide(x), _wide(y))
    return _ratio(concordance(x, y), _ordered_pairs(x) * _ordered_pairs(y))


def soft_kendall(x: Tensor, y: Tensor, *, standardize: bool = True, temperature: float = 0.1) -> Tensor:
    """Return Kendall's tau-b with tanh((x_i - x_j) / temperature) for the sign in x; differentiable in x.

    It becomes `kendall` for distinct x as the temperature goes to 0.

    Args:
        x: [..., n] values to learn.
        y: [..., n] values to agree with; ties count for neither order.
        standardize: give x mean 0 and standard deviation 1 first, so that the temperature is relative to its spread.
        temperature: differences well above it count fully, those below it in proportion.

    Returns:
        [...] correlations in [-1, 1].

    Raises:
        ValueError: n is 0, a value is NaN or infinite, or a temperature that is not positive.
    """
    check_values(x)
    check_values(y)
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    x, y = torch.broadcast_tensors(standardized(_wide(x)) if standardize else _wide(x), _wide(y))
    n = x.shape[-1]
    return _ratio(soft_concordance(x, y, temperature), n * (n - 1) * _ordered_pairs(y))


def _ordered_pairs(values: Tensor) -> Tensor:
    """Return the number of ordered pairs of unequal values, [...]."""
    values = values.detach().contiguous()
    ordered = values.sort(dim=-1).values
    equal = torch.searchsorted(ordered, values, right=True) - torch.searchsorted(ordered, values, right=False)
    return (values.shape[-1] - equal).sum(-1).to(values.dtype)


def _ratio(numerator: Tensor, square: Tensor) -> Tensor:
    """Return numerator / sqrt(square), 0 where the square is 0."""
    return torch.where(square > 0, numerator / torch.where(square > 0, square, 1.0).sqrt(), 0.0)


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
