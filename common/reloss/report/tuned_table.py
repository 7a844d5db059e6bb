"""Losses compared after tuning: each at the learning rate that is best for it on the validation split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

from reloss.experiment.config import Experiment
from reloss.experiment.records import RunRecord
from reloss.experiment.status import Status
from reloss.experiment.task import Task, tasks
from reloss.report.groups import (
    LEARNING_RATE,
    Key,
    baseline_group,
    group_runs,
    learning_rate,
    scores_by_seed,
)
from reloss.report.statistics import (
    Difference,
    Sample,
    describe,
    difference_data,
    paired_difference,
    sample_data,
)
from reloss.report.table import Cell, Missing, Number, Table
from reloss.runtime.errors import UsageError

HEADERS = ("experiment", "loss", "settings", "rates tried", "best", "validation, %", "test, %", "difference", "n")
NOTE = (
    "{score}: mean ± standard deviation over n seeds. Each loss is shown at the learning rate with the best mean on "
    "the validation split, chosen from the rates without failed runs if there are any. Difference: on the test set, "
    "paired by seed with {ordinary} under the same initialisation, at its own best rate, with its 95 % t interval."
)

Rates = Mapping[float, Sequence[RunRecord]]
"""Runs by learning rate."""


@dataclass(frozen=True)
class TunedRow:
    """A loss at its best learning rate, over seeds. Scores are in percent.

    Attributes:
        experiment: name of the experiment.
        loss: name of the loss.
        settings: changes of the experiment's config other than the learning rate.
        rates: learning rates that were tried.
        failed: how many runs failed, by learning rate.
        best: the learning rate that is shown.
        validation: score on the validation split.
        test: score on the test split.
        difference: difference to the ordinary loss on the test split; None for this loss, or without a common seed.
    """

    experiment: str
    loss: str
    settings: tuple[str, ...]
    rates: tuple[float, ...]
    failed: dict[float, str]
    best: float
    validation: Sample
    test: Sample
    difference: Difference | None


def tuned_rows(task: Task, runs: Sequence[RunRecord], score: str) -> list[TunedRow]:
    """Return the tuned losses of every experiment of a task whose records hold `score` on both splits.

    Raises:
        UsageError: no finished record has `score` and `validation_<score>`.
    """
    rows, usable = [], usable_runs(runs, score)
    for make in task.experiments.values():
        config = make()
        rows += _experiment_rows(config, [run for run in usable if run.experiment == config.name], score)
    if not rows:
        raise UsageError(f"no finished record of {task.name} has the scores {score} and validation_{score}")
    return rows


def usable_runs(runs: Sequence[RunRecord], score: str) -> list[RunRecord]:
    """Return the runs that have `score` on both splits, and those that failed."""
    needed = {score, f"validation_{score}"}
    return [run for run in runs if run.status == Status.FAILED or needed <= run.scores.keys()]


def best_groups(config: Experiment, runs: Sequence[RunRecord], score: str) -> dict[Key, Sequence[RunRecord]]:
    """Return the runs of every loss with settings, at the learning rate with the best `score` on validation."""
    return {
        key: rates[_best_rate(rates, score)]
        for key, rates in _tried(config, runs).items()
        if any(map(_finished, rates.values()))
    }


def _tried(config: Experiment, runs: Sequence[RunRecord]) -> dict[Key, dict[float, list[RunRecord]]]:
    """Return the runs by learning rate, for every loss with its other settings."""
    tried: dict[Key, dict[float, list[RunRecord]]] = defaultdict(lambda: defaultdict(list))
    for (loss, settings), group in group_runs(config, runs).items():
        others = [setting for setting in settings if not setting.startswith(LEARNING_RATE)]
        tried[loss, tuple(others)][learning_rate(config, settings)] += group
    return tried


def _experiment_rows(config: Experiment, runs: Sequence[RunRecord], score: str) -> list[TunedRow]:
    tried, chosen = _tried(config, runs), best_groups(config, runs, score)
    order = sorted(chosen, key=lambda key: (config.losses.index(key[0]), len(key[1]), key[1]))
    return [_row(config, key, tried[key], _best_rate(tried[key], score), chosen, score) for key in order]


def _row(
    config: Experiment,
    key: Key,
    rates: Rates,
    best: float,
    chosen: Mapping[Key, Sequence[RunRecord]],
    score: str,
) -> TunedRow:
    """Return the row of one loss with settings; `chosen` holds the runs of every loss at its best rate."""
    loss, group = key[0], chosen[key]
    test = scores_by_seed(group, score)
    reference = scores_by_seed(baseline_group(chosen, config.ordinary_loss, group[0], score), score)
    return TunedRow(
        experiment=config.name,
        loss=loss,
        settings=tuple(sorted(text for text in group[0].settings if not text.startswith(LEARNING_RATE))),
        rates=tuple(sorted(rates)),
        failed=_failures(rates),
        best=best,
        validation=describe(list(scores_by_seed(group, f"validation_{score}").values())),
        test=describe(list(test.values())),
        difference=paired_difference(test, reference) if loss != config.ordinary_loss else None,
    )


def _best_rate(rates: Rates, score: str) -> float:
    """Return the rate with the best mean on the validation split; a rate without failed runs comes first."""
    means = {
        rate: mean(scores_by_seed(runs, f"validation_{score}").values())
        for rate, runs in rates.items()
        if _finished(runs)
    }
    return max(means, key=lambda rate: (len(_finished(rates[rate])) == len(rates[rate]), means[rate]))


def _finished(runs: Sequence[RunRecord]) -> list[RunRecord]:
    return [run for run in runs if run.status == Status.FINISHED]


def _failures(rates: Rates) -> dict[float, str]:
    """Return how many runs failed, for each rate at which one did."""
    counts = {rate: len(runs) - len(_finished(runs)) for rate, runs in rates.items()}
    return {rate: f"{count} of {len(rates[rate])} failed" for rate, count in counts.items() if count}


def tuned_table(rows: Sequence[TunedRow], score: str) -> Table:
    """Return the table of the rows."""
    ordinary = {name: make().ordinary_loss for task in tasks().values() for name, make in task.experiments.items()}
    cells = [_cells(row, ordinary[row.experiment]) for row in rows]
    note = NOTE.format(score=score, ordinary=", ".join(sorted({ordinary[row.experiment] for row in rows})))
    return Table(HEADERS, cells, note, objects=[_object(row) for row in rows])


def _object(row: TunedRow) -> dict[str, Any]:
    values = asdict(row)
    del values["validation"], values["test"], values["difference"]
    values |= sample_data(row.validation, "validation_") | sample_data(row.test)
    return {**values, **difference_data(row.difference)}


def _cells(row: TunedRow, ordinary: str) -> list[Cell]:
    """Return the cells of a row, in the order of HEADERS; `ordinary` is the ordinary loss of its experiment."""
    rates = [f"{rate:g} ({row.failed[rate]})" if rate in row.failed else f"{rate:g}" for rate in row.rates]
    missing = Missing("is the baseline" if row.loss == ordinary else "no paired seed")
    return [
        *(row.experiment, row.loss, " ".join(row.settings) or "none", ", ".join(rates)),
        Number(row.best, f"{row.best:g}"),
        *(row.validation, row.test, row.difference or missing, row.test.n),
    ]
