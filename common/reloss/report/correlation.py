"""The table of how well each loss ranks: rank correlation with the metric, of held-out items and real checkpoints."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from reloss.experiment.config import LEARNED_LOSSES, Experiment, differing, flat
from reloss.experiment.records import Records, RunRecord, SurrogateRecord, read_records
from reloss.experiment.task import tasks
from reloss.report.groups import commits
from reloss.report.tables import existing, written

RANKINGS = {
    "spearman": "Spearman, recorded items",
    "spearman_synthetic": "Spearman, synthetic items",
    "spearman_checkpoints": "Spearman, checkpoints",
    "kendall_checkpoints": "Kendall, checkpoints",
    "spearman_late": "Spearman, late ones",
}
MEASURES = (*RANKINGS.values(), "difference to the ordinary loss", "items", "checkpoints")
HEADERS = (
    *("experiment", "loss", "surrogate", "metric", "published"),
    *(*MEASURES, "status", "command", "commit", "record"),
)
UNPUBLISHED = "unverified: value not recorded"
NOTE = (
    "Rank correlation of minus the loss with the metric. Recorded items: held-out batches of the baseline's training, "
    "the same for the ordinary loss; a surrogate's weights are chosen by its correlation on them (on the synthetic "
    "ones, if it learned from these alone), which flatters it a little. The difference is taken on them, and has no "
    "interval, as one surrogate serves all seeds. Synthetic items: such as the release learns from. Checkpoints: of "
    "all finished runs on the same validation examples, as `reloss diagnose` measures them; late ones are the second "
    "half of each run's. The paper's own values were not recorded."
)


@dataclass(frozen=True)
class CorrelationRow:
    """How one loss of an experiment ranks; `rankings` lacks what was not measured."""

    experiment: str
    loss: str
    surrogate: str
    metric: str
    published: str
    rankings: dict[str, float]
    difference: float | None
    items: int | None
    checkpoints: int | None
    status: str
    command: str
    commits: tuple[str, ...]
    records: tuple[str, ...]


def correlation_rows(runs: Path, damaged: list[str] | None = None) -> list[CorrelationRow]:
    """Return the rows of every experiment of all tasks, measured or not.

    Damaged records and files are said in the list `damaged`, if there is one, and left out.

    Raises:
        UsageError: there is no folder `runs`.
        RelossError: a record, a surrogate's card or a diagnosis is damaged, and there is no list to say so in.
    """
    return rows_of(read_records(existing(runs), damaged))


def rows_of(records: Records) -> list[CorrelationRow]:
    """Return the rows, given all records."""
    return [row for task in tasks().values() for make in task.experiments.values() for row in _rows(make(), records)]


def _rows(config: Experiment, records: Records) -> list[CorrelationRow]:
    runs = [run for run in records.runs if run.experiment == config.name]
    surrogates = records.surrogates_of(config.name)
    ordinary: dict[str, float] = {}
    for fit in (surrogate.fit for surrogate in surrogates if "spearman_ordinary" in surrogate.fit):
        ordinary = {"spearman": fit["spearman_ordinary"]}
        ordinary |= {name: fit[name] for name in ("validation_items",) if name in fit}
    same = [run for run in runs if run.loss == config.ordinary_loss]
    figures = _figures(records.rankings.get((config.name, "")), same)
    rows = [_row(config, config.ordinary_loss, ordinary, figures, same)]
    for loss, objective in (("approx", "value"), ("reloss", "rank")):
        learned = [surrogate for surrogate in surrogates if surrogate.objective == objective]
        for surrogate in learned:
            reference = surrogate.reference
            users = [run for run in runs if run.surrogate == reference]
            figures = _figures(records.rankings.get((config.name, reference)), users)
            changed = _changed(loss, surrogate, config)
            rows.append(_row(config, loss, surrogate.fit, figures, users, reference, changed))
        if not learned and loss in config.losses:
            rows.append(_row(config, loss, {}, {}, []))
    return rows


def _figures(measured: Mapping[str, float] | None, users: Sequence[RunRecord]) -> Mapping[str, float]:
    """Return what was measured of checkpoints: by `reloss diagnose`, else at the end of the last run with the loss."""
    return measured or next((run.diagnostics for run in reversed(users) if run.diagnostics), {})


def _changed(loss: str, surrogate: SurrogateRecord, config: Experiment) -> list[str]:
    """Return the settings in which a surrogate and its fit differ from what the experiment says today."""
    usual = {f"learn.{name}": value for name, value in config.learn.model_dump(mode="json").items()}
    own = {name: value for name, value in flat(surrogate.config()).items() if name not in _implied(loss)}
    usual |= config.model_dump(mode="json", exclude={"learn"})  # such as the structure of a task's surrogate
    own |= surrogate.options
    return differing(own, usual)


def _implied(loss: str) -> set[str]:
    return {f"learn.{name}" for name in LEARNED_LOSSES[loss]}


def _row(
    config: Experiment,
    loss: str,
    fit: Mapping[str, float],
    figures: Mapping[str, float],
    users: Sequence[RunRecord],
    folder: str = "",
    changed: Sequence[str] = (),
) -> CorrelationRow:
    measured = {**figures, **fit}
    found = {name: measured[name] for name in RANKINGS if name in measured}
    difference = fit["spearman"] - fit["spearman_ordinary"] if "spearman_ordinary" in fit else None
    command = f"reloss run {config.name} --loss {loss} --stage learn"
    if loss == config.ordinary_loss:
        command = f"reloss diagnose {config.name}"
    elif changed:
        command = shlex.join([*command.split(), "--set", *changed])
    return CorrelationRow(
        experiment=config.name,
        loss=loss,
        surrogate=" ".join([folder.removeprefix("surrogates/"), *(each.removeprefix("learn.") for each in changed)])
        or "none",
        metric=config.metric,
        published="none" if config.paper.startswith(("none", "reduced")) else UNPUBLISHED,
        rankings=found,
        difference=difference,
        items=_count(fit, "validation_items"),
        checkpoints=_count(figures, "checkpoints"),
        status=_status(config, found),
        command=(users[0].command if users else "") or command,
        commits=commits(users),
        records=(*([f"{config.name}/{folder}"] if folder else []), *(run.name for run in users)),
    )


def _count(figures: Mapping[str, float], name: str) -> int | None:
    return int(figures[name]) if name in figures else None


def _status(config: Experiment, found: Mapping[str, float]) -> str:
    if not found:
        return "not run (no surrogate and no diagnosis)"
    if config.paper.startswith("reduced"):
        return config.paper
    return "not in the paper" if config.paper.startswith("none") else "measured, no verified number to compare with"


def cells(row: CorrelationRow) -> list[str]:
    """Return the texts of a row, in the order of HEADERS."""
    return [
        *(row.experiment, row.loss, row.surrogate, row.metric, row.published),
        *measured(row),
        *(row.status, f"`{row.command}`", ", ".join(row.commits) or "none", ", ".join(row.records) or "none"),
    ]


def measured(row: CorrelationRow) -> list[str]:
    """Return the texts of what was measured, in the order of MEASURES."""
    missing = "not run" if row.status.startswith("not run") else "not measured"
    return [
        *(f"{row.rankings[name]:.3f}" if name in row.rankings else missing for name in RANKINGS),
        _difference(row, missing),
        *(str(count) if count is not None else missing for count in (row.items, row.checkpoints)),
    ]


def _difference(row: CorrelationRow, missing: str) -> str:
    if row.difference is not None:
        return f"{row.difference:+.3f}"
    return "is the ordinary loss" if row.surrogate == "none" and row.rankings else missing


def render_correlation(rows: Sequence[CorrelationRow], format: str) -> str:
    """Return the table as `md`, `csv`, `tex` (booktabs) or `json`.

    Raises:
        UsageError: another format.
    """
    return written(format, HEADERS, [cells(row) for row in rows], NOTE, [asdict(row) for row in rows])
