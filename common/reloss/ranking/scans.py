"""Sums whose terms decay with distance, in O(n) work.

For sorted places p, the sum of w_j exp(-|p_i - p_j|) over j <= i follows a recurrence: y_i = exp(p_{i-1} - p_i) y_{i-1}
+ w_i. If the places span a small range, exp(p_i) factors out and a cumulative sum is enough. For a larger range
exp(p_i) would overflow, so a blocked scan runs the recurrence: in all blocks of 32 values in parallel, then over the
ends of the blocks (Blelloch, "Prefix sums and their applications", 1990). That takes 32 steps per level instead of n in
total.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 32
MAX_RANGE = 600.0  # exp of half of it, squared and summed over 10^9 values, still fits float64


def decay_factors(places: Tensor) -> tuple[Tensor, ...]:
    """Return the factors that `decayed_sums` needs, from ascending `places` [..., n] in float64.

    Two factors if the places span less than `MAX_RANGE`: exp(places) and exp(-places), relative to their middle. One
    factor otherwise: the decay from each place to the next. On a GPU always one, because reading the range would make
    the CPU wait for the GPU.
    """
    if not places.is_cuda and (places[..., -1] - places[..., 0]).max().item() < MAX_RANGE:
        middle = (places[..., :1] + places[..., -1:]).detach() / 2
        growth = (places - middle).exp_()
        return growth, growth.reciprocal()
    return ((-places.diff(dim=-1, prepend=places[..., :1])).exp(),)


def decayed_sums(weights: Tensor | None, factors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Return the sums of weights_j exp(-|places_i - places_j|) over j <= i, and over j >= i. Differentiable.

    Exact for any range of places, without overflow.

    Args:
        weights: [..., n] in float64; None means all 1.
        factors: the result of `decay_factors`.

    Returns:
        Two tensors [..., n].
    """
    if len(factors) == 2:
        growth, decay = factors
        left_terms, right_terms = factors if weights is None else (weights * growth, weights * decay)
        return left_terms.cumsum(-1).mul_(decay), right_terms.flip(-1).cumsum_(-1).flip(-1).mul_(growth)
    (decays,) = factors
    weights = torch.ones_like(decays) if weights is None else weights
    reversed_decays = torch.cat((decays[..., 1:], decays[..., :1]), -1).flip(-1)
    return recurrence(weights, decays), recurrence(weights.flip(-1), reversed_decays).flip(-1)


def recurrence(inputs: Tensor, decays: Tensor) -> Tensor:
    """Return y with y_i = decays_i y_{i-1} + inputs_i and y_{-1} = 0, along the last axis. Differentiable.

    With decays in [0, 1] nothing overflows. Products that underflow become 0, their correct value.

    Args:
        inputs: [..., n].
        decays: [..., n], the same shape as `inputs`.

    Returns:
        [..., n].
    """
    n = inputs.shape[-1]
    input_columns, decay_columns = _columns(inputs), _columns(decays)
    sums, products = [input_columns[0]], [decay_columns[0]]
    for column, decay in zip(input_columns[1:], decay_columns[1:], strict=True):
        sums.append(torch.addcmul(column, decay, sums[-1]))
        products.append(decay * products[-1])
    result = torch.stack(sums, -1)
    if result.shape[-2] > 1:
        block_ends = recurrence(sums[-1], products[-1])
        carry = F.pad(block_ends[..., :-1], (1, 0))
        result = torch.addcmul(result, torch.stack(products, -1), carry[..., None])
    return result.flatten(-2)[..., :n]


def _columns(values: Tensor) -> Tensor:
    """Return [BLOCK, ..., blocks], contiguous: entry i of block b is value 32 b + i, or 0 past the end."""
    blocks = -(-values.shape[-1] // BLOCK)
    padded = F.pad(values, (0, blocks * BLOCK - values.shape[-1]))
    return padded.unflatten(-1, (blocks, BLOCK)).movedim(-1, 0).contiguous()
