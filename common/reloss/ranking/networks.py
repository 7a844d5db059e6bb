"""Soft ranks from a differentiable sorting network.

A sorting network compares fixed pairs of positions ("wires"), layer by layer, and swaps the values of a pair that are
out of order (Batcher, 1968). Here a swap is soft: the pair (a, b) becomes (w a + (1 - w) b, (1 - w) a + w b), the
softly smaller and larger value, with the weight w = f(b - a) in [0, 1]. Each layer is then a doubly stochastic matrix
L_k, and the network is P = L_1 L_2 ... L_K: P_ij is the share of value i that lands on place j. The soft ranks are the
places where the values are expected to land, P (0, 1, ..., n-1). The shares of the values on the last k places are a
soft choice of the k largest, P (0, ..., 0, 1, ..., 1). The values themselves arrive sorted, as P^T x.

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
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from reloss.ranking.wiring import Network as Network
from reloss.ranking.wiring import Wiring

Interpolation = Literal["logistic", "logistic_phi", "cauchy", "gaussian", "reciprocal", "optimal"]

EPSILON = 1e-10  # of logistic_phi, as in diffsort
# Adding a tensor takes a third of the time of adding a number. One on the CPU needs no synchronisation with a GPU.
_EPSILON = torch.tensor(EPSILON, device="cpu")


class Comparator(NamedTuple):
    """The function from the difference of a pair to its weight."""

    steepness: float
    interpolation: Interpolation
    art_lambda: float


def network_places(values: Tensor, worth: Tensor, wiring: Wiring, comparator: Comparator) -> Tensor:
    """Return the expected worth [..., n] of the places where `values` [..., n] land: P times `worth` [n].

    The places 0, 1, ..., n-1 as their own worth give the soft ranks. Every layer preserves the mean; without it, less
    is lost to rounding. Differentiable in the values.
    """
    result: Tensor = _NetworkPlaces.apply(values, worth, wiring, comparator)
    return result


def network_sort(values: Tensor, wiring: Wiring, comparator: Comparator) -> Tensor:
    """Return softly sorted `values` [..., n], ascending: P^T times the values. Differentiable."""
    result: Tensor = _NetworkSort.apply(values, wiring, comparator)
    return result


def network_matrix(values: Tensor, wiring: Wiring, comparator: Comparator) -> Tensor:
    """Return P^T [..., n, n] for `values` [..., n]: row k holds the shares of the values on place k. Differentiable."""
    _, weights = _sorted_and_weights(_to_wires(values), wiring, comparator)
    n = values.shape[-1]
    shares = torch.eye(n, dtype=values.dtype, device=values.device)  # [place, value] or, with rows, [place, row, value]
    shares = shares if weights[0].dim() == 1 else shares[:, None].expand(n, weights[0].shape[-1], n)
    for partner, weight in zip(wiring.partners, weights, strict=True):
        shares = torch.lerp(shares.index_select(0, partner), shares, weight[..., None])
    return (shares if shares.dim() == 2 else shares.transpose(0, 1)).reshape(*values.shape, n)


class _NetworkPlaces(torch.autograd.Function):
    """The result of `network_places`, with a gradient by two sweeps."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, worth: Tensor, wiring: Wiring, comparator: Comparator) -> Tensor:
        result, saved = _place_sweeps(_to_wires(values), worth, wiring, comparator)
        ctx.wiring, ctx.comparator = wiring, comparator
        ctx.save_for_backward(values, worth, saved)
        return _from_wires(result, values.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        values, worth, saved = ctx.saved_tensors
        if torch.is_grad_enabled():  # for second derivatives: let autograd differentiate the definition
            wires = _to_wires(values)
            _, weights = _sorted_and_weights(wires, ctx.wiring, ctx.comparator)
            places = _expanded(worth, wires)
            for partner, weight in zip(reversed(ctx.wiring.partners), reversed(weights), strict=True):
                places = torch.lerp(places.index_select(0, partner), places, weight)
            result = _from_wires(places, values.shape)
            (result,) = torch.autograd.grad(result, values, gradient, create_graph=True)
            return result, None, None, None
        weights, differences, gaps = saved.unbind()
        result = _gradient_sweeps(_to_wires(gradient), ctx.wiring, ctx.comparator, weights, differences, gaps)
        return _from_wires(result, values.shape), None, None, None


class _NetworkSort(torch.autograd.Function):
    """The result of `network_sort`, with a gradient by one sweep."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, wiring: Wiring, comparator: Comparator) -> Tensor:
        wires = _to_wires(values)
        saved = wires.new_empty(2, len(wiring.partners), *wires.shape)
        result, _ = _value_sweep(wires, wiring, comparator, *saved.unbind())
        ctx.wiring, ctx.comparator = wiring, comparator
        ctx.save_for_backward(values, saved)
        return _from_wires(result, values.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        values, saved = ctx.saved_tensors
        if torch.is_grad_enabled():
            wires, _ = _sorted_and_weights(_to_wires(values), ctx.wiring, ctx.comparator)
            result = _from_wires(wires, values.shape)
            (result,) = torch.autograd.grad(result, values, gradient, create_graph=True)
            return result, None, None
        weights, differences = saved.unbind()
        gradient = _to_wires(gradient).clone()
        slopes = _slopes(weights, differences, _signed_steepness(ctx.wiring, ctx.comparator, gradient), ctx.comparator)
        shares = torch.addcmul(weights, slopes, differences)
        result = _value_gradient_sweep(gradient, torch.empty_like(gradient), ctx.wiring, shares)
        return _from_wires(result, values.shape), None, None


def _to_wires(values: Tensor) -> Tensor:
    """Return [..., n] as [n, rows], which makes a layer contiguous. A single row becomes [n], which is faster."""
    rows = values.reshape(-1, values.shape[-1])
    return rows[0] if len(rows) == 1 else rows.T.contiguous()


def _from_wires(wires: Tensor, shape: torch.Size) -> Tensor:
    return (wires if wires.dim() == 1 else wires.T).reshape(shape)


def _expanded(worth: Tensor, like: Tensor) -> Tensor:
    """Return `worth` [n] in the shape of `like`, [n] or [n, rows]."""
    return (worth if like.dim() == 1 else worth[:, None]).expand_as(like)


def _sorted_and_weights(values: Tensor, wiring: Wiring, comparator: Comparator) -> tuple[Tensor, list[Tensor]]:
    """Return softly sorted values [n] or [n, rows], and each layer's weights, differentiable any number of times.

    This is the definition; `_value_sweep` computes the same in place. In each layer, a wire keeps the share `weight` of
    its value x and takes the rest from its partner's value x': x <- x' + weight (x - x').
    """
    weights = []
    for partner, steepness in zip(wiring.partners, _signed_steepness(wiring, comparator, values).unbind(), strict=True):
        partner_values = values.index_select(0, partner)
        weights.append(_interpolate(partner_values - values, steepness, comparator))
        values = torch.lerp(partner_values, values, weights[-1])
    return values, weights


def _value_sweep(
    values: Tensor, wiring: Wiring, comparator: Comparator, weights: Tensor, differences: Tensor
) -> tuple[Tensor, Tensor]:
    """Return softly sorted values [n] or [n, rows], and a tensor of this shape to overwrite.

    Writes into preallocated tensors. For few values, allocation would take half of the time; for many rows, the system
    would map and unmap memory in every layer.

    Args:
        values: [n] or [n, rows].
        wiring: the network.
        comparator: its comparisons.
        weights: [K, *values.shape], set to each layer's weights.
        differences: [K, *values.shape], set to each layer's partner's value minus the own value.
    """
    values = values.clone()
    partner_values, base = torch.empty_like(values), torch.empty_like(values)
    steepnesses = _signed_steepness(wiring, comparator, values).unbind()
    layers = (wiring.partners, steepnesses, weights.unbind(), differences.unbind())
    for partner, steepness, weight, difference in zip(*layers, strict=True):
        torch.index_select(values, 0, partner, out=partner_values)
        torch.sub(partner_values, values, out=difference)
        if comparator.interpolation == "logistic_phi":
            _power_(torch.abs(difference, out=base).add_(_EPSILON), comparator.art_lambda)
            torch.mul(difference, steepness, out=weight).div_(base).sigmoid_()
        else:
            weight.copy_(_interpolate(difference, steepness, comparator))
        values, partner_values = partner_values.lerp_(values, weight), values
    return values, partner_values


def _place_sweeps(values: Tensor, worth: Tensor, wiring: Wiring, comparator: Comparator) -> tuple[Tensor, Tensor]:
    """Return the expected worth of the places of [n] or [n, rows], and what the gradient needs.

    Returns:
        The result, and [3, K, *values.shape]: for each layer the weights, the partner's value minus the own value, and
        the own place's worth minus the partner's.
    """
    saved = values.new_empty(3, len(wiring.partners), *values.shape)
    weights, differences, gaps = saved.unbind()
    values, partner_places = _value_sweep(values, wiring, comparator, weights, differences)
    places = values.copy_(_expanded(worth, values))
    for partner, weight, gap in zip(*map(reversed, (wiring.partners, weights.unbind(), gaps.unbind())), strict=True):
        torch.index_select(places, 0, partner, out=partner_places)
        torch.sub(places, partner_places, out=gap)
        places, partner_places = partner_places.lerp_(places, weight), places
    return places, saved


def _gradient_sweeps(
    gradient: Tensor, wiring: Wiring, comparator: Comparator, weights: Tensor, differences: Tensor, gaps: Tensor
) -> Tensor:
    """Return the gradient in the values, from the gradient in the result of `_place_sweeps` and what it saved."""
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
    pulls = zip(slopes.mul_(gaps).unbind(), gradient_differences, strict=True)
    return _value_gradient_sweep(gradient.zero_(), partner_gradient, wiring, shares, list(pulls))


def _value_gradient_sweep(
    result: Tensor,
    partner_result: Tensor,
    wiring: Wiring,
    shares: Tensor,
    pulls: list[tuple[Tensor, Tensor]] | None = None,
) -> Tensor:
    """Return the gradient in the values, from the gradient `result` in the sorted values, which is overwritten.

    Args:
        result: [n] or [n, rows].
        partner_result: a tensor of this shape to overwrite.
        wiring: the network.
        shares: [K, *result.shape], the derivative of a layer's values in the values before it.
        pulls: two factors for each layer. Their product is a gradient in the values that does not pass through the
            sorted ones.
    """
    for layer in reversed(range(len(shares))):
        torch.index_select(result, 0, wiring.partners[layer], out=partner_result)
        result, partner_result = partner_result.lerp_(result, shares[layer]), result
        if pulls is not None:
            result.addcmul_(*pulls[layer])
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
