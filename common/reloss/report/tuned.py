"""Losses compared after tuning: each at the learning rate that is best for it on the validation split."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from reloss.errors import UsageError, unknown
from reloss.experiment.config import Experiment
from reloss.experiment.record import read_summaries
from reloss.experiment.task import tasks
from reloss.report.statistics import Difference, Sample, describe, paired_difference
from reloss.report.tables import written

RATE = "train.lr="
HEADERS = ("experiment", "loss", "settings", "rates tried", "best", "validation, %", "test, %", "difference", "n")
NOTE = (
    "{score}: mean ± standard deviation over n seeds. Of each loss, the learning rate with the best mean on the "
    "validation split. Difference: on the test set, paired by seed with {ordinary} at its own best rate, with its 95 % "
    "t interval."
)

Summaries = list[dict[str, Any]]


@dataclass(frozen=True)
class TunedRow:
    """A loss at its best learning rate, over seeds. Scores in percent."""

    experiment: str
    loss: str
    settings: tuple[str, ...]
    rates: tuple[float, ...]
    best: float
    validation: Sample
    test: Sample
    difference: Difference | None


def tuned_rows(name: str, runs: Path, score: str) -> list[TunedRow]:
    """Return the tuned losses of task `name`, of every experiment whose records hold `score` on both splits.

    Raises:
        UsageError: there is no task of that name, or no finished record with `score` and `validation_<score>`.
    """
    if name not in tasks():
        raise unknown("table", name, tasks())
    kept = [
        summary
        for summary in read_summaries(runs)
        if summary["status"] == "finished" and {score, f"validation_{score}"} <= summary["scores"].keys()
    ]
    rows = []
    for make in tasks()[name].experiments.values():
        config = make()
        rows += _rows(config, [summary for summary in kept if summary["experiment"] == config.name], score)
    if not rows:
        raise UsageError(f"no finished record of {name} below {runs} has the scores {score} and validation_{score}")
    return rows


def _rows(config: Experiment, summaries: Summaries, score: str) -> list[TunedRow]:
    groups: dict[tuple[str, tuple[str, ...]], dict[float, Summaries]] = defaultdict(lambda: defaultdict(list))
    for summary in summaries:
        settings = tuple(setting for setting in summary["settings"] if not setting.startswith(RATE))
        rate = next((s.removeprefix(RATE) for s in summary["settings"] if s.startswith(RATE)), config.train.lr)  # type: ignore[attr-defined]
        groups[summary["loss"], settings][float(rate)].append(summary)
    best = {
        key: max(rates, key=lambda rate, rates=rates: mean(_scores(rates[rate], f"validation_{score}").values()))  # type: ignore[misc]
        for key, rates in groups.items()
    }
    chosen = {key: rates[best[key]] for key, rates in groups.items()}
    rows = []
    for key in sorted(chosen, key=lambda key: (config.losses.index(key[0]), len(key[1]), key[1])):
        loss, settings = key
        test, validation = _scores(chosen[key], score), _scores(chosen[key], f"validation_{score}")
        baselines = [
            (len(other), other)
            for name, other in groups
            if name == config.ordinary_loss and chosen[name, other][0]["protocol"] == chosen[key][0]["protocol"]
        ]
        baseline = _scores(chosen[config.ordinary_loss, min(baselines)[1]], score) if baselines else {}
        rows.append(
            TunedRow(
                experiment=config.name,
                loss=loss,
                settings=settings,
                rates=tuple(sorted(groups[key])),
                best=best[key],
                validation=describe(list(validation.values())),
                test=describe(list(test.values())),
                difference=paired_difference(test, baseline) if loss != config.ordinary_loss else None,
            )
        )
    return rows


def _scores(summaries: Summaries, score: str) -> dict[int, float]:
    return {summary["seed"]: 100 * summary["scores"][score] for summary in summaries}


def cells(row: TunedRow, ordinary: str) -> list[str]:
    """Return the texts of a row, in the order of HEADERS."""
    difference = "is the baseline" if row.loss == ordinary else "no paired seed"
    if row.difference is not None:
        difference = row.difference.shown()
    return [
        *(row.experiment, row.loss, " ".join(row.settings) or "none", ", ".join(f"{rate:g}" for rate in row.rates)),
        *(f"{row.best:g}", row.validation.shown(), row.test.shown(), difference, str(row.test.n)),
    ]


def render_tuned(rows: list[TunedRow], score: str, format: str) -> str:
    """Return the table as `md`, `csv`, `tex` (booktabs) or `json`.

    Raises:
        UsageError: another format.
    """
    ordinary = {name: make().ordinary_loss for task in tasks().values() for name, make in task.experiments.items()}
    texts = [cells(row, ordinary[row.experiment]) for row in rows]
    note = NOTE.format(score=score, ordinary=", ".join(sorted({ordinary[row.experiment] for row in rows})))
    return written(format, HEADERS, texts, note, [asdict(row) for row in rows])
