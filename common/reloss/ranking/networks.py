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
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

Network = Literal["bitonic", "odd_even"]
Interpolation = Literal["logistic", "logistic_phi", "cauchy", "gaussian", "reciprocal", "optimal"]


TINY = 1e-10  # of logistic_phi, as in diffsort
_TINY = torch.tensor(TINY, device="cpu")  # added in a third of a number's time, and to a GPU's values without waiting


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
    ranks: Tensor = _NetworkRank.apply(values, network, comparator)
    return ranks


class _NetworkRank(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, network: Network, comparator: Comparator) -> Tensor:
        wiring = _wiring(network, values.shape[-1], values.device)
        ranks, saved = _sweep(_to_wires(values), wiring, comparator)
        ctx.wiring, ctx.comparator = wiring, comparator
        ctx.save_for_backward(values, saved)
        return _from_wires(ranks, values.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        values, saved = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted
            ranks = _from_wires(_differentiable(_to_wires(values), ctx.wiring, ctx.comparator), values.shape)
            (result,) = torch.autograd.grad(ranks, values, gradient, create_graph=True)
            return result, None, None
        result = _sweep_back(_to_wires(gradient), ctx.wiring, ctx.comparator, saved)
        return _from_wires(result, values.shape), None, None


def _to_wires(values: Tensor) -> Tensor:
    """Turn [..., n] into [n, rows], where what a comparison needs lies together; a single row into [n], for speed."""
    rows = values.reshape(-1, values.shape[-1])
    return rows[0] if len(rows) == 1 else rows.T.contiguous()


def _from_wires(wires: Tensor, shape: torch.Size) -> Tensor:
    return (wires if wires.dim() == 1 else wires.T).reshape(shape)


def _differentiable(values: Tensor, wiring: Wiring, comparator: Comparator) -> Tensor:
    """Return the ranks of [n] or [n, rows], by operations that autograd can differentiate as often as one likes.

    A wire keeps the share `weight` of its value x and takes the rest from its partner: x <- x' + weight (x - x').
    """
    weights = []
    for partner, steepness in zip(wiring.partners, _steepness(wiring, comparator, values).unbind(), strict=True):
        others = values.index_select(0, partner)
        weights.append(_interpolate(others - values, steepness, comparator))
        values = torch.lerp(others, values, weights[-1])
    places, middle = _places(values)
    for partner, weight in zip(reversed(wiring.partners), reversed(weights), strict=True):
        places = torch.lerp(places.index_select(0, partner), places, weight)
    return places + middle


def _places(like: Tensor) -> tuple[Tensor, float]:
    """Return the places of the wires about their middle, which every layer keeps: so they lose less to rounding."""
    n = len(like)
    middle = (n - 1) / 2
    places = torch.arange(n, dtype=like.dtype, device=like.device) - middle
    return places.view(n, *[1] * (like.dim() - 1)).expand_as(like), middle


def _sweep(values: Tensor, wiring: Wiring, comparator: Comparator) -> tuple[Tensor, Tensor]:
    """Return the same ranks, and [3, K, *values.shape]: each layer's weights, differences to partners, gaps in place.

    Written into what is there already: of few values, half the time goes into the making of tensors, and of many rows
    into pages of memory that come and go.
    """
    saved = values.new_empty(3, len(wiring.partners), *values.shape)
    weights, differences, gaps = (part.unbind() for part in saved.unbind())
    values = values.clone()
    others, base = torch.empty_like(values), torch.empty_like(values)
    layers = (wiring.partners, _steepness(wiring, comparator, values).unbind(), weights, differences)
    for partner, steepness, weight, difference in zip(*layers, strict=True):
        torch.index_select(values, 0, partner, out=others)
        torch.sub(others, values, out=difference)
        if comparator.interpolation == "logistic_phi":
            _raise(torch.abs(difference, out=base).add_(_TINY), comparator.art_lambda)
            torch.mul(difference, steepness, out=weight).div_(base).sigmoid_()
        else:
            weight.copy_(_interpolate(difference, steepness, comparator))
        values, others = others.lerp_(values, weight), values
    places, middle = _places(values)
    places = values.copy_(places)
    for partner, weight, gap in zip(*map(reversed, (wiring.partners, weights, gaps)), strict=True):
        torch.index_select(places, 0, partner, out=others)
        torch.sub(places, others, out=gap)
        places, others = others.lerp_(places, weight), places
    return places.add_(middle), saved


def _sweep_back(gradient: Tensor, wiring: Wiring, comparator: Comparator, saved: Tensor) -> Tensor:
    """Return the gradient in the values, given that in the ranks and what else `_sweep` returned."""
    weights, differences, gaps = saved.unbind()
    # The ranks feel the weight of a pair: (difference of their gradients) x (gap in their places) ...
    apart = []
    gradient = gradient.clone()
    others = torch.empty_like(gradient)
    for partner, weight in zip(wiring.partners, weights.unbind(), strict=True):
        torch.index_select(gradient, 0, partner, out=others)
        apart.append(others - gradient)
        gradient, others = others.lerp_(gradient, weight), gradient
    # ... and so do the values of all later layers. Through its difference, a weight moves both values of its pair.
    slopes = _slopes(weights, differences, _steepness(wiring, comparator, gradient), comparator)
    kept = torch.addcmul(weights, slopes, differences)
    pulls = slopes.mul_(gaps)
    result = gradient.zero_()
    layers = (wiring.partners, kept.unbind(), pulls.unbind(), apart)
    for partner, keep, pull, distance in zip(*map(reversed, layers), strict=True):
        torch.index_select(result, 0, partner, out=others)
        result, others = others.lerp_(result, keep).addcmul_(pull, distance), result
    return result


def _steepness(wiring: Wiring, comparator: Comparator, like: Tensor) -> Tensor:
    """Return each wire's signed steepness: [K, n] for values [n], [K, n, 1] for values [n, rows]."""
    steepness = wiring.signs * comparator.steepness
    return steepness if like.dim() == 1 else steepness[..., None]


def _interpolate(difference: Tensor, steepness: Tensor, comparator: Comparator) -> Tensor:
    """Return the weights in [0, 1] of differences; that of -difference is 1 - the weight. Differentiable."""
    if comparator.interpolation != "logistic_phi":
        return _CURVES[comparator.interpolation](difference * steepness)
    return torch.sigmoid(difference * steepness / (difference.abs() + TINY).pow(comparator.art_lambda))


def _slopes(weights: Tensor, differences: Tensor, steepness: Tensor, comparator: Comparator) -> Tensor:
    """Return the derivatives of the weights in the differences."""
    if comparator.interpolation == "logistic_phi":  # in closed form, in half the time
        base = differences.abs().add_(TINY)
        slopes = base.reciprocal().mul_(comparator.art_lambda * TINY).add_(1 - comparator.art_lambda)
        slopes.mul_(steepness).div_(_raise(base, comparator.art_lambda)).mul_(weights)
        return slopes.addcmul_(slopes, weights, value=-1)  # weights (1 - weights), of the sigmoid
    with torch.enable_grad():
        differences = differences.detach().requires_grad_()
        again = _interpolate(differences, steepness, comparator)
        (slopes,) = torch.autograd.grad(again, differences, torch.ones_like(again))
    return slopes


def _raise(base: Tensor, exponent: float) -> Tensor:
    """Raise `base` in place to the power `exponent`."""
    return base.rsqrt_().rsqrt_() if exponent == 0.25 else base.pow_(exponent)  # a third of the time of pow


def _optimal(scaled: Tensor) -> Tensor:
    """Return the interpolation that Petersen et al. (2022) show to have the least error."""
    tail = scaled.sign() * (0.5 - 1 / (16 * scaled.abs().clamp_min(0.25))) + 0.5
    return torch.where(scaled.abs() > 0.25, tail, scaled + 0.5)


_CURVES: dict[Interpolation, Callable[[Tensor], Tensor]] = {
    "logistic": torch.sigmoid,
    "cauchy": lambda scaled: scaled.atan() / math.pi + 0.5,
    "gaussian": lambda scaled: 0.5 + 0.5 * torch.erf(scaled / math.sqrt(2)),
    "reciprocal": lambda scaled: 0.5 * (scaled / (2 + scaled.abs()) + 1),
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
    wires = torch.arange(first, 1 << blocks, device="cpu")
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
        wires = torch.arange(n, device="cpu") - start
        partner = (wires ^ 1) + start
        idle = (partner < 0) | (partner >= n)
        layers.append((torch.where(idle, wires + start, partner), 1.0 - 2.0 * (wires & 1)))
    return layers
