"""Differentiable ranks: one function, four methods."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from reloss.ranking.hard import check_values
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
    """Return differentiable ranks of `values` along the last axis, ascending from 0; they sum to n(n-1)/2.

    Many rows are ranked at once by leading dimensions: values [..., n]. The transforms of `torch.func`, such as vmap,
    grad and jacrev, are not supported.

    | method | work | what it is |
    | --- | --- | --- |
    | `bitonic` | n log^2 n | a differentiable sorting network, the release's |
    | `odd_even` | n^2 | the same with n layers of neighbours |
    | `laplace` | n log n | sum over the others of the Laplace distribution function of (x_i - x_j) / temperature |
    | `pairwise` | n^2, bounded memory | the same with the logistic function |

    Every method depends on the scale of the values: where their spread is small against 1/steepness, or against the
    temperature, all ranks draw near (n-1)/2 (for bitonic and n = 256, ranks correlate .99 with the true ones at
    standard deviation 1, .60 at 0.3 and .14 at 0.1). `standardize` takes that away: it divides by the standard
    deviation first, so that steepness and temperature are relative to the spread. Without it they are absolute.

    What the sorting networks give up: their ranks depend on the order in which values are given, may misorder close
    values, and may fall as their own value rises; they stay in [0, n-1]. `laplace` and `pairwise` have none of this:
    they are permutation equivariant, keep the order, and each rank rises with its own value.

    Equal values get equal ranks from `laplace` and `pairwise`; a network mixes them half and half at every comparison,
    which makes the ranks of a constant row equal for `bitonic` where n is a power of two, else only draws them
    together. Gradients are finite there. A single value has rank 0. Twice differentiable. `torch.compile` takes all but
    `laplace` as one graph; in a graph, values are not checked.

    Args:
        values: [..., n], finite, n >= 1, of any strides. float16 and bfloat16 are computed in float32.
        method: see above.
        standardize: give each row mean 0 and standard deviation 1 first (a constant row stays constant).
        steepness: how sharply a network's comparison decides; 5 unless given, as in the release.
        interpolation: how a network's comparison turns a difference into a weight; `logistic_phi` unless given, as in
            the release.
        art_lambda: exponent of `logistic_phi` alone; 0.25 unless given.
        temperature: the scale of `laplace` and `pairwise`, 0.1 unless given; ranks become hard as it goes to 0.

    Returns:
        [..., n] in float32 (float64 for float64 values).

    Raises:
        ValueError: n is 0, a value is NaN or infinite (its index is named), a steepness or temperature that is not
            positive, an unknown method or interpolation, or an option that is of other methods.
    """
    check_values(values)
    if method not in get_args(Method):
        raise ValueError(f"unknown method '{method}'; valid: {', '.join(get_args(Method))}")
    network = method in get_args(Network)
    of_networks = {"steepness": steepness, "interpolation": interpolation, "art_lambda": art_lambda}
    for name, value in ({"temperature": temperature} if network else of_networks).items():
        if value is not None:
            raise ValueError(f"{name} is no option of method '{method}', which takes no notice of it; drop it")
    steepness = 5.0 if steepness is None else steepness
    art_lambda = 0.25 if art_lambda is None else art_lambda
    temperature = 0.1 if temperature is None else temperature
    if not (steepness > 0 and temperature > 0):
        raise ValueError(f"steepness and temperature must be positive, not {steepness if network else temperature}")
    values = values if values.dtype == torch.float64 else values.float()
    if values.shape[-1] == 1:
        return values * 0
    if standardize:
        values = standardized(values)
    if method == "laplace":
        return laplace_rank(values, temperature)
    if method == "pairwise":
        return pairwise_rank(values, temperature)
    return network_rank(values, method, Comparator(steepness, interpolation or "logistic_phi", art_lambda))


def standardized(values: Tensor) -> Tensor:
    """Give each row of `values` [..., n] mean 0 and standard deviation 1; a constant row becomes zeros, no gradient.

    Raises:
        ValueError: n is 0.
    """
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
