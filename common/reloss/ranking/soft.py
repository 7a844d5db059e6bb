"""Differentiable ranks: one function, four methods.

A soft rank replaces the step functions of a hard rank by smooth ones. `bitonic` and `odd_even` soften the swaps of a
sorting network; `laplace` and `pairwise` soften the comparison of a value with every other value.

Properties. The ranks of a row sum to n(n-1)/2.

- The sums (`laplace`, `pairwise`) do not depend on the order of the input, never misorder two values, and raise the
  rank of a value with the value. Equal values get equal ranks.
- The networks guarantee none of this. They keep ranks in [0, n-1], but the ranks depend on the order of the input,
  close values may be misordered, and a rank may fall when its value rises. If n is not a power of two, `bitonic` lacks
  some comparisons. For most such n above 20 it can misorder even well separated values, as diffsort can, and warns
  (n = 22 is the smallest such n). Equal values are mixed half and half at every comparison. That makes the ranks of a
  constant row equal for `bitonic` if n is a power of two; otherwise it only draws them together.

Scale. If the values spread little compared with 1 / steepness or the temperature, all ranks move towards (n-1)/2. For
`bitonic` and n = 256 normal values, soft and hard ranks correlate by .99 at standard deviation 1, by .6 at 0.3 and by
.06 at 0.1. `standardize=True` divides each row by its standard deviation first and so removes this dependence.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from reloss.ranking.hard import check_row, check_values, sortable
from reloss.ranking.laplace import laplace_rank
from reloss.ranking.networks import Comparator, Interpolation, Network, network_rank
from reloss.ranking.pairwise import pairwise_rank

Method = Literal["bitonic", "odd_even", "laplace", "pairwise"]


def soft_rank(
    values: Tensor,
    method: Method = "bitonic",
    *,
    standardize: bool = False,
    steepness: float | None = None,
    interpolation: Interpolation | None = None,
    art_lambda: float | None = None,
    temperature: float | None = None,
) -> Tensor:
    """Return differentiable ranks of `values` along the last axis, ascending from 0.

    | method | work | definition | source |
    | --- | --- | --- | --- |
    | `bitonic` | n log^2 n | differentiable sorting network, the released method | Petersen et al., 2021 |
    | `odd_even` | n^2 | the same with n layers that compare neighbours | Petersen et al., 2021 |
    | `laplace` | n log n | sum over j != i of the Laplace CDF of (x_i - x_j) / temperature | Struski et al., 2025 |
    | `pairwise` | n^2, bounded memory | the same with the sigmoid | Qin et al., 2010 |

    The module's docstring compares their properties. Ranks can be differentiated twice, with finite gradients at ties.
    The transforms of `torch.func` (vmap, grad, jacrev) are not supported. `torch.compile` captures every method except
    `laplace` in one graph; values are not checked there.

    Args:
        values: [..., n], finite, n >= 1, any strides. float16 and bfloat16 are computed in float32, integers in
            float64.
        method: one of the table.
        standardize: give each row mean 0 and standard deviation 1 first. A constant row becomes zeros.
        steepness: of a comparison in a network; higher is closer to a hard swap. Default 5, the released value.
        interpolation: the function from a difference to a weight in a network. Default `logistic_phi`, as released.
        art_lambda: exponent of `logistic_phi`, from 0 to below 1. Default 0.25.
        temperature: scale of `laplace` and `pairwise`; ranks become hard as it goes to 0. Default 0.1.

    Returns:
        [..., n] in float32 (float64 for float64 values and integers).

    Raises:
        ValueError: n is 0, a value is NaN or infinite (the message names its index), the steepness or temperature is
            not a positive number, the method or interpolation is unknown, or an option belongs to another method.
    """
    largest = check_values(values)
    _check_options(method, steepness, interpolation, art_lambda, temperature)
    values = as_float(values)
    if values.shape[-1] == 1 or values.numel() == 0:
        return values * 0
    steepness, temperature = 5.0 if steepness is None else steepness, 0.1 if temperature is None else temperature
    dtype = values.dtype
    if standardize:
        values = standardized(values)
    else:
        values = _without_overflow(values, largest, steepness if method in get_args(Network) else 1 / temperature)
    if method == "laplace":
        ranks = laplace_rank(values, temperature)
    elif method == "pairwise":
        ranks = pairwise_rank(values, temperature)
    else:
        art_lambda = 0.25 if art_lambda is None else art_lambda
        ranks = network_rank(values, method, Comparator(steepness, interpolation or "logistic_phi", art_lambda))
    return ranks.to(dtype)


def _check_options(
    method: str,
    steepness: float | None,
    interpolation: Interpolation | None,
    art_lambda: float | None,
    temperature: float | None,
) -> None:
    """Raise ValueError if an option is unknown, out of range, or belongs to another method or interpolation."""
    if method not in get_args(Method):
        raise ValueError(f"unknown method '{method}'; valid: {', '.join(get_args(Method))}")
    network_options = {"steepness": steepness, "interpolation": interpolation, "art_lambda": art_lambda}
    sum_options = {"temperature": temperature}
    for name, value in (sum_options if method in get_args(Network) else network_options).items():
        if value is not None:
            raise ValueError(f"method '{method}' has no option '{name}'; remove it")
    for name, scale in {"steepness": steepness, "temperature": temperature}.items():
        if scale is not None:
            check_scale(name, scale)
    if interpolation is not None and interpolation not in get_args(Interpolation):
        raise ValueError(f"unknown interpolation '{interpolation}'; valid: {', '.join(get_args(Interpolation))}")
    if art_lambda is not None and interpolation not in (None, "logistic_phi"):
        raise ValueError(f"interpolation '{interpolation}' has no option 'art_lambda'; remove it")
    if art_lambda is not None and not (_is_number(art_lambda) and 0 <= art_lambda < 1):
        raise ValueError(f"art_lambda must be a number from 0 to below 1, not {art_lambda!r}")


def check_scale(name: str, scale: float) -> None:
    """Raise ValueError unless the scale is a positive, finite number."""
    if not (_is_number(scale) and 0 < scale < math.inf):
        raise ValueError(f"{name} must be a positive number, not {scale!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def as_float(values: Tensor) -> Tensor:
    """Return `values` in float32; float64 values and integers in float64, which holds integers up to 2^53."""
    is_narrow = values.dtype == torch.bool or (values.is_floating_point() and values.dtype != torch.float64)
    return values.float() if is_narrow else sortable(values).double()


def _without_overflow(values: Tensor, largest: float, sharpness: float) -> Tensor:
    """Return `values` such that their differences, times the sharpness, do not overflow.

    Usually these are the values themselves. Too large ones in float32 are returned in float64. Rows with larger ones
    still are scaled down.

    Args:
        values: [..., n] in float32 or float64.
        largest: the largest magnitude of the values.
        sharpness: the steepness, or one over the temperature.
    """

    def limit(dtype: torch.dtype) -> float:
        return torch.finfo(dtype).max / 8 / max(1.0, sharpness)

    if largest <= limit(values.dtype):
        return values
    values = values.double()
    row_largest = values.detach().abs().amax(-1, keepdim=True)
    too_large = row_largest > limit(torch.float64)
    return values * torch.where(too_large, limit(torch.float64) / row_largest, 1.0)


def standardized(values: Tensor) -> Tensor:
    """Return `values` [..., n] with mean 0 and standard deviation 1 in each row.

    A constant row becomes zeros, with zero gradient. So is the gradient of a row whose values are too close together
    for a finite one, about 1e-32 in float32: the gradient grows as the differences shrink.

    Raises:
        ValueError: n is 0.
    """
    check_row(values)
    values = as_float(values)
    # A power of two, which changes no digit, for rows whose sum or differences could overflow.
    too_large = values.detach().abs().amax(-1, keepdim=True) > torch.finfo(values.dtype).max * 2.0**-40
    values = values * torch.where(too_large, 2.0**-40, 1.0)
    # A comparison, because a constant row minus its mean is not exactly zero: the mean is rounded.
    varies = (values != values[..., :1]).any(-1, keepdim=True)
    centred = torch.where(varies, values - values.mean(-1, keepdim=True), 0.0)
    largest = centred.detach().abs().amax(-1, keepdim=True)
    has_gradient = largest > torch.finfo(values.dtype).tiny * 2.0**20
    centred = torch.where(has_gradient, centred, centred.detach())
    centred = centred / torch.where(largest > 0, largest, 1.0)  # otherwise squares can overflow or underflow float32
    variance = (centred * centred).mean(-1, keepdim=True)
    return centred / torch.where(variance > 0, variance, 1.0).sqrt()
