"""One table over many data sets: the learned loss next to each rival, every loss at its best learning rate.

A gain on one small data set can be luck. So the unit here is the data set: a loss has one score per set, the mean over
its seeds or folds, and two losses are compared by the paired differences of these scores. On a single data set, the
unit is the seed.
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
    units = scores[best].keys()
    rows = [_row(key, values, scores[best], key == best) for key, values in scores.items() if values.keys() >= units]
    return sorted(rows, key=lambda row: -row.mean.mean)


def _losses(task: Task) -> dict[str, None]:
    return dict.fromkeys(loss for make in task.experiments.values() for loss in make().losses)


def _scores(
    task: Task, runs: Sequence[RunRecord], score: str, pattern: str, losses: Sequence[str], split: str = ""
) -> dict[Key, dict[str, float]]:
    """Return the scores by unit, for each loss with settings; on the test split, or with `split` before it.

    The learning rate is always the best one for `score` on the validation split.
    """
    by_seed: dict[Key, dict[str, dict[int, float]]] = {}
    matching = [name for name in task.experiments if fnmatch(name, f"{task.name}/{pattern}")]
    for name in matching:
        of_experiment = [run for run in usable_runs(runs, score) if run.experiment == name]
        for key, group in best_groups(task.experiments[name](), of_experiment, score).items():
            if key[0] in losses:
                by_seed.setdefault(key, {})[name] = scores_by_seed(group, split + score)
    if len(matching) == 1:
        return {key: {f"seed {seed}": value for seed, value in of[matching[0]].items()} for key, of in by_seed.items()}
    return {key: {name: mean(of[name].values()) for name in of} for key, of in by_seed.items()}


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
    objects = [asdict(row) for row in rows]
    return Table(
        HEADERS,
        [_cells(row) for row in rows],
        NOTE.format(score=score, learned=name, units=learned.units),
        objects=objects,
    )


def _cells(row: PooledRow) -> list[Cell]:
    """Return the cells of a row, in the order of HEADERS."""
    compared: list[Cell] = [Missing("is the learned loss")] * 2 if row.difference is None else [row.difference, row.won]
    return [row.loss, " ".join(row.settings) or "none", row.mean, *compared, row.mean.n]
