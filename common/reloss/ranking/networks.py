"""Soft ranks through a differentiable sorting network (Petersen et al., 2021 and 2022).

A layer of the network compares wires in pairs and mixes each pair, x' = L x, with a symmetric doubly stochastic matrix
L that depends on the difference of the pair. The whole network is P = L_1 L_2 ... L_K, and the rank of value i is the
place where it is expected to land, r = P (0, 1, ..., n-1). diffsort multiplies the n x n matrices, O(n^3) work; here
the values go forwards through the layers once and the places go backwards once, O(n log^2 n) for the same ranks.
"""

import math
from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor

from reloss.ranking.hard import check_values

Method = Literal["bitonic", "odd_even"]
Interpolation = Literal["logistic", "logistic_phi", "cauchy", "gaussian", "reciprocal", "optimal"]


def soft_rank(
    values: Tensor,
    method: Method = "bitonic",
    *,
    steepness: float = 5.0,
    interpolation: Interpolation = "logistic_phi",
    art_lambda: float = 0.25,
) -> Tensor:
    """Return differentiable ranks of `values` along the last axis, ascending from 0.

    The ranks depend on the scale of the values: the wider their spread against 1/steepness, the harder the ranks.
    Standardise values of unknown scale first (`soft_spearman` does). Each layer is doubly stochastic, so the ranks of
    a row sum to n(n-1)/2 and stay in [0, n-1]; but, unlike hard ranks, they depend on the order in which values are
    given, may misorder close values, and may fall as their own value rises. Equal values share the mean of the pair
    at every comparison; gradients are finite there, and a constant row gives (nearly) equal ranks.

    Args:
        values: [..., n], finite; n need not be a power of two. float16 and bfloat16 are computed in float32.
        method: `bitonic`, log2(n)(log2(n)+1)/2 layers, or `odd_even`, n layers.
        steepness: how sharply a comparison decides; the release uses 5.
        interpolation: how a comparison turns a difference into a weight; the release uses `logistic_phi`.
        art_lambda: exponent of `logistic_phi` alone.

    Returns:
        [..., n] in float32 (float64 for float64 values).

    Raises:
        ValueError: n is 0, a value is NaN or infinite, or an unknown method or interpolation.
    """
    check_values(values)
    if interpolation not in get_args(Interpolation):
        raise ValueError(f"unknown interpolation '{interpolation}'; valid: {', '.join(get_args(Interpolation))}")
    places = values if values.dtype == torch.float64 else values.float()
    partners, signs = _wiring(method, places.shape[-1])
    partners, signs = partners.to(places.device), signs.to(places)
    swaps = []
    for partner, sign in zip(partners, signs, strict=True):
        difference = places[..., partner] - places
        swap = 1 - _interpolate(sign * difference, steepness, interpolation, art_lambda)
        places = places + swap * difference
        swaps.append(swap)
    ranks = torch.arange(places.shape[-1], dtype=places.dtype, device=places.device).expand_as(places)
    for partner, swap in zip(reversed(partners), reversed(swaps), strict=True):
        ranks = ranks + swap * (ranks[..., partner] - ranks)
    return ranks


def _interpolate(difference: Tensor, steepness: float, interpolation: Interpolation, art_lambda: float) -> Tensor:
    """Return the weight in [0, 1] with which a wire keeps its value; f(-d) = 1 - f(d)."""
    if interpolation == "logistic_phi":  # the 1e-10 is diffsort's
        return torch.sigmoid(difference * steepness / (difference.abs() + 1e-10).pow(art_lambda))
    scaled = difference * steepness
    if interpolation == "logistic":
        return torch.sigmoid(scaled)
    if interpolation == "cauchy":
        return scaled.atan() / math.pi + 0.5
    if interpolation == "gaussian":
        return 0.5 + 0.5 * torch.erf(scaled / math.sqrt(2))
    if interpolation == "reciprocal":
        return 0.5 * (scaled / (2 + scaled.abs()) + 1)
    tail = scaled.sign() * (0.5 - 1 / (16 * scaled.abs().clamp_min(0.25))) + 0.5
    return torch.where(scaled.abs() > 0.25, tail, scaled + 0.5)  # optimal: Petersen et al. 2022, eq. 14


@lru_cache(maxsize=64)
def _wiring(method: Method, n: int) -> tuple[Tensor, Tensor]:
    """Return, for each layer, every wire's partner (itself where idle) and +1 where it takes the minimum, else -1."""
    if method == "bitonic":
        return _bitonic(n)
    if method == "odd_even":
        return _odd_even(n)
    raise ValueError(f"unknown method '{method}'; valid: {', '.join(get_args(Method))}")


def _bitonic(n: int) -> tuple[Tensor, Tensor]:
    """Wire the network for the next power of two; as in diffsort, its top wires and their comparators are left out."""
    blocks = max(n - 1, 0).bit_length()
    width = 1 << blocks
    wires = torch.arange(width)
    partners, signs = [], []
    for block in range(blocks):
        descending = (wires >> (block + 1)) & 1
        for distance in (1 << layer for layer in reversed(range(block + 1))):
            partner = wires ^ distance
            upper = (wires & distance) > 0
            partners.append(torch.where(partner < width - n, wires, partner))
            signs.append(torch.where(upper ^ (descending > 0), -1, 1))
    return _stack(partners, signs, width, width - n)


def _odd_even(n: int) -> tuple[Tensor, Tensor]:
    """Wire n layers that compare neighbours, from wire 0 and from wire 1 in turn."""
    wires = torch.arange(n)
    partners, signs = [], []
    for layer in range(n if n > 1 else 0):
        upper = (wires - layer) % 2 == 1
        partner = torch.where(upper, wires - 1, wires + 1)
        partners.append(torch.where((partner < 0) | (partner >= n), wires, partner))
        signs.append(torch.where(upper, -1, 1))
    return _stack(partners, signs, n, 0)


def _stack(partners: list[Tensor], signs: list[Tensor], width: int, top: int) -> tuple[Tensor, Tensor]:
    if not partners:
        empty = torch.zeros(0, width - top, dtype=torch.long)
        return empty, empty
    return torch.stack(partners)[:, top:] - top, torch.stack(signs)[:, top:]
