"""Correlations along the last axis.

Spearman's correlation is Pearson's correlation of ranks; Kendall's compares the order of x and y in every pair. The
soft versions use soft ranks or soft signs of x, so that x can be learned, and treat y as fixed. If x or y is constant,
the correlation is undefined; here it is 0 with zero gradient, never NaN.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reloss.ranking.hard import Ties, check_pair, check_values, hard_rank
from reloss.ranking.inversions import count_inversions
from reloss.ranking.options import Method, as_float, check_scale, standardized
from reloss.ranking.pairwise import soft_concordance
from reloss.ranking.soft import soft_rank
from reloss.ranking.sorting import gather, run_starts, stable_order


def pearson(x: Tensor, y: Tensor) -> Tensor:
    """Return Pearson's correlation of x [..., n] and y [..., n] as [...]; 0 if x or y is constant.

    Computed in float32 (float64 if x or y is float64 or holds integers), at any scale. Differentiable in both. Leading
    axes broadcast.

    Raises:
        ValueError: n is 0, or the shapes do not agree.
    """
    check_pair(x, y)
    return (standardized(x) * standardized(y)).mean(-1)


def spearman(x: Tensor, y: Tensor) -> Tensor:
    """Return Spearman's rank correlation of x [..., n] and y [..., n] as [...], with mean ranks for ties.

    Equal to `scipy.stats.spearmanr`, except that a constant x or y gives 0 instead of NaN. Not differentiable.

    Raises:
        ValueError: n is 0, the shapes do not agree, or a value is NaN or infinite.
    """
    check_pair(x, y)
    return pearson(hard_rank(x), hard_rank(y))


def soft_spearman(
    x: Tensor,
    y: Tensor,
    method: Method = "bitonic",
    *,
    standardize: bool = True,
    ties: Ties = "mean",
    **options: Any,
) -> Tensor:
    """Return Spearman's rank correlation of soft ranks of x and hard ranks of y. Differentiable in x.

    Args:
        x: [..., n] values to learn.
        y: [..., n] values to agree with.
        method: how x is ranked, see `soft_rank`.
        standardize: give x mean 0 and standard deviation 1 first. Without it the soft ranks depend on the scale of x,
            see `soft_rank`.
        ties: how equal values of y are ranked, see `hard_rank`. The authors' release uses `ordinal`.
        options: further options of `soft_rank` for this method.

    Returns:
        [...] correlations in [-1, 1].

    Raises:
        ValueError: n is 0, the shapes do not agree, a value is NaN or infinite, or an option is invalid or belongs to
            another method.
    """
    check_pair(x, y)
    check_values(x)
    # A network can give a constant row unequal soft ranks, so its correlation is set to 0.
    varies = (x != x[..., :1]).any(-1)
    ranks = soft_rank(x, method, standardize=standardize, **options)
    return torch.where(varies, pearson(ranks, hard_rank(y, ties)), 0.0)


def kendall(x: Tensor, y: Tensor) -> Tensor:
    """Return Kendall's tau-b of x [..., n] and y [..., n] as [...] (Kendall, Biometrika 1945).

    Counts the pairs in different order exactly, in O(n log n) work and O(n) memory (Knight, 1966). Equal to
    `scipy.stats.kendalltau`, except that a constant x or y gives 0 instead of NaN. Not differentiable.

    Raises:
        ValueError: n is 0, the shapes do not agree, or a value is NaN or infinite.
    """
    check_pair(x, y)
    x, y = torch.broadcast_tensors(hard_rank(x), hard_rank(y))  # ranks are exact in float32, unlike large integers
    dtype = torch.promote_types(x.dtype, y.dtype)
    # Sorted by x, and equal x by y, the pairs that y orders differently are the inversions of the places in y's order.
    # There, equal y are sorted by x, so that equal values add no inversion.
    by_x = stable_order(x)
    by_y = gather(by_x, stable_order(gather(y, by_x)))
    order = stable_order(gather(x, by_y))
    inversions = count_inversions(order)
    x_steps, y_steps = (gather(gather(side, by_y), order).diff(dim=-1) != 0 for side in (x, y))
    pairs = y.shape[-1] * (y.shape[-1] - 1) // 2
    unequal_x = pairs - _equal_pairs(x_steps)
    unequal_y = pairs - _equal_pairs(gather(y, by_y).diff(dim=-1) != 0)
    unequal_both = unequal_x + unequal_y - pairs + _equal_pairs(x_steps | y_steps)
    return _normalized((unequal_both - 2 * inversions).double(), unequal_x.double() * unequal_y.double()).to(dtype)


def _equal_pairs(steps: Tensor) -> Tensor:
    """Return the number of pairs of equal values in sorted rows, [...]; `steps` as for `run_starts`."""
    starts = run_starts(steps)
    return (torch.arange(starts.shape[-1], device=starts.device) - starts).sum(-1)


def soft_kendall(x: Tensor, y: Tensor, *, standardize: bool = True, temperature: float = 0.1) -> Tensor:
    """Return Kendall's tau-b with tanh((x_i - x_j) / temperature) instead of the sign in x. Differentiable in x.

    If the values of x are distinct, it converges to `kendall` as the temperature goes to 0. For a related loss see
    Zheng, Zhang and Huang, "DiffKendall", NeurIPS 2023.

    Args:
        x: [..., n] values to learn.
        y: [..., n] values to agree with; pairs of equal values do not count.
        standardize: give x mean 0 and standard deviation 1 first, so that the temperature is relative to its spread.
        temperature: differences in x well above it count fully, smaller ones in proportion.

    Returns:
        [...] correlations in [-1, 1].

    Raises:
        ValueError: n is 0, the shapes do not agree, a value is NaN or infinite, or the temperature is not positive.
    """
    check_pair(x, y)
    check_values(x)
    check_scale("temperature", temperature)
    x, y = torch.broadcast_tensors(standardized(x) if standardize else as_float(x), hard_rank(y))
    n = x.shape[-1]
    return _normalized(soft_concordance(x, y, temperature), n * (n - 1) * _unequal_pairs(y))


def _unequal_pairs(values: Tensor) -> Tensor:
    """Return the number of ordered pairs of unequal values, [...]."""
    values = values.detach().contiguous()
    sorted_values = values.sort(dim=-1).values
    end, start = (torch.searchsorted(sorted_values, values, right=right) for right in (True, False))
    return (values.shape[-1] - (end - start)).sum(-1).to(values.dtype)


def _normalized(numerator: Tensor, squared_norm: Tensor) -> Tensor:
    """Return numerator / sqrt(squared_norm), and 0 where the squared norm is 0."""
    return torch.where(squared_norm > 0, numerator / torch.where(squared_norm > 0, squared_norm, 1.0).sqrt(), 0.0)
