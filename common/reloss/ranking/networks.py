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
import os
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

Network = Literal["bitonic", "odd_even"]
Interpolation = Literal["logistic", "logistic_phi", "cauchy", "gaussian", "reciprocal", "optimal"]


TINY = 1e-10  # of logistic_phi, as in diffsort
LARGEST_FUSED = 4096  # values of a row that one program of a GPU holds


class Wiring(NamedTuple):
    """A network of K layers for n values, which stay on their wires throughout.

    partners[k], [n], is the wire with which each wire is compared in layer k: itself where it is idle. signs[k], [n],
    is 1 for the wire that takes the smaller value of its pair and -1 for the one that takes the larger.
    """

    partners: tuple[Tensor, ...]
    signs: Tensor


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
    function = _FusedRank if _fuses(values, network, comparator) else _NetworkRank
    ranks: Tensor = function.apply(values, network, comparator)
    return ranks


def _fuses(values: Tensor, network: Network, comparator: Comparator) -> bool:
    """Return whether the kernels of `fused.py` serve; RELOSS_FUSED=1 asks for them."""
    released = network == "bitonic" and comparator.interpolation == "logistic_phi"
    return (
        os.environ.get("RELOSS_FUSED") == "1"
        and released
        and values.is_cuda
        and values.dtype == torch.float32
        and values.shape[-1] <= LARGEST_FUSED
        and values.numel() > 0
        and not torch.compiler.is_compiling()
    )


class _NetworkRank(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, network: Network, comparator: Comparator) -> Tensor:
        wiring = _wiring(network, values.shape[-1], values.device)
        wires = _to_wires(values)
        saved = wires.new_empty(3, len(wiring.partners), *wires.shape)
        ranks = _sweep(wires, wiring, comparator, saved)
        ctx.wiring, ctx.comparator = wiring, comparator
        ctx.save_for_backward(values, saved)
        return _from_wires(ranks, values.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        values, saved = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted: differentiate the sweeps themselves
            ranks = _from_wires(_sweep(_to_wires(values), ctx.wiring, ctx.comparator), values.shape)
            (result,) = torch.autograd.grad(ranks, values, gradient, create_graph=True)
            return result, None, None
        result = _sweep_back(_to_wires(gradient), ctx.wiring, ctx.comparator, saved)
        return _from_wires(result, values.shape), None, None


class _FusedRank(torch.autograd.Function):
    """The same on a GPU in one launch a direction; a second derivative takes the way of `_NetworkRank`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, network: Network, comparator: Comparator) -> Tensor:
        from reloss.ranking.fused import fused_sweep

        rows = values.reshape(-1, values.shape[-1]).contiguous()
        ranks, saved = fused_sweep(rows, comparator.steepness, comparator.art_lambda)
        ctx.network, ctx.comparator = network, comparator
        ctx.save_for_backward(values, saved)
        return ranks.view(values.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        from reloss.ranking.fused import fused_sweep_back

        values, saved = ctx.saved_tensors
        if torch.is_grad_enabled():
            ranks = _NetworkRank.apply(values, ctx.network, ctx.comparator)
            (result,) = torch.autograd.grad(ranks, values, gradient, create_graph=True)
            return result, None, None
        rows = gradient.reshape(-1, gradient.shape[-1]).contiguous()
        result = fused_sweep_back(rows, saved, ctx.comparator.steepness, ctx.comparator.art_lambda)
        return result.view(values.shape), None, None


def _to_wires(values: Tensor) -> Tensor:
    """Turn [..., n] into [n, rows], where what a comparison needs lies together; a single row into [n], for speed."""
    rows = values.reshape(-1, values.shape[-1])
    return rows[0] if len(rows) == 1 else rows.T.contiguous()


def _from_wires(wires: Tensor, shape: torch.Size) -> Tensor:
    return (wires if wires.dim() == 1 else wires.T).reshape(shape)


def _sweep(values: Tensor, wiring: Wiring, comparator: Comparator, saved: Tensor | None = None) -> Tensor:
    """Return the ranks; where `saved` [3, K, *values.shape] is given, what `_sweep_back` needs is written into it.

    That is, of each layer's wires, the weights, differences to the partner and gaps in expected place. A wire keeps the
    share `weight` of its value x and takes the rest from its partner: x <- x' + weight (x - x'). Without `saved` the
    ranks can be differentiated; with it no layer needs memory of its own, which else takes half the time of many rows.
    """
    nowhere = [None] * len(wiring.partners)
    weight_slots, difference_slots, gap_slots = (
        (nowhere, nowhere, nowhere) if saved is None else (part.unbind() for part in saved.unbind())
    )
    interpolate = _interpolation(comparator, like=values)
    weights = []
    layers = (wiring.partners, _steepness(wiring, comparator, values).unbind(), weight_slots, difference_slots)
    for partner, steepness, weight_slot, difference_slot in zip(*layers, strict=True):
        others = values.index_select(0, partner)
        difference = torch.sub(others, values, out=difference_slot)
        weight = interpolate(difference, steepness, weight_slot)
        values = torch.lerp(others, values, weight)
        weights.append(weight)
    n = len(values)
    middle = (n - 1) / 2  # ranks about their middle, which every layer keeps, lose less to rounding
    places = torch.arange(n, dtype=values.dtype, device=values.device) - middle
    places = places.view(n, *[1] * (values.dim() - 1)).expand_as(values)
    for partner, weight, gap_slot in zip(*map(reversed, (wiring.partners, weights, gap_slots)), strict=True):
        others = places.index_select(0, partner)
        torch.sub(places, others, out=gap_slot)
        places = torch.lerp(others, places, weight)
    return places + middle


def _sweep_back(gradient: Tensor, wiring: Wiring, comparator: Comparator, saved: Tensor) -> Tensor:
    """Return the gradient in the values, given that in the ranks and what `_sweep` saved."""
    weights, differences, gaps = saved.unbind()
    # The ranks feel the weight of a pair: (difference of their gradients) x (gap in their places) ...
    apart = []
    for partner, weight in zip(wiring.partners, weights.unbind(), strict=True):
        others = gradient.index_select(0, partner)
        apart.append(others - gradient)
        gradient = torch.lerp(others, gradient, weight)
    # ... and so do the values of all later layers. Through its difference, a weight moves both values of its pair.
    slopes = _slopes(weights, differences, _steepness(wiring, comparator, gradient), comparator)
    kept = torch.addcmul(weights, slopes, differences)
    pulls = slopes.mul_(gaps)
    result = torch.zeros_like(gradient)
    layers = (wiring.partners, kept.unbind(), pulls.unbind(), apart)
    for partner, keep, pull, distance in zip(*map(reversed, layers), strict=True):
        result = torch.lerp(result.index_select(0, partner), result, keep).addcmul_(pull, distance)
    return result


def _steepness(wiring: Wiring, comparator: Comparator, like: Tensor) -> Tensor:
    """Return each wire's signed steepness: [K, n] for values [n], [K, n, 1] for values [n, rows]."""
    steepness = wiring.signs * comparator.steepness
    return steepness if like.dim() == 1 else steepness[..., None]


def _interpolation(comparator: Comparator, like: Tensor) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """Return the function of difference and steepness that gives the weight in [0, 1]; f(-d, s) = 1 - f(d, s).

    Its last argument is where to write the weight, or None.
    """
    if comparator.interpolation != "logistic_phi":
        curve = _CURVES[comparator.interpolation]
        return lambda difference, steepness, out: curve(difference * steepness, out)
    tiny = like.new_tensor(TINY)  # a tensor is added faster than a number
    return lambda difference, steepness, out: torch.sigmoid(
        difference * steepness / _power(difference.abs() + tiny, comparator.art_lambda), out=out
    )


def _slopes(weights: Tensor, differences: Tensor, steepness: Tensor, comparator: Comparator) -> Tensor:
    """Return the derivatives of the weights in the differences."""
    if comparator.interpolation == "logistic_phi":  # in closed form, in half the time
        base = differences.abs().add_(TINY)
        slopes = base.reciprocal().mul_(comparator.art_lambda * TINY).add_(1 - comparator.art_lambda)
        slopes.mul_(steepness).div_(_power(base, comparator.art_lambda)).mul_(weights)
        return slopes.addcmul_(slopes, weights, value=-1)  # weights (1 - weights), of the sigmoid
    with torch.enable_grad():
        differences = differences.detach().requires_grad_()
        again = _interpolation(comparator, differences)(differences, steepness, None)
        (slopes,) = torch.autograd.grad(again, differences, torch.ones_like(again))
    return slopes


def _power(base: Tensor, exponent: float) -> Tensor:
    return base.rsqrt().rsqrt() if exponent == 0.25 else base.pow(exponent)  # a third of the time of pow


def _optimal(scaled: Tensor, out: Tensor | None) -> Tensor:
    """Return the interpolation that Petersen et al. (2022) show to have the least error."""
    tail = scaled.sign() * (0.5 - 1 / (16 * scaled.abs().clamp_min(0.25))) + 0.5
    return torch.where(scaled.abs() > 0.25, tail, scaled + 0.5, out=out)


_CURVES: dict[Interpolation, Callable[[Tensor, Tensor | None], Tensor]] = {
    "logistic": lambda scaled, out: torch.sigmoid(scaled, out=out),
    "cauchy": lambda scaled, out: torch.add(scaled.atan() / math.pi, 0.5, out=out),
    "gaussian": lambda scaled, out: torch.add(0.5 * torch.erf(scaled / math.sqrt(2)), 0.5, out=out),
    "reciprocal": lambda scaled, out: torch.add(0.5 * scaled / (2 + scaled.abs()), 0.5, out=out),
    "optimal": _optimal,
}


@lru_cache(maxsize=64)
def _wiring(network: Network, n: int, device: torch.device) -> Wiring:
    if network not in get_args(Network):
        raise ValueError(f"unknown sorting network '{network}'; valid: {', '.join(get_args(Network))}")
    layers = _bitonic(n) if network == "bitonic" else _odd_even(n)
    partners, signs = (torch.stack(parts).to(device) for parts in zip(*layers, strict=True))
    return Wiring(partners.unbind(), signs)


def _bitonic(n: int) -> list[tuple[Tensor, Tensor]]:
    """Return each layer's partners and signs [n] in the network for the next power of two.

    As in diffsort, its first wires and their comparators are left out.
    """
    blocks = (n - 1).bit_length()
    first = (1 << blocks) - n
    wires = torch.arange(first, 1 << blocks)
    layers = []
    for block in range(blocks):
        descends = wires & (2 << block) > 0
        for distance in (1 << exponent for exponent in reversed(range(block + 1))):
            partner = wires ^ distance
            sign = torch.where((wires & distance > 0) == descends, 1.0, -1.0)
            layers.append((torch.where(partner < first, wires, partner) - first, sign))
    return layers


def _odd_even(n: int) -> list[tuple[Tensor, Tensor]]:
    """Return the partners and signs [n] of n layers that compare neighbours, from wire 0 and from wire 1 in turn."""
    layers = []
    for start in (layer % 2 for layer in range(n if n > 2 else 1)):  # the second layer of two wires has no pair
        wires = torch.arange(n) - start
        partner = (wires ^ 1) + start
        idle = (partner < 0) | (partner >= n)
        layers.append((torch.where(idle, wires + start, partner), 1.0 - 2.0 * (wires & 1)))
    return layers
