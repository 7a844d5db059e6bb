"""Correlations along the last axis. A constant side has no correlation: 0, with zero gradient, never NaN."""

from typing import Any, Literal

import torch
from torch import Tensor

from reloss.ranking.hard import check_values, hard_rank
from reloss.ranking.networks import Method, soft_rank


def pearson(x: Tensor, y: Tensor) -> Tensor:
    """Return Pearson's correlation of x [..., n] and y [..., n] as [...]; 0 where a side is constant or n is 1.

    Computed in float32 (float64 where a side is float64), at any scale; differentiable in both.

    Raises:
        ValueError: n is 0.
    """
    return (_standardized(x) * _standardized(y)).mean(-1)


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
        standardize: give x mean 0 and standard deviation 1 first. Without it the soft ranks degrade with the scale of
            x: for n = 256 their correlation with the true ranks is .99 at standard deviation 1, .14 at 0.1.
        ties: how equal values of y are ranked, see `hard_rank`; the release takes `ordinal`.
        options: of `soft_rank`.

    Returns:
        [...] correlations in [-1, 1].

    Raises:
        ValueError: n is 0, or a value is NaN or infinite.
    """
    check_values(x)  # before they are standardised, so that the message names the bad index
    # The soft ranks of a constant row need not be equal, so that row's correlation is set to 0, not computed.
    varies = (x != x[..., :1]).any(-1)
    values = _standardized(x) if standardize else x
    return torch.where(varies, pearson(soft_rank(values, method, **options), hard_rank(y, ties)), 0.0)


def _standardized(values: Tensor) -> Tensor:
    """Give each row mean 0 and standard deviation 1; a constant row becomes zeros that pass no gradient."""
    if values.shape[-1] == 0:
        raise ValueError(f"values must be [..., n] with n >= 1, not {list(values.shape)}")
    values = values if values.dtype == torch.float64 else values.float()
    # Compared, not subtracted: the mean of equal values is rounded, so a constant row does not centre to exact zeros.
    varies = (values != values[..., :1]).any(-1, keepdim=True)
    centred = torch.where(varies, values - values.mean(-1, keepdim=True), 0.0)
    largest = centred.detach().abs().amax(-1, keepdim=True)
    centred = centred / torch.where(largest > 0, largest, 1.0)  # else squares of small or large values leave float32
    variance = (centred * centred).mean(-1, keepdim=True)
    return centred / torch.where(variance > 0, variance, 1.0).sqrt()
