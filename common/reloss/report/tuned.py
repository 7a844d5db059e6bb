"""Losses compared after tuning: each at the learning rate that is best for it on the validation split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

from reloss.experiment.config import Experiment
from reloss.experiment.records import RunRecord, read_runs
from reloss.experiment.task import tasks
from reloss.report.groups import RATE, Key, baseline, group, key_of, rate_of, scores
from reloss.report.statistics import Difference, Sample, describe, paired_difference
from reloss.report.tables import written
from reloss.runtime.errors import UsageError, unknown

HEADERS = ("experiment", "loss", "settings", "rates tried", "best", "validation, %", "test, %", "difference", "n")
NOTE = (
    "{score}: mean ± standard deviation over n seeds. Of each loss, the learning rate with the best mean on the "
    "validation split, of those with which no run failed if there are any. Difference: on the test set, paired by seed "
    "with {ordinary} of the same beginning at its own best rate, with its 95 % t interval."
)


@dataclass(frozen=True)
class TunedRow:
    """A loss at its best learning rate, over seeds. Scores in percent; `failed`: how many runs did, by their rate."""

    experiment: str
    loss: str
    settings: tuple[str, ...]
    rates: tuple[float, ...]
    failed: dict[float, str]
    best: float
    validation: Sample
    test: Sample
    difference: Difference | None


def tuned_rows(name: str, runs: Path, score: str, damaged: list[str] | None = None) -> list[TunedRow]:
    """Return the tuned losses of task `name`, of every experiment whose records hold `score` on both splits.

    Damaged records are said in the list `damaged`, if there is one, and left out.

    Raises:
        UsageError: there is no task of that name, or no finished record with `score` and `validation_<score>`.
        RelossError: a record is damaged, and there is no list to say so in.
    """
    if name not in tasks():
        raise unknown("table", name, tasks())
    kept = [
        summary
        for summary in read_runs(runs, damaged)
        if summary.status == "failed" or {score, f"validation_{score}"} <= summary.scores.keys()
    ]
    rows = []
    for make in tasks()[name].experiments.values():
        config = make()
        rows += _rows(config, [summary for summary in kept if summary.experiment == config.name], score)
    if not rows:
        raise UsageError(f"no finished record of {name} below {runs} has the scores {score} and validation_{score}")
    return rows


def _rows(config: Experiment, summaries: list[RunRecord], score: str) -> list[TunedRow]:
    tried: dict[Key, dict[float, list[RunRecord]]] = defaultdict(lambda: defaultdict(list))
    for (loss, settings), mine in group(summaries).items():
        others = [setting for setting in settings if not setting.startswith(RATE)]
        tried[key_of(loss, others)][rate_of(config, settings)] += mine
    measured = {key: rates for key, rates in tried.items() if any(map(_finished, rates.values()))}
    best = {key: _best(rates, score) for key, rates in measured.items()}
    chosen = {key: rates[best[key]] for key, rates in measured.items()}
    rows = []
    for key in sorted(chosen, key=lambda key: (config.losses.index(key[0]), len(key[1]), key[1])):
        (loss, settings), mine = key, chosen[key]
        test, reference = scores(mine, score), scores(baseline(chosen, config.ordinary_loss, mine[0], score), score)
        rows.append(
            TunedRow(
                experiment=config.name,
                loss=loss,
                settings=settings,
                rates=tuple(sorted(tried[key])),
                failed=_failed(tried[key]),
                best=best[key],
                validation=describe(list(scores(mine, f"validation_{score}").values())),
                test=describe(list(test.values())),
                difference=paired_difference(test, reference) if loss != config.ordinary_loss else None,
            )
        )
    return rows


def _best(rates: Mapping[float, Sequence[RunRecord]], score: str) -> float:
    """Return the rate with the best mean on the validation split, if possible one with which no run failed."""
    means = {
        rate: mean(scores(mine, f"validation_{score}").values()) for rate, mine in rates.items() if _finished(mine)
    }
    return max(means, key=lambda rate: (len(_finished(rates[rate])) == len(rates[rate]), means[rate]))


def _finished(mine: Sequence[RunRecord]) -> list[RunRecord]:
    return [summary for summary in mine if summary.status == "finished"]


def _failed(rates: Mapping[float, Sequence[RunRecord]]) -> dict[float, str]:
    """Return how many runs of how many failed with each rate that has some."""
    counts = {rate: len(mine) - len(_finished(mine)) for rate, mine in rates.items()}
    return {rate: f"{count} of {len(rates[rate])} failed" for rate, count in counts.items() if count}


def cells(row: TunedRow, ordinary: str) -> list[str]:
    """Return the texts of a row, in the order of HEADERS."""
    difference = "is the baseline" if row.loss == ordinary else "no paired seed"
    if row.difference is not None:
        difference = row.difference.shown()
    return [
        *(row.experiment, row.loss, " ".join(row.settings) or "none"),
        ", ".join(f"{rate:g} ({row.failed[rate]})" if rate in row.failed else f"{rate:g}" for rate in row.rates),
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
