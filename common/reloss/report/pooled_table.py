"""One table over many data sets: the learned loss next to each rival, every loss at its best learning rate.

A gain on one small data set can be luck. So the unit here is the data set: a loss has one score per set, the mean over
its seeds or folds, and two losses are compared by the paired differences of these scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from statistics import mean

from reloss.experiment.records import RunRecord
from reloss.experiment.task import Task
from reloss.report.groups import Key, scores_by_seed
from reloss.report.statistics import Difference, Sample, describe, paired_difference
from reloss.report.table import Cell, Missing, Table
from reloss.report.tuned_table import best_groups, usable_runs
from reloss.runtime.errors import UsageError

LEARNED = "reloss"
TUNED_THRESHOLD = {"binary_f1": "tuned_f1", "mcc": "tuned_mcc"}
"""Scores at a threshold that is tuned on the validation split, by the score at the usual threshold."""

HEADERS = ("loss", "settings", "mean, %", "learned minus this", "sets won", "sets")
NOTE = (
    "{score}, mean over the sets of the mean over n seeds; each loss at the learning rate with the best mean on the "
    "validation split of the set. Learned minus this: paired by set, with the 95 % t interval over the sets. The "
    "learned loss is {learned}, the best one on the validation splits. Sets won: sets on which the learned loss wins."
)


@dataclass(frozen=True)
class PooledRow:
    """A loss over several data sets. Scores are in percent.

    Attributes:
        loss: name of the loss, and whether its threshold is tuned.
        settings: changes of the experiments' configs other than the learning rate.
        scores: mean test score of each experiment.
        mean: mean and standard deviation over the experiments.
        difference: the learned loss minus this one; None for the learned loss.
        won: number of experiments on which the learned loss scores higher.
    """

    loss: str
    settings: tuple[str, ...]
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
    scores = _scores(task, runs, score, pattern, list(_losses(task)))
    if score in TUNED_THRESHOLD:
        ordinary = {make().ordinary_loss for make in task.experiments.values()}
        tuned = _scores(task, runs, TUNED_THRESHOLD[score], pattern, sorted(ordinary))
        scores |= {(f"{loss}, threshold tuned", settings): values for (loss, settings), values in tuned.items()}
    learned = [key for key in scores if key[0] == LEARNED]
    if not learned:
        raise UsageError(f"no finished record of {LEARNED} has the score {score} in experiments {task.name}/{pattern}")
    validation = _scores(task, runs, score, pattern, [LEARNED], "validation_")
    best = max(learned, key=lambda key: (len(scores[key]), mean(validation[key].values())))
    sets = scores[best].keys()
    rows = [_row(key, values, scores[best], key == best) for key, values in scores.items() if values.keys() >= sets]
    return sorted(rows, key=lambda row: -row.mean.mean)


def _losses(task: Task) -> dict[str, None]:
    return dict.fromkeys(loss for make in task.experiments.values() for loss in make().losses)


def _scores(
    task: Task, runs: Sequence[RunRecord], score: str, pattern: str, losses: Sequence[str], split: str = ""
) -> dict[Key, dict[str, float]]:
    """Return the mean score by experiment, for each loss with settings; on the test split, or with `split` before it.

    The learning rate is always the best one for `score` on the validation split.
    """
    scores: dict[Key, dict[str, float]] = {}
    usable = usable_runs(runs, score)
    for name, make in task.experiments.items():
        of_experiment = [run for run in usable if run.experiment == name]
        if not fnmatch(name, f"{task.name}/{pattern}") or not of_experiment:
            continue
        for key, group in best_groups(make(), of_experiment, score).items():
            if key[0] in losses:
                scores.setdefault(key, {})[name] = mean(scores_by_seed(group, split + score).values())
    return scores


def _row(key: Key, scores: dict[str, float], learned: Mapping[str, float], is_learned: bool) -> PooledRow:
    sets = sorted(learned)
    mine, theirs = ({number: values[name] for number, name in enumerate(sets)} for values in (scores, learned))
    return PooledRow(
        loss=key[0],
        settings=key[1],
        scores={name: scores[name] for name in sets},
        mean=describe(list(mine.values())),
        difference=None if is_learned else paired_difference(theirs, mine),
        won=sum(theirs[number] > mine[number] for number in mine),
    )


def pooled_table(rows: Sequence[PooledRow], score: str) -> Table:
    """Return the table of the rows."""
    learned = next(row for row in rows if row.difference is None)
    name = f"{learned.loss} with {' '.join(learned.settings)}" if learned.settings else learned.loss
    objects = [asdict(row) for row in rows]
    return Table(HEADERS, [_cells(row) for row in rows], NOTE.format(score=score, learned=name), objects=objects)


def _cells(row: PooledRow) -> list[Cell]:
    """Return the cells of a row, in the order of HEADERS."""
    compared: list[Cell] = [Missing("is the learned loss")] * 2 if row.difference is None else [row.difference, row.won]
    return [row.loss, " ".join(row.settings) or "none", row.mean, *compared, row.mean.n]
