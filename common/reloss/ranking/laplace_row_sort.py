"""The soft sort of `laplace` for one row on a CPU, in NumPy; see `laplace_row` for the reason.

If a row spans a small range, exp(-|b - x_i|) factors for all pairs: the sum over the c values below b is exp(-b) times
the sum of their exp(x_i), a running sum. So F(b) = c + (exp(b) Q_c - exp(-b) P_c) / 2 with running sums P and Q, and a
threshold solves a quadratic equation in exp(b).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from reloss.ranking.scans import MAX_RANGE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


MAX_SORT_SIZE = 1 << 16  # for longer rows PyTorch is as fast


class RowSort(NamedTuple):
    """Places of a softly sorted row, and what `row_sort_gradient` needs.

    Attributes:
        places: [stop - start] in float64, in the unit of the values.
        x: [n] the sorted values in temperatures, around their middle.
        thresholds: [m] at the ends of the places, without those of 0 and n.
        counts: [m] how many values each threshold is above.
        means: [m] of x near each threshold.
    """

    places: Floats
    x: Floats
    thresholds: Floats
    counts: NDArray[np.int64]
    means: Floats


def row_sort(ordered: Floats, start: int, stop: int, temperature: float) -> RowSort | None:
    """Return the places start <= k < stop of the soft sort of ascending values [n], or None if they span too much."""
    n = len(ordered)
    if not ordered.item(-1) - ordered.item(0) < MAX_RANGE * temperature:
        return None
    middle = (ordered.item(0) + ordered.item(-1)) / 2
    x = (ordered - middle) / temperature
    growth = np.exp(x)
    decay = np.reciprocal(growth)
    below, above = _running_sum(growth), _running_sum(decay, from_end=True)  # P and Q
    counts = growth * above[:-1]
    counts -= decay * below[1:]
    counts *= 0.5
    counts += np.arange(0.5, n)  # F at the values
    levels = np.arange(max(start, 1), min(stop, n - 1) + 1)
    c = _cumulative_counts(np.maximum(np.ceil(counts) - levels.item(0), 0).astype(np.int64), len(levels))
    p, q = below[c], above[c]
    thresholds = _solve(p, q, levels - c)
    growth_there = np.exp(thresholds)
    decay_there = np.reciprocal(growth_there)
    p *= decay_there
    q *= growth_there
    p_x = _running_sum(x * growth)[c] * decay_there
    q_x = _running_sum(x * decay, from_end=True)[c] * growth_there
    cumulated = _running_sum(x)
    heights = q_x - p_x
    heights *= 0.5
    heights += cumulated[c]
    if start == 0:
        heights = np.concatenate(((0.0,), heights))
    if stop == n:
        heights = np.concatenate((heights, cumulated[-1:]))
    places = heights[1:] - heights[:-1]
    places *= temperature
    places += middle
    return RowSort(places, x, thresholds, c, (p_x + q_x) / (p + q))


def row_sort_gradient(gradient: Floats, row: RowSort, start: int, stop: int) -> Floats:
    """Return the gradient [n] in the sorted values, from the gradient [stop - start] in the places.

    The formula is that of `laplace_sort`.
    """
    n = len(row.x)
    steps = np.zeros(stop - start + 1)
    steps[:-1] -= gradient
    steps[1:] += gradient  # the gradients in H(b_start), ..., H(b_stop)
    total = steps.item(-1) if stop == n else 0.0
    steps = steps[int(start == 0) : len(steps) - int(stop == n)]
    growth = np.exp(row.thresholds)
    decay = np.reciprocal(growth)
    c = _cumulative_counts(row.counts, n)  # thresholds below each value
    growth_there = np.exp(row.x)
    decay_there = np.reciprocal(growth_there)
    grown, decayed = steps * growth, steps * decay
    left = _running_sum(grown)[c] * decay_there
    right = _running_sum(decayed, from_end=True)[c] * growth_there
    grown *= row.means
    decayed *= row.means
    result = _running_sum(grown)[c] * decay_there
    result += _running_sum(decayed, from_end=True)[c] * growth_there
    result += left - right
    result -= row.x * (left + right)
    result *= 0.5
    result += _running_sum(steps, from_end=True)[c]
    result += total
    return result


def _cumulative_counts(places: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Return the result of `reloss.ranking.sorting.cumulative_counts`, for one row."""
    return np.bincount(np.minimum(places, size), minlength=size + 1)[:size].cumsum()


def _running_sum(values: Floats, from_end: bool = False) -> Floats:
    """Return the sums [n + 1] over the first 0, 1, ..., n values [n], or from the end over all but these."""
    result = np.zeros(len(values) + 1)
    if from_end:
        np.cumsum(values[::-1], out=result[-2::-1])
    else:
        np.cumsum(values, out=result[1:])
    return result


def _solve(p: Floats, q: Floats, excess: NDArray[np.int64]) -> Floats:
    """Return b with exp(b) q - exp(-b) p = 2 excess. Only the first ones can have p = 0, the last ones q = 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        result = np.arcsinh(excess / np.sqrt(p * q)) + 0.5 * np.log(p / q)
        ends = (p == 0) | (q == 0)
        if ends.any():
            result = np.where(p == 0, np.log(2 * excess / q), np.where(q == 0, -np.log(-2 * excess / p), result))
    return result
