"""Which figure of a fit predicts whether its loss will win: rank correlations with the gain, over data sets.

Computed from committed records. A comparison is one learned loss on one data set: its gain over cross-entropy on the
test split, each at its best learning rate, next to the figures in the card of its surrogate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import mean

import torch

from reloss.experiment.records import RunRecord
from reloss.experiment.task import Task
from reloss.ranking import spearman
from reloss.report.groups import scores_by_seed
from reloss.report.pooled_table import best_groups_by_set
from reloss.report.table import Cell, Number, Table

FIGURES = {
    "spearman": "Spearman, held-out items",
    "spearman_synthetic": "Spearman, synthetic items",
    "local_spearman": "Spearman, small changes",
    "local_spread": "spread of the loss, small changes",
    "local_cosine": "cosine of slope and metric",
}
"""Figures of a fit, and what the table calls them."""

HEADERS = (
    "figure of the fit",
    "rank correlation with the gain",
    "the same, figure minus that of cross-entropy",
    "sets",
)
NOTE = "Spearman's correlation, over the data sets, of a figure of the fit with the gain in {score} over cross-entropy."


def predictors_table(
    task: Task, runs: Sequence[RunRecord], score: str, settings: tuple[str, ...], pattern: str
) -> Table:
    """Return how well each figure of the fits predicts the gain in `score`.

    Args:
        task: the task.
        runs: all records.
        score: the score to compare.
        settings: settings of the learned loss other than the learning rate.
        pattern: shell pattern of the experiments' names without the task.
    """
    comparisons = list(_comparisons(task, runs, score, settings, pattern))
    rows: list[list[Cell]] = []
    for figure, name in FIGURES.items():
        pairs = [(fit, gain) for fit, gain in comparisons if figure in fit]
        if len(pairs) < 3:
            continue
        gains = torch.tensor([gain for _, gain in pairs])
        values = torch.tensor([fit[figure] for fit, _ in pairs])
        ordinary = torch.tensor([fit.get(f"{figure}_ordinary", 0.0) for fit, _ in pairs])
        correlations = [float(spearman(each, gains)) for each in (values, values - ordinary)]
        rows.append([name, *(Number(value, f"{value:+.2f}") for value in correlations), len(pairs)])
    return Table(HEADERS, rows, NOTE.format(score=score))


def _comparisons(
    task: Task, runs: Sequence[RunRecord], score: str, settings: tuple[str, ...], pattern: str
) -> Iterator[tuple[dict[str, float], float]]:
    """Yield the figures of the fit and the gain on each data set."""
    groups = best_groups_by_set(task, runs, score, pattern)
    for name, learned in groups.get(("reloss", settings), {}).items():
        ordinary = groups.get((task.experiments[name]().ordinary_loss, ()), {}).get(name)
        if ordinary:
            scores = [mean(scores_by_seed(group, score).values()) for group in (learned, ordinary)]
            yield dict(learned[0].fit), scores[0] - scores[1]
