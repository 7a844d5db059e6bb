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
    at every comparison; gradients are finite there. A constant row gets equal ranks from `bitonic` with n a power of
    two, and from nothing else.

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
    n, device = places.shape[-1], places.device
    partners, uppers, descents = (table.to(device) for table in _wiring(method, n))
    if n == 1:
        return places * 0  # no layer to pass through, but a gradient (of 0) all the same
    weights = []
    for partner, upper, descends in zip(partners, uppers, descents, strict=True):
        other = places[..., partner]
        # Both wires of a pair take the weight from the same difference, and mix in diffsort's order of operations:
        # where values nearly agree, logistic_phi magnifies the last bit.
        difference = torch.where(upper, places - other, other - places)
        weight = _interpolate(difference, steepness, interpolation, art_lambda)
        keep, take = torch.where(descends, 1 - weight, weight), torch.where(descends, weight, 1 - weight)
        places = keep * places + take * other
        weights.append((keep, take))
    middle = (n - 1) / 2  # ranks about their middle, which every layer preserves, cancel less
    ranks = (torch.arange(n, dtype=places.dtype, device=device) - middle).expand_as(places)
    for partner, (keep, take) in zip(reversed(partners), reversed(weights), strict=True):
        ranks = keep * ranks + take * ranks[..., partner]
    return ranks + middle


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
def _wiring(method: Method, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return, for each layer [layers, n], every wire's partner (itself where idle), whether it is its pair's upper one,
    and whether the pair puts its larger value on the lower wire.
    """
    if method == "bitonic":
        return _bitonic(n)
    if method == "odd_even":
        return _odd_even(n)
    raise ValueError(f"unknown method '{method}'; valid: {', '.join(get_args(Method))}")


def _bitonic(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Wire the network for the next power of two; as in diffsort, its top wires and their comparators are left out."""
    blocks = (n - 1).bit_length()
    block = torch.tensor([b for b in range(blocks) for _ in range(b + 1)], dtype=torch.long)[:, None]
    distance = torch.tensor([1 << d for b in range(blocks) for d in reversed(range(b + 1))], dtype=torch.long)[:, None]
    top = (1 << blocks) - n
    wires = torch.arange(top, 1 << blocks)
    partner = (wires ^ distance) - top
    partner = torch.where(partner < 0, wires - top, partner)
    return partner, (wires & distance) > 0, (wires >> (block + 1)) & 1 > 0


def _odd_even(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Wire n layers that compare neighbours, from wire 0 and from wire 1 in turn."""
    wires, layer = torch.arange(n), torch.arange(n if n > 1 else 0)[:, None]
    upper = (wires - layer) % 2 == 1
    partner = torch.where(upper, wires - 1, wires + 1)
    partner = torch.where((partner < 0) | (partner >= n), wires, partner)
    return partner, upper, torch.zeros_like(upper)
