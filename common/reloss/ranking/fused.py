"""The bitonic network's ranks on a GPU in one kernel launch a direction, by Triton.

The same two sweeps as in `networks.py`, whose PyTorch path is the reference: there each layer is some ten launches,
here a program walks a row through all layers while its values stay in registers. Used where RELOSS_FUSED=1 asks for it:
it was compared with the reference in Triton's interpreter and compiled for NVIDIA GPUs, but not yet timed on one.
"""

# mypy: disable-error-code="no-untyped-def"
# (Triton reads the annotations of a kernel's arguments as its own.)

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


def fused_sweep(values: Tensor, steepness: float, art_lambda: float) -> tuple[Tensor, Tensor]:
    """Return ranks [rows, n] and, [3, rows, K, n], the weights, differences and gaps of the K layers.

    Args:
        values: [rows, n] float32, n >= 2, and few enough for one program (`networks.LARGEST_FUSED`).
        steepness: of a comparison.
        art_lambda: exponent of `logistic_phi`.
    """
    rows, n = values.shape
    blocks = (n - 1).bit_length()
    ranks = torch.empty_like(values)
    saved = values.new_empty(3, rows, blocks * (blocks + 1) // 2, n)
    _forward[(rows,)](
        *(values, ranks, *saved.unbind()),
        *(n, steepness, art_lambda),
        **{"SIZE": 1 << blocks, "BLOCKS": blocks, **_shape(n)},
    )
    return ranks, saved


def fused_sweep_back(gradient: Tensor, saved: Tensor, steepness: float, art_lambda: float) -> Tensor:
    """Return the gradient in the values [rows, n], given that in the ranks and what else `fused_sweep` returned."""
    rows, n = gradient.shape
    blocks = (n - 1).bit_length()
    result, pulls = torch.empty_like(gradient), torch.empty_like(saved[0])
    _backward[(rows,)](
        *(gradient, result, *saved.unbind(), pulls),
        *(n, steepness, art_lambda),
        **{"SIZE": 1 << blocks, "BLOCKS": blocks, **_shape(n)},
    )
    return result


def _shape(n: int) -> dict[str, Any]:
    return {"num_warps": 4 if n <= 512 else 8 if n <= 1024 else 16}  # 8 values a thread at most: registers suffice


@triton.jit
def _wires(n, SIZE: tl.constexpr, BLOCKS: tl.constexpr):
    """Return the wires, the first real one, which are real, and where their row and its layers begin in memory."""
    wires = tl.arange(0, SIZE)
    first = SIZE - n  # the first wires of the next power of two are left out
    row = tl.program_id(0).to(tl.int64)
    at = row * n + wires - first
    layers: tl.constexpr = BLOCKS * (BLOCKS + 1) // 2
    return wires, first, wires >= first, at, at + row * (layers - 1) * n


@triton.jit
def _wiring(wires, block, step, first):
    """Return each wire's partner, itself where it is idle, and whether it takes the smaller value of its pair."""
    distance = 1 << (block - step)
    partner = wires ^ distance
    partner = tl.where((partner < first) | (wires < first), wires, partner)
    takes_smaller = ((wires & distance) > 0) == ((wires & (2 << block)) > 0)
    return partner, takes_smaller


@triton.jit
def _power(base, exponent):
    return tl.exp2(exponent * tl.log2(base))


@triton.jit
def _forward(
    values_at,
    ranks_at,
    weights_at,
    differences_at,
    gaps_at,
    n,
    steepness,
    art_lambda,
    SIZE: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    wires, first, real, own, saved = _wires(n, SIZE, BLOCKS)
    values = tl.load(values_at + own, mask=real, other=0.0)
    layer = 0
    for block in range(BLOCKS):
        for step in range(block + 1):
            partner, takes_smaller = _wiring(wires, block, step, first)
            others = tl.gather(values, partner, 0)
            difference = others - values
            scaled = difference * steepness / _power(tl.abs(difference) + 1e-10, art_lambda)
            weight = tl.sigmoid(tl.where(takes_smaller, scaled, -scaled))
            values = others - weight * difference
            tl.store(weights_at + saved + layer * n, weight, mask=real)
            tl.store(differences_at + saved + layer * n, difference, mask=real)
            layer += 1
    tl.debug_barrier()  # what was stored is loaded again, maybe by other threads
    middle = (n - 1) / 2.0
    places = tl.where(real, wires - first - middle, 0.0)
    for back in range(BLOCKS):
        block = BLOCKS - 1 - back
        for step_back in range(block + 1):
            layer -= 1
            partner, takes_smaller = _wiring(wires, block, block - step_back, first)
            weight = tl.load(weights_at + saved + layer * n, mask=real, other=1.0)
            gap = places - tl.gather(places, partner, 0)
            places = places - (1.0 - weight) * gap
            tl.store(gaps_at + saved + layer * n, gap, mask=real)
    tl.store(ranks_at + own, places + middle, mask=real)


@triton.jit
def _backward(
    gradient_at,
    result_at,
    weights_at,
    differences_at,
    gaps_at,
    pulls_at,
    n,
    steepness,
    art_lambda,
    SIZE: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    wires, first, real, own, saved = _wires(n, SIZE, BLOCKS)
    gradient = tl.load(gradient_at + own, mask=real, other=0.0)
    layer = 0
    for block in range(BLOCKS):
        for step in range(block + 1):
            partner, takes_smaller = _wiring(wires, block, step, first)
            at = saved + layer * n
            weight = tl.load(weights_at + at, mask=real, other=1.0)
            slope = _slope(
                weight, tl.load(differences_at + at, mask=real, other=0.0), takes_smaller, steepness, art_lambda
            )
            apart = tl.gather(gradient, partner, 0) - gradient
            gradient = gradient + (1.0 - weight) * apart
            tl.store(pulls_at + at, slope * tl.load(gaps_at + at, mask=real, other=0.0) * apart, mask=real)
            layer += 1
    tl.debug_barrier()
    result = tl.zeros_like(gradient)
    for back in range(BLOCKS):
        block = BLOCKS - 1 - back
        for step_back in range(block + 1):
            layer -= 1
            partner, takes_smaller = _wiring(wires, block, block - step_back, first)
            at = saved + layer * n
            weight = tl.load(weights_at + at, mask=real, other=1.0)
            difference = tl.load(differences_at + at, mask=real, other=0.0)
            kept = weight + _slope(weight, difference, takes_smaller, steepness, art_lambda) * difference
            others = tl.gather(result, partner, 0)
            result = others + kept * (result - others) + tl.load(pulls_at + at, mask=real, other=0.0)
    tl.store(result_at + own, result, mask=real)


@triton.jit
def _slope(weight, difference, takes_smaller, steepness, art_lambda):
    """Return the derivative of `logistic_phi` in the difference, in closed form."""
    base = tl.abs(difference) + 1e-10
    slope = (art_lambda * 1e-10 / base + (1.0 - art_lambda)) * steepness / _power(base, art_lambda)
    return tl.where(takes_smaller, slope, -slope) * weight * (1.0 - weight)
