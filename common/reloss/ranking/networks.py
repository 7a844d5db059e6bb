"""Soft ranks from a differentiable sorting network.

A sorting network compares fixed pairs of positions ("wires"), layer by layer, and swaps the values of a pair that are
out of order (Batcher, 1968). Here a swap is soft: the pair (a, b) becomes (w a + (1 - w) b, (1 - w) a + w b), the
softly smaller and larger value, with the weight w = f(b - a) in [0, 1]. Each layer is then a doubly stochastic matrix
L_k, the network is P = L_1 L_2 ... L_K, and the rank of a value is the place where it is expected to land, the vector
P (0, 1, ..., n-1).

No matrix is needed for that: two sweeps through the layers give the ranks. The values go forwards and determine the
weights; the places (0, 1, ..., n-1) go backwards with these weights and arrive as ranks. The gradient takes two more
sweeps: the gradient in the ranks goes forwards, the gradient in the values comes back. For the bitonic network this is
O(n log^2 n) work and memory; diffsort, the reference implementation, multiplies the matrices in O(n^3).

Sources: Petersen, Borgelt, Kuehne and Deussen, "Differentiable sorting networks for scalable sorting and ranking
supervision", ICML 2021 (the networks, `logistic`, `logistic_phi`), and "Monotonic differentiable sorting networks",
ICLR 2022 (`cauchy`, `reciprocal`, `optimal`).
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Network = Literal["bitonic", "odd_even"]
Interpolation = Literal["logistic", "logistic_phi", "cauchy", "gaussian", "reciprocal", "optimal"]

EPSILON = 1e-10  # of logistic_phi, as in diffsort
# Adding a tensor takes a third of the time of adding a number. One on the CPU needs no synchronisation with a GPU.
_EPSILON = torch.tensor(EPSILON, device="cpu")


class Wiring(NamedTuple):
    """The comparisons in a network of K layers on n wires.

    Attributes:
        partners: K tensors [n], the wire that each wire is compared with in a layer: itself if it is idle.
        signs: [K, n], 1 for the wire that receives the smaller value of its pair, -1 for the other one.
    """

    partners: tuple[Tensor, ...]
    signs: Tensor


class Comparator(NamedTuple):
    """The function from the difference of a pair to its weight."""

    steepness: float
    interpolation: Interpolation
    art_lambda: float


def network_rank(values: Tensor, network: Network, comparator: Comparator) -> Tensor:
    """Return the soft ranks [..., n] of `values` [..., n], float32 or float64, n >= 2."""
    ranks: Tensor = _NetworkRank.apply(values, network, comparator)
    return ranks


class _NetworkRank(torch.autograd.Function):
    """The ranks of `network_rank`, with a gradient by two sweeps."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, network: Network, comparator: Comparator) -> Tensor:
        wiring = _wiring(network, values.shape[-1], values.device)
        ranks, saved = _rank_sweeps(_to_wires(values), wiring, comparator)
        ctx.wiring, ctx.comparator = wiring, comparator
        ctx.save_for_backward(values, saved)
        return _from_wires(ranks, values.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        values, saved = ctx.saved_tensors
        if torch.is_grad_enabled():  # for second derivatives: let autograd differentiate the definition
            ranks = _from_wires(_ranks_for_autograd(_to_wires(values), ctx.wiring, ctx.comparator), values.shape)
            (result,) = torch.autograd.grad(ranks, values, gradient, create_graph=True)
            return result, None, None
        result = _gradient_sweeps(_to_wires(gradient), ctx.wiring, ctx.comparator, saved)
        return _from_wires(result, values.shape), None, None


def _to_wires(values: Tensor) -> Tensor:
    """Return [..., n] as [n, rows], which makes a layer contiguous. A single row becomes [n], which is faster."""
    rows = values.reshape(-1, values.shape[-1])
    return rows[0] if len(rows) == 1 else rows.T.contiguous()


def _from_wires(wires: Tensor, shape: torch.Size) -> Tensor:
    return (wires if wires.dim() == 1 else wires.T).reshape(shape)


def _ranks_for_autograd(values: Tensor, wiring: Wiring, comparator: Comparator) -> Tensor:
    """Return the ranks of [n] or [n, rows] by operations that autograd can differentiate any number of times.

    This is the definition; `_rank_sweeps` computes the same in place. In each layer, a wire keeps the share `weight` of
    its value x and takes the rest from its partner's value x': x <- x' + weight (x - x').
    """
    weights = []
    for partner, steepness in zip(wiring.partners, _signed_steepness(wiring, comparator, values).unbind(), strict=True):
        partner_values = values.index_select(0, partner)
        weights.append(_interpolate(partner_values - values, steepness, comparator))
        values = torch.lerp(partner_values, values, weights[-1])
    places, middle = _centred_places(values)
    for partner, weight in zip(reversed(wiring.partners), reversed(weights), strict=True):
        places = torch.lerp(places.index_select(0, partner), places, weight)
    return places + middle


def _centred_places(like: Tensor) -> tuple[Tensor, float]:
    """Return the places minus their mean, shaped like `like`, and the mean.

    Every layer preserves the mean. Removing it loses less to rounding.
    """
    n = len(like)
    middle = (n - 1) / 2
    places = torch.arange(n, dtype=like.dtype, device=like.device) - middle
    return places.view(n, *[1] * (like.dim() - 1)).expand_as(like), middle


def _rank_sweeps(values: Tensor, wiring: Wiring, comparator: Comparator) -> tuple[Tensor, Tensor]:
    """Return the ranks of [n] or [n, rows], and what the gradient needs.

    Writes into preallocated tensors. For few values, allocation would take half of the time; for many rows, the system
    would map and unmap memory in every layer.

    Returns:
        The ranks, and [3, K, *values.shape]: for each layer the weights, the partner's value minus the own value, and
        the own place minus the partner's place.
    """
    saved = values.new_empty(3, len(wiring.partners), *values.shape)
    weights, differences, gaps = (part.unbind() for part in saved.unbind())
    values = values.clone()
    partner_values, base = torch.empty_like(values), torch.empty_like(values)
    layers = (wiring.partners, _signed_steepness(wiring, comparator, values).unbind(), weights, differences)
    for partner, steepness, weight, difference in zip(*layers, strict=True):
        torch.index_select(values, 0, partner, out=partner_values)
        torch.sub(partner_values, values, out=difference)
        if comparator.interpolation == "logistic_phi":
            _power_(torch.abs(difference, out=base).add_(_EPSILON), comparator.art_lambda)
            torch.mul(difference, steepness, out=weight).div_(base).sigmoid_()
        else:
            weight.copy_(_interpolate(difference, steepness, comparator))
        values, partner_values = partner_values.lerp_(values, weight), values
    places, middle = _centred_places(values)
    places, partner_places = values.copy_(places), partner_values
    for partner, weight, gap in zip(*map(reversed, (wiring.partners, weights, gaps)), strict=True):
        torch.index_select(places, 0, partner, out=partner_places)
        torch.sub(places, partner_places, out=gap)
        places, partner_places = partner_places.lerp_(places, weight), places
    return places.add_(middle), saved


def _gradient_sweeps(gradient: Tensor, wiring: Wiring, comparator: Comparator, saved: Tensor) -> Tensor:
    """Return the gradient in the values, from the gradient in the ranks and the second result of `_rank_sweeps`."""
    weights, differences, gaps = saved.unbind()
    # A weight acts on the ranks through the places: its gradient is the difference between the gradients of the pair,
    # times the gap between their places ...
    gradient_differences = []
    gradient = gradient.clone()
    partner_gradient = torch.empty_like(gradient)
    for partner, weight in zip(wiring.partners, weights.unbind(), strict=True):
        torch.index_select(gradient, 0, partner, out=partner_gradient)
        gradient_differences.append(partner_gradient - gradient)
        gradient, partner_gradient = partner_gradient.lerp_(gradient, weight), gradient
    # ... and through the values of all later layers. It depends on the difference of its pair, so on both values.
    slopes = _slopes(weights, differences, _signed_steepness(wiring, comparator, gradient), comparator)
    shares = torch.addcmul(weights, slopes, differences)
    pulls = slopes.mul_(gaps)
    result = gradient.zero_()
    partner_result = partner_gradient
    layers = (wiring.partners, shares.unbind(), pulls.unbind(), gradient_differences)
    for partner, share, pull, gradient_difference in zip(*map(reversed, layers), strict=True):
        torch.index_select(result, 0, partner, out=partner_result)
        result, partner_result = partner_result.lerp_(result, share).addcmul_(pull, gradient_difference), result
    return result


def _signed_steepness(wiring: Wiring, comparator: Comparator, like: Tensor) -> Tensor:
    """Return the steepness of each wire, negative where it receives the larger value.

    The shape is [K, n] if `like` is [n], and [K, n, 1] if it is [n, rows].
    """
    steepness = wiring.signs * comparator.steepness
    return steepness if like.dim() == 1 else steepness[..., None]


def _interpolate(difference: Tensor, steepness: Tensor, comparator: Comparator) -> Tensor:
    """Return the weights in [0, 1] for differences. The weights of d and -d sum to 1. Differentiable."""
    if comparator.interpolation != "logistic_phi":
        return _CURVES[comparator.interpolation](difference * steepness)
    return torch.sigmoid(difference * steepness / (difference.abs() + EPSILON).pow(comparator.art_lambda))


def _slopes(weights: Tensor, differences: Tensor, steepness: Tensor, comparator: Comparator) -> Tensor:
    """Return the derivatives of the weights in the differences."""
    if comparator.interpolation == "logistic_phi":  # in closed form, in half the time
        base = differences.abs().add_(EPSILON)
        slopes = base.reciprocal().mul_(comparator.art_lambda * EPSILON).add_(1 - comparator.art_lambda)
        slopes.mul_(steepness).div_(_power_(base, comparator.art_lambda)).mul_(weights)
        return slopes.addcmul_(slopes, weights, value=-1)  # times weights (1 - weights), the sigmoid's derivative
    with torch.enable_grad():
        differences = differences.detach().requires_grad_()
        recomputed_weights = _interpolate(differences, steepness, comparator)
        (slopes,) = torch.autograd.grad(recomputed_weights, differences, torch.ones_like(recomputed_weights))
    return slopes


def _power_(base: Tensor, exponent: float) -> Tensor:
    """Raise `base` in place to the power `exponent`. The square roots take a third of the time of pow."""
    return base.rsqrt_().rsqrt_() if exponent == 0.25 else base.pow_(exponent)


def _optimal(scaled: Tensor) -> Tensor:
    """Return the interpolation with the smallest error bound (Petersen et al., 2022)."""
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
    if network == "bitonic" and not torch.compiler.is_compiling() and not bitonic_sorts(n):
        power = 1 << n.bit_length()
        warnings.warn(
            f"the bitonic network for n = {n} values, like diffsort's, can misorder even well separated values; use "
            f"n = {power // 2} or {power}, or the method odd_even, laplace or pairwise",
            stacklevel=2,
        )
    layers = _bitonic(n) if network == "bitonic" else _odd_even(n)
    partners, signs = (torch.stack(parts).to(device) for parts in zip(*layers, strict=True))
    return Wiring(partners.unbind(), signs)


def bitonic_sorts(n: int) -> bool:
    """Return whether the bitonic network on n wires sorts every input, if its comparisons are hard.

    It does for powers of two. Otherwise the binary digits of the number of removed wires decide. The rule was compared
    with all inputs of zeros and ones for n up to 20, and with random ones for n up to 129: a network that sorts all of
    them sorts everything (Knuth, 1973).
    """
    removed_wires = (1 << (n - 1).bit_length()) - n
    return re.fullmatch("0b(1*0*|1+01+|1+0+1)", bin(removed_wires)) is not None


def _bitonic(n: int) -> list[tuple[Tensor, Tensor]]:
    """Return the partners and signs [n] of each layer of the bitonic network for the next power of two.

    The surplus wires are the first ones. They are removed with their comparisons, as in diffsort.
    """
    blocks = (n - 1).bit_length()
    first = (1 << blocks) - n
    wires = torch.arange(first, 1 << blocks, device="cpu")
    layers = []
    for block in range(blocks):
        descending = wires & (2 << block) > 0
        for distance in (1 << exponent for exponent in reversed(range(block + 1))):
            partner = wires ^ distance
            sign = torch.where((wires & distance > 0) == descending, 1.0, -1.0)
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
