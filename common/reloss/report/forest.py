"""The forest plot of the page: all paired differences of learned losses to their baseline, on one scale."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reloss.experiment.config import FITTED_LOSSES
from reloss.report.statistics import Difference, Side
from reloss.report.task_table import TaskRow

SHARE_WITHIN = 0.8
"""Share of the intervals that the scale must hold; wider ones are cut, so that they do not flatten the others."""


@dataclass(frozen=True)
class Interval:
    """One paired difference with its interval.

    Attributes:
        task: name of the task.
        row: the row of the table with the difference.
        low: lower end, in percent of the plot's width; equal to `mean` for a single seed.
        high: upper end.
        mean: the difference itself.
        cut: whether the interval continues beyond the left and the right edge.
    """

    task: str
    row: TaskRow
    low: float
    high: float
    mean: float
    cut: tuple[bool, bool]


@dataclass(frozen=True)
class Forest:
    """All paired differences, from -limit to +limit points, and how many intervals lie where.

    Attributes:
        limit: half the width of the plot, in points of the score.
        intervals: one per learned loss with a baseline.
        above: number of intervals above zero.
        below: number of intervals below zero.
        within: number of intervals that include zero.
        single: number of differences from a single seed, which have no interval.
    """

    limit: float
    intervals: list[Interval]
    above: int
    below: int
    within: int
    single: int


def forest(rows: Sequence[tuple[str, TaskRow]]) -> Forest:
    """Return the differences of the learned losses among the rows, which come with the name of their task."""
    compared = [(task, row, row.difference) for task, row in rows if row.difference and row.loss in FITTED_LOSSES]
    ends = [max(map(abs, (difference.mean, *_ends(difference)))) for _, _, difference in compared]
    limit = float(max(1, np.ceil(np.quantile(ends, SHARE_WITHIN, method="lower")))) if ends else 1.0
    counts = Counter(difference.side for _, _, difference in compared)
    intervals = [_interval(task, row, difference, limit) for task, row, difference in compared]
    return Forest(limit, intervals, *(counts[side] for side in (Side.ABOVE, Side.BELOW, Side.AROUND, Side.SINGLE)))


def _ends(difference: Difference) -> tuple[float, float]:
    if difference.low is None or difference.high is None:
        return difference.mean, difference.mean
    return difference.low, difference.high


def _interval(task: str, row: TaskRow, difference: Difference, limit: float) -> Interval:
    def place(value: float) -> float:
        return round(50 + 50 * max(-1.0, min(1.0, value / limit)), 2)

    low, high = _ends(difference)
    return Interval(task, row, place(low), place(high), place(difference.mean), (low < -limit, high > limit))
