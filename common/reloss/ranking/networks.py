"""Soft ranks through a differentiable sorting network (Petersen et al., 2021 and 2022).

A layer of the network compares values in pairs and mixes each pair (a, b) into (alpha a + (1 - alpha) b,
(1 - alpha) a + alpha b), the softly smaller and larger, with alpha = f(b - a) in [0, 1]. A layer's matrix L is doubly
stochastic; the network is P = L_1 L_2 ... L_K, and the rank of value i is the place where it is expected to land,
r = P (0, 1, ..., n-1). diffsort multiplies the n x n matrices, O(n^3) work. Here the values go forwards through the
layers once and the places backwards once: the same ranks in O(n log^2 n) work and memory for the bitonic network. For
the gradient, the incoming gradient goes forwards and everything comes back: two sweeps more.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

Network = Literal["bitonic", "odd_even"]
Interpolation = Literal["logistic", "logistic_phi", "cauchy", "gaussian", "reciprocal", "optimal"]


class Wiring(NamedTuple):
    """A network for n values. The values of layer k lie in slots: its pairs' lower wires, their upper wires, the idle.

    forwards[k] takes the outcome of layer k - 1 (smaller values, larger values, idle ones) to the slots of layer k, and
    backwards[k] the slots of layer k to that outcome; forwards[0] begins with the values in their order, and
    forwards[K] ends with the wires in theirs. pairs[k] is the number of comparators.
    """

    forwards: tuple[Tensor, ...]
    backwards: tuple[Tensor, ...]
    pairs: tuple[int, ...]


class Comparator(NamedTuple):
    """How a comparison turns a difference into a weight."""

    steepness: float
    interpolation: Interpolation
    art_lambda: float


def network_rank(values: Tensor, network: Network, comparator: Comparator) -> Tensor:
    """Return the soft ranks of `values` [..., n], float32 or float64, with n >= 2.

    Raises:
        ValueError: an unknown network or interpolation.
    """
    if comparator.interpolation not in get_args(Interpolation):
        raise ValueError(
            f"unknown interpolation '{comparator.interpolation}'; valid: {', '.join(get_args(Interpolation))}"
        )
    ranks: Tensor = _NetworkRank.apply(values, network, comparator)
    return ranks


class _NetworkRank(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, network: Network, comparator: Comparator) -> Tensor:
        wiring = _wiring(network, values.shape[-1], values.device)
        ranks, weights, differences, gaps = _sweep(values, wiring, comparator)
        ctx.wiring, ctx.comparator = wiring, comparator
        ctx.save_for_backward(values, *weights, *differences, *gaps)
        return ranks

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        values, *saved = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted: differentiate the sweeps themselves
            ranks = _sweep(values, ctx.wiring, ctx.comparator)[0]
            (result,) = torch.autograd.grad(ranks, values, gradient, create_graph=True)
            return result, None, None
        layers = len(ctx.wiring.pairs)
        weights, differences, gaps = saved[:layers], saved[layers : 2 * layers], saved[2 * layers :]
        return _sweep_back(gradient, ctx.wiring, ctx.comparator, weights, differences, gaps), None, None


def _sweep(
    values: Tensor, wiring: Wiring, comparator: Comparator
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """Return the ranks and, of each layer, weights, differences of its pairs, and gaps of their outcomes' ranks."""
    weights, differences, gaps = [], [], []
    outcome = values
    for forward, pairs in zip(wiring.forwards[:-1], wiring.pairs, strict=True):
        slots = outcome.index_select(-1, forward)
        lower, upper = slots[..., :pairs], slots[..., pairs : 2 * pairs]
        difference = upper - lower
        weight = _interpolate(difference, comparator)
        outcome = _mix(weight, lower, upper, slots[..., 2 * pairs :])
        weights.append(weight)
        differences.append(difference)
    n = values.shape[-1]
    middle = (n - 1) / 2  # ranks about their middle, which every layer keeps, lose less to rounding
    places = (torch.arange(n, dtype=values.dtype, device=values.device) - middle).expand_as(values)
    places = places.index_select(-1, wiring.backwards[-1])
    for backward, weight in zip(reversed(wiring.backwards[:-1]), reversed(weights), strict=True):
        pairs = weight.shape[-1]
        smaller, larger = places[..., :pairs], places[..., pairs : 2 * pairs]
        gaps.append(smaller - larger)
        places = _mix(weight, smaller, larger, places[..., 2 * pairs :]).index_select(-1, backward)
    return places + middle, weights, differences, gaps[::-1]


def _sweep_back(
    gradient: Tensor,
    wiring: Wiring,
    comparator: Comparator,
    weights: list[Tensor],
    differences: list[Tensor],
    gaps: list[Tensor],
) -> Tensor:
    """Return the gradient in the values, given that in the ranks."""
    # A weight is felt by the ranks: (gradient of lower - of upper) x (rank of smaller - of larger outcome) ...
    felt, outcome = [], gradient
    for forward, pairs, weight, gap in zip(wiring.forwards[:-1], wiring.pairs, weights, gaps, strict=True):
        slots = outcome.index_select(-1, forward)
        lower, upper = slots[..., :pairs], slots[..., pairs : 2 * pairs]
        felt.append((lower - upper) * gap)
        outcome = _mix(weight, lower, upper, slots[..., 2 * pairs :])
    slopes = _slopes(differences, comparator)
    # ... and by the values of all later layers.
    result = torch.zeros_like(gradient)
    layers = (wiring.backwards[1:], weights, differences, felt, slopes)
    for backward, weight, difference, by_ranks, slope in zip(*map(reversed, layers), strict=True):
        result = result.index_select(-1, backward)
        pairs = weight.shape[-1]
        smaller, larger = result[..., :pairs], result[..., pairs : 2 * pairs]
        pull = slope * (by_ranks - (smaller - larger) * difference)
        mixed = _mix(weight, smaller, larger, result[..., 2 * pairs :])
        mixed[..., :pairs] -= pull
        mixed[..., pairs : 2 * pairs] += pull
        result = mixed
    return result.index_select(-1, wiring.backwards[0])


def _mix(weight: Tensor, first: Tensor, second: Tensor, idle: Tensor) -> Tensor:
    """Return weight first + (1 - weight) second, (1 - weight) first + weight second, and the idle values, side by side.

    In diffsort's order of operations: where values nearly agree, logistic_phi magnifies the last bit.
    """
    rest = 1 - weight
    return torch.cat((weight * first + rest * second, rest * first + weight * second, idle), -1)


def _slopes(differences: list[Tensor], comparator: Comparator) -> tuple[Tensor, ...]:
    """Return the derivative of the weights at the differences of all layers, computed in one go."""
    with torch.enable_grad():
        stacked = torch.cat(differences, -1).detach().requires_grad_()
        (slopes,) = torch.autograd.grad(_interpolate(stacked, comparator).sum(), stacked)
    return slopes.split([difference.shape[-1] for difference in differences], -1)


def _interpolate(difference: Tensor, comparator: Comparator) -> Tensor:
    """Return the weight in [0, 1] with which a pair keeps its order; f(-d) = 1 - f(d)."""
    steepness, interpolation, art_lambda = comparator
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
    return torch.where(scaled.abs() > 0.25, tail, scaled + 0.5)  # optimal: Petersen et al. 2022


@lru_cache(maxsize=64)
def _wiring(network: Network, n: int, device: torch.device) -> Wiring:
    if network not in get_args(Network):
        raise ValueError(f"unknown sorting network '{network}'; valid: {', '.join(get_args(Network))}")
    layers = _bitonic(n) if network == "bitonic" else _odd_even(n)
    forwards, backwards, pairs = [], [], []
    outcome = torch.arange(n)  # the wire on which each value of the last outcome lies
    for lower, upper, descends in layers:
        idle = torch.ones(n, dtype=torch.bool)
        idle[lower] = idle[upper] = False
        rest = idle.nonzero().squeeze(-1)
        slots = torch.cat((lower, upper, rest))
        forwards.append(outcome.argsort()[slots])
        outcome = torch.cat((torch.where(descends, upper, lower), torch.where(descends, lower, upper), rest))
        pairs.append(len(lower))
    forwards.append(outcome.argsort())
    backwards = [forward.argsort() for forward in forwards]
    return Wiring(tuple(f.to(device) for f in forwards), tuple(b.to(device) for b in backwards), tuple(pairs))


Layer = tuple[
    Tensor, Tensor, Tensor
]  # lower and upper wires of its pairs, and whether the larger value goes to the lower


def _bitonic(n: int) -> list[Layer]:
    """Wire the network for the next power of two; as in diffsort, its top wires and their comparators are left out."""
    blocks = (n - 1).bit_length()
    top = (1 << blocks) - n
    wires = torch.arange(top, 1 << blocks)
    layers = []
    for block in range(blocks):
        for distance in (1 << exponent for exponent in reversed(range(block + 1))):
            lower = wires[(wires & distance) == 0]
            lower = lower[lower + distance < 1 << blocks]
            layers.append((lower - top, lower + distance - top, (lower >> (block + 1)) & 1 > 0))
    return layers


def _odd_even(n: int) -> list[Layer]:
    """Wire n layers that compare neighbours, from wire 0 and from wire 1 in turn."""
    layers = []
    for layer in range(n if n > 1 else 0):
        lower = torch.arange(layer % 2, n - 1, 2)
        if len(lower):  # the second of n = 2 has none
            layers.append((lower, lower + 1, torch.zeros(len(lower), dtype=torch.bool)))
    return layers
