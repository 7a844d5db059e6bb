"""One table over many data sets: the learned loss next to each rival, every loss at its best learning rate.

A gain on one small data set can be luck. So the unit here is the data set: a loss has one score per set, the mean over
its seeds or folds, and two losses are compared by the paired differences of these scores. On a single data set, the
unit is the seed.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

from reloss.experiment.records import RunRecord
from reloss.experiment.task import Task
from reloss.report.groups import Key, scores_by_seed
from reloss.report.statistics import (
    Difference,
    Sample,
    describe,
    difference_data,
    paired_difference,
    sample_data,
)
from reloss.report.table import Cell, Missing, Table
from reloss.report.tuned_table import best_groups, usable_runs
from reloss.runtime.errors import UsageError

LEARNED = "reloss"
TUNED_THRESHOLD = {"binary_f1": "tuned_f1", "mcc": "tuned_mcc"}
"""Scores at a threshold that is tuned on the validation split, by the score at the usual threshold."""

HEADERS = ("loss", "settings", "mean, %", "learned minus this", "won", "n")
NOTE = (
    "{score}: mean ± standard deviation over n {units}; each loss at the learning rate with the best mean on the "
    "validation split of its set. Learned minus this: paired difference, with its 95 % t interval over the {units}. "
    "The learned loss is {learned}, the best one on the validation splits. Won: {units} on which it is better."
)


@dataclass(frozen=True)
class PooledRow:
    """A loss over several data sets. Scores are in percent.

    Attributes:
        loss: name of the loss, and whether its threshold is tuned.
        settings: changes of the experiments' configs other than the learning rate.
        units: `sets` or `seeds`; each has one score.
        scores: mean test score of each experiment; of a single experiment, the score of each seed.
        mean: mean and standard deviation of the scores.
        difference: the learned loss minus this one; None for the learned loss.
        won: number of units on which the learned loss scores higher.
    """

    loss: str
    settings: tuple[str, ...]
    units: str
    scores: dict[str, float]
    mean: Sample
    difference: Difference | None
    won: int


def pooled_rows(task: Task, runs: Sequence[RunRecord], score: str, pattern: str) -> list[PooledRow]:
    """Return one row for each loss and settings that every experiment whose name matches `pattern` was run with.

    Args:
        task: the task.
        runs: all records.
        score: the score to compare, such as binary_f1.
        pattern: shell pattern of the experiments' names without the task, such as keel_*.

    Raises:
        UsageError: no finished record matches, or the learned loss was not run.
    """
    groups = best_groups_by_set(task, runs, score, pattern)
    by_seed = len({name for by_set in groups.values() for name in by_set}) == 1
    scores = {key: _by_unit(by_set, score, by_seed) for key, by_set in groups.items()}
    learned = [key for key in groups if key[0] == LEARNED]
    if not learned:
        raise UsageError(f"no finished record of {LEARNED} has the score {score} in experiments {task.name}/{pattern}")
    validation = {key: _by_unit(groups[key], f"validation_{score}", by_seed) for key in learned}
    best = max(learned, key=lambda key: (len(validation[key]), mean(validation[key].values())))
    if tuned := TUNED_THRESHOLD.get(score):
        ordinary = {make().ordinary_loss for make in task.experiments.values()}
        for (loss, settings), by_set in best_groups_by_set(task, runs, tuned, pattern).items():
            if loss in ordinary:
                scores[f"{loss}, threshold tuned", settings] = _by_unit(by_set, tuned, by_seed)
    units = scores[best].keys()
    rows = [_row(key, values, scores[best], key == best) for key, values in scores.items() if values.keys() >= units]
    return sorted(rows, key=lambda row: -row.mean.mean)


def best_groups_by_set(
    task: Task, runs: Sequence[RunRecord], score: str, pattern: str
) -> dict[Key, dict[str, Sequence[RunRecord]]]:
    """Return the runs of every loss with settings, by experiment, at the learning rate with the best `score`.

    The rate is chosen on the validation split. Only experiments whose names match `pattern` count.
    """
    groups: dict[Key, dict[str, Sequence[RunRecord]]] = {}
    usable = usable_runs(runs, score)
    for name in fnmatch.filter(task.experiments, f"{task.name}/{pattern}"):
        of_experiment = [run for run in usable if run.experiment == name]
        for key, group in best_groups(task.experiments[name](), of_experiment, score).items():
            groups.setdefault(key, {})[name] = group
    return groups


def _by_unit(by_set: Mapping[str, Sequence[RunRecord]], score: str, by_seed: bool) -> dict[str, float]:
    """Return the mean score of each set or, of the only set, the score of each seed."""
    scores = {name: scores_by_seed(group, score) for name, group in by_set.items()}
    if by_seed:
        return {f"seed {seed}": value for values in scores.values() for seed, value in values.items()}
    return {name: mean(values.values()) for name, values in scores.items()}


def _row(key: Key, scores: dict[str, float], learned: Mapping[str, float], is_learned: bool) -> PooledRow:
    units = sorted(learned)
    mine, theirs = ({number: values[unit] for number, unit in enumerate(units)} for values in (scores, learned))
    return PooledRow(
        loss=key[0],
        settings=key[1],
        units="seeds" if units[0].startswith("seed ") else "sets",
        scores={unit: scores[unit] for unit in units},
        mean=describe(list(mine.values())),
        difference=None if is_learned else paired_difference(theirs, mine),
        won=sum(theirs[number] > mine[number] for number in mine),
    )


def pooled_table(rows: Sequence[PooledRow], score: str) -> Table:
    """Return the table of the rows."""
    learned = next(row for row in rows if row.difference is None)
    name = f"{learned.loss} with {' '.join(learned.settings)}" if learned.settings else learned.loss
    objects = [_object(row) for row in rows]
    return Table(
        HEADERS,
        [_cells(row) for row in rows],
        NOTE.format(score=score, learned=name, units=learned.units),
        objects=objects,
    )


def _object(row: PooledRow) -> dict[str, Any]:
    return {**asdict(row), **sample_data(row.mean), **difference_data(row.difference)}


def _cells(row: PooledRow) -> list[Cell]:
    """Return the cells of a row, in the order of HEADERS."""
    compared: list[Cell] = [Missing("is the learned loss")] * 2 if row.difference is None else [row.difference, row.won]
    return [row.loss, " ".join(row.settings) or "none", row.mean, *compared, row.mean.n]
