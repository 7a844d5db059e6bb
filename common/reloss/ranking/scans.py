"""Sums that decay with distance along the last axis, in O(n) work and few steps."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

WIDTH = 32
MAX_SPREAD = 600.0  # exp of half of it, squared and summed over 10^9 values, stays in float64


def decay_factors(places: Tensor) -> tuple[Tensor, ...]:
    """Return what `decayed_sums` needs to know of ascending `places` [..., n] in float64.

    For a spread within the range of float64, exp(places) and exp(-places) about their middle; for a larger one, the
    decays between neighbours. On a GPU always these: to ask for the spread, the host would have to wait.
    """
    if not places.is_cuda and (places[..., -1] - places[..., 0]).max().item() < MAX_SPREAD:
        middle = (places[..., :1] + places[..., -1:]).detach() / 2
        growing = (places - middle).exp_()
        return growing, growing.reciprocal()
    return ((-places.diff(dim=-1, prepend=places[..., :1])).exp(),)


def decayed_sums(weights: Tensor | None, factors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Return the sums of weights_j exp(-|places_i - places_j|) over j <= i, and over j >= i; differentiable.

    Exact for any spread of the places, without overflow.

    Args:
        weights: [..., n], float64; all 1 if None.
        factors: from `decay_factors`.
    """
    if len(factors) == 2:
        growing, fading = factors
        from_left, from_right = factors if weights is None else (weights * growing, weights * fading)
        return from_left.cumsum(-1).mul_(fading), from_right.flip(-1).cumsum_(-1).flip(-1).mul_(growing)
    (decays,) = factors
    weights = torch.ones_like(decays) if weights is None else weights
    from_above = torch.cat((decays[..., 1:], decays[..., :1]), -1).flip(-1)
    return recurrence(weights, decays), recurrence(weights.flip(-1), from_above).flip(-1)


def recurrence(inputs: Tensor, decays: Tensor) -> Tensor:
    """Return y with y_i = decays_i y_{i-1} + inputs_i and y_{-1} = 0, along the last axis; differentiable.

    With decays in [0, 1] nothing overflows, and products that underflow are the zeros they should be: exact for any
    spread. The axis is cut into rows of 32: 32 steps over all rows at once, then the same for the ends of the rows.

    Args:
        inputs: [..., n].
        decays: [..., n], of the same shape.
    """
    n = inputs.shape[-1]
    columns, kept = _columns(inputs), _columns(decays)
    sums, products = [columns[0]], [kept[0]]
    for column, decay in zip(columns[1:], kept[1:], strict=True):
        sums.append(torch.addcmul(column, decay, sums[-1]))
        products.append(decay * products[-1])
    result = torch.stack(sums, -1)
    if result.shape[-2] > 1:
        ends = recurrence(sums[-1], products[-1])
        carried = F.pad(ends[..., :-1], (1, 0))
        result = torch.addcmul(result, torch.stack(products, -1), carried[..., None])
    return result.flatten(-2)[..., :n]


def _columns(values: Tensor) -> Tensor:
    """Return [WIDTH, ..., rows], contiguous: value i of row r is value 32 r + i, zeros after the last."""
    rows = -(-values.shape[-1] // WIDTH)
    padded = F.pad(values, (0, rows * WIDTH - values.shape[-1]))
    return padded.unflatten(-1, (rows, WIDTH)).movedim(-1, 0).contiguous()
