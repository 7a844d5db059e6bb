"""The ranks and the choice of the k largest by `laplace` for one short row on a CPU, in NumPy.

For a few hundred values, the arithmetic takes less time than calling it. A call of NumPy costs a third of a call of
PyTorch, so this is the computation of `laplace` and `laplace_sort`, written out for one row whose values span a small
range.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from reloss.ranking.scans import MAX_RANGE

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_SIZE = 2048  # for longer rows the arithmetic dominates, and PyTorch is as fast


class RowRanks(NamedTuple):
    """The ranks [n] of a row, and what `row_gradient` needs: as in `laplace`, in sorted order and float64."""

    ranks: NDArray[np.floating]
    order: NDArray[np.intp]
    growth: NDArray[np.float64]
    decay: NDArray[np.float64]
    kernel_sums: NDArray[np.float64]


def row_ranks(values: NDArray[np.floating], temperature: float) -> RowRanks | None:
    """Return the ranks of `values` [n], or None if they span so much that their exponentials would overflow."""
    order = values.argsort()
    scaled = values.take(order).astype(np.float64)
    first, last = scaled.item(0), scaled.item(-1)
    if not last - first < MAX_RANGE * temperature:
        return None
    scaled -= (first + last) / 2
    scaled /= temperature
    growth, decay, left_sums, right_sums = _sums(scaled)
    kernel_sums = left_sums + right_sums
    right_sums -= left_sums
    right_sums *= 0.5
    right_sums += _places(len(values))
    return RowRanks(_scattered(right_sums, order, values.dtype), order, growth, decay, kernel_sums)


def row_choice(
    values: NDArray[np.floating], k: int, temperature: float
) -> tuple[NDArray[np.floating], NDArray[np.float64]] | None:
    """Return the shares [n] of `values` [n] among the k largest, 0 < k < n, and the density at the threshold.

    None if they span so much that their exponentials would overflow.
    """
    n = len(values)
    scaled = np.sort(values).astype(np.float64)
    first, last = scaled.item(0), scaled.item(-1)
    if not last - first < MAX_RANGE * temperature:
        return None
    middle = (first + last) / 2
    scaled -= middle
    scaled /= temperature
    _, _, left_sums, right_sums = _sums(scaled)
    below = right_sums - left_sums
    below *= 0.5
    below += _places(n)
    level = n - k
    count = int(below.searchsorted(level - 0.5, "right"))
    if count == 0:
        threshold = scaled.item(0) + math.log(2 * level / right_sums.item(0))
    elif count == n:
        threshold = scaled.item(-1) - math.log(2 * k / left_sums.item(-1))
    else:
        lower, upper, left, right = (
            *(scaled.item(count - 1), scaled.item(count)),
            *(left_sums.item(count - 1), right_sums.item(count)),
        )
        shift = math.asinh((level - count) * math.exp((upper - lower) / 2) / math.sqrt(left * right))
        threshold = (lower + upper - math.log(right / left)) / 2 + shift
    excess = values.astype(np.float64)
    excess -= middle + threshold * temperature
    excess /= temperature
    density = np.exp(-np.abs(excess))
    density *= 0.5
    return np.where(excess < 0, density, 1 - density).astype(values.dtype), density


def _sums(scaled: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Return exp(x) and exp(-x) for ascending x [n], and the sums of `decayed_sums` with weights of 1."""
    growth = np.exp(scaled)
    decay = np.reciprocal(growth)
    left_sums = growth.cumsum()
    left_sums *= decay
    return growth, decay, left_sums, decay[::-1].cumsum()[::-1] * growth


@lru_cache(maxsize=64)
def _places(n: int) -> NDArray[np.float64]:
    return np.arange(n, dtype=np.float64)


def row_gradient(gradient: NDArray[np.floating], row: RowRanks, temperature: float) -> NDArray[np.floating]:
    """Return the gradient [n] in the values, from the gradient [n] in the ranks."""
    ordered = gradient.take(row.order).astype(np.float64)
    left_sums = (ordered * row.growth).cumsum()
    left_sums *= row.decay
    right_sums = (ordered * row.decay)[::-1].cumsum()[::-1] * row.growth
    ordered *= row.kernel_sums
    ordered -= left_sums
    ordered -= right_sums
    ordered *= 0.5 / temperature
    return _scattered(ordered, row.order, gradient.dtype)


def _scattered(ordered: NDArray[np.float64], order: NDArray[np.intp], dtype: np.dtype) -> NDArray[np.floating]:
    result = np.empty(len(order), dtype)
    result[order] = ordered
    return result
