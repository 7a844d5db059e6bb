"""The forest plot of the page: all paired differences to the ordinary loss on one scale, and what they say of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reloss.experiment.task import find_experiment
from reloss.report.colours import loss_colour
from reloss.report.pooled_table import LEARNED
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
        colour: number of the colour of its loss.
        low: lower end, in percent of the plot's width; equal to `mean` for a single seed.
        high: upper end.
        mean: the difference itself.
        cut: whether the interval continues beyond the left and the right edge.
    """

    task: str
    row: TaskRow
    colour: int
    low: float
    high: float
    mean: float
    cut: tuple[bool, bool]


@dataclass(frozen=True)
class Forest:
    """All paired differences, from -limit to +limit points.

    Attributes:
        limit: half the width of the plot, in points of the score.
        intervals: one per learned or rival loss with a baseline.
        learned: the rows of the learned loss, by where their interval lies; the verdict of the page.
    """

    limit: float
    intervals: list[Interval]
    learned: dict[Side, list[TaskRow]]

    @property
    def compared(self) -> int:
        """Number of comparisons of the learned loss that have an interval."""
        return sum(len(rows) for side, rows in self.learned.items() if side is not Side.SINGLE)


def forest(rows: Sequence[tuple[str, TaskRow]]) -> Forest:
    """Return the differences among the rows, which come with the name of their task.

    Variants of the ordinary loss itself are left to the table.
    """
    ordinary = {name: find_experiment(name)[1].ordinary_loss for name in {row.experiment for _, row in rows}}
    compared = [
        (task, row, row.difference) for task, row in rows if row.difference and row.loss != ordinary[row.experiment]
    ]
    ends = [max(map(abs, (difference.mean, *_ends(difference)))) for _, _, difference in compared]
    limit = float(max(1, np.ceil(np.quantile(ends, SHARE_WITHIN, method="lower")))) if ends else 1.0
    intervals = [_interval(task, row, difference, limit) for task, row, difference in compared]
    learned: dict[Side, list[TaskRow]] = {side: [] for side in Side}
    for _, row, difference in compared:
        if row.loss == LEARNED:
            learned[difference.side].append(row)
    return Forest(limit, intervals, learned)


def _ends(difference: Difference) -> tuple[float, float]:
    if difference.low is None or difference.high is None:
        return difference.mean, difference.mean
    return difference.low, difference.high


def _interval(task: str, row: TaskRow, difference: Difference, limit: float) -> Interval:
    def place(value: float) -> float:
        return round(50 + 50 * max(-1.0, min(1.0, value / limit)), 2)

    low, high = _ends(difference)
    colour = loss_colour(find_experiment(row.experiment)[1], row.loss)
    return Interval(task, row, colour, place(low), place(high), place(difference.mean), (low < -limit, high > limit))
