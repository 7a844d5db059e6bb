"""The table of how well each loss ranks: rank correlation with the metric, over held-out items and over checkpoints."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from reloss.experiment.config import FITTED_LOSSES, Experiment, Scope
from reloss.experiment.records import Records, RunRecord, SurrogateRecord
from reloss.experiment.settings import differing, flat
from reloss.experiment.task import tasks
from reloss.report.groups import commits
from reloss.report.row_status import RowKind, RowStatus
from reloss.report.table import PROVENANCE, Cell, Code, Missing, Number, Table, names_cell

RANKINGS = {
    "spearman": "Spearman, recorded items",
    "spearman_synthetic": "Spearman, synthetic items",
    "spearman_checkpoints": "Spearman, checkpoints",
    "kendall_checkpoints": "Kendall, checkpoints",
    "spearman_late": "Spearman, late ones",
}
"""The rank correlations by their name in the records, with their headers."""

MEASURES = (*RANKINGS.values(), "difference to the ordinary loss", "items", "checkpoints")
HEADERS = (
    *("experiment", "loss", "surrogate", "metric"),
    *(*MEASURES, "status", *PROVENANCE),
)
UNPUBLISHED = "unverified: value not recorded"
NOTE = (
    "Rank correlation of minus the loss with the metric. Recorded items: held-out batches of the baseline's training, "
    "the same for every loss. The weights of a surrogate are chosen by its correlation on these items (on synthetic "
    "items, if it was fitted on synthetic items only), which favours it a little. The difference is taken on recorded "
    "items and has no interval, because one surrogate serves all seeds. Synthetic items: generated as in the release. "
    "Checkpoints: of all finished runs, on the same validation examples, as measured by `reloss diagnose`; late ones "
    "are the second half of each run. The values of the paper were not recorded."
)


@dataclass(frozen=True)
class CorrelationRow:
    """How well one loss of an experiment ranks.

    Attributes:
        experiment: name of the experiment.
        loss: name of the loss.
        surrogate: name of the surrogate's folder, empty if the loss is not learned.
        changes: settings in which the surrogate differs from the experiment.
        metric: name of the metric.
        published: why there is no published number.
        rankings: the measured rank correlations, by the keys of RANKINGS.
        difference: rank correlation minus the one of the ordinary loss, on recorded items.
        items: number of recorded items.
        checkpoints: number of checkpoints.
        status: how the row relates to the paper.
        command: the command that measures the row.
        commits: commits of the code that ran.
        records: names of the records.
    """

    experiment: str
    loss: str
    surrogate: str
    changes: tuple[str, ...]
    metric: str
    published: str
    rankings: dict[str, float]
    difference: float | None
    items: int | None
    checkpoints: int | None
    status: RowStatus
    command: str
    commits: tuple[str, ...]
    records: tuple[str, ...]


def correlation_rows(records: Records) -> list[CorrelationRow]:
    """Return the rows of every experiment of all tasks, measured or not."""
    configs = (make() for task in tasks().values() for make in task.experiments.values())
    return [row for config in configs for row in _experiment_rows(config, records)]


def _experiment_rows(config: Experiment, records: Records) -> list[CorrelationRow]:
    runs = [run for run in records.runs if run.experiment == config.name]
    surrogates = records.surrogates_of(config.name)
    ordinary_runs = [run for run in runs if run.loss == config.ordinary_loss]
    ranking = _checkpoint_ranking(records.rankings.get((config.name, "")), ordinary_runs)
    rows = [_row(config, config.ordinary_loss, _ordinary_fit(surrogates), ranking, ordinary_runs)]
    for loss, options in reversed(FITTED_LOSSES.items()):
        fitted = [surrogate for surrogate in surrogates if surrogate.objective == options["objective"]]
        for surrogate in fitted:
            users = [run for run in runs if run.surrogate == surrogate.reference]
            ranking = _checkpoint_ranking(records.rankings.get((config.name, surrogate.reference)), users)
            rows.append(_row(config, loss, surrogate.fit, ranking, users, surrogate))
        if not fitted and loss in config.losses:
            rows.append(_row(config, loss, {}, {}, []))
    return rows


def _ordinary_fit(surrogates: Sequence[SurrogateRecord]) -> dict[str, float]:
    """Return the figures of the ordinary loss, which every fit measures on the same recorded items."""
    fits = [surrogate.fit for surrogate in surrogates if "spearman_ordinary" in surrogate.fit]
    if not fits:
        return {}
    counts = {name: fits[-1][name] for name in ("validation_items",) if name in fits[-1]}
    return {"spearman": fits[-1]["spearman_ordinary"], **counts}


def _checkpoint_ranking(measured: Mapping[str, float] | None, users: Sequence[RunRecord]) -> Mapping[str, float]:
    """Return the ranking of checkpoints by `reloss diagnose`, else the one at the end of the last run with the loss."""
    return measured or next((run.diagnostics for run in reversed(users) if run.diagnostics), {})


def _row(
    config: Experiment,
    loss: str,
    fit: Mapping[str, float],
    ranking: Mapping[str, float],
    users: Sequence[RunRecord],
    surrogate: SurrogateRecord | None = None,
) -> CorrelationRow:
    """Return one row.

    Args:
        config: the experiment.
        loss: name of the loss.
        fit: figures over items.
        ranking: figures over checkpoints.
        users: the runs that trained with the loss.
        surrogate: the surrogate, if the loss is learned and there is one.
    """
    figures = {**ranking, **fit}
    rankings = {name: figures[name] for name in RANKINGS if name in figures}
    changes = _changes(config, loss, surrogate) if surrogate else []
    command = (users[0].command if users else "") or _command(config, loss, changes)
    return CorrelationRow(
        experiment=config.name,
        loss=loss,
        surrogate=surrogate.reference.removeprefix("surrogates/") if surrogate else "",
        changes=tuple(change.partition(".")[2] for change in changes),
        metric=config.metric,
        published="none" if config.scope is not Scope.PAPER else UNPUBLISHED,
        rankings=rankings,
        difference=fit["spearman"] - fit["spearman_ordinary"] if "spearman_ordinary" in fit else None,
        items=_count(fit, "validation_items"),
        checkpoints=_count(ranking, "checkpoints"),
        status=_status(config, rankings),
        command=command,
        commits=commits(users),
        records=(*([surrogate.name] if surrogate else []), *(run.name for run in users)),
    )


def _changes(config: Experiment, loss: str, surrogate: SurrogateRecord) -> list[str]:
    """Return the settings in which a surrogate and its fit differ from the experiment."""
    usual = flat(config.model_dump(mode="json", include={"learn", "surrogate"}))
    fitted = flat(surrogate.config()) | flat(surrogate.options, "surrogate.")
    implied = {f"learn.{name}" for name in FITTED_LOSSES[loss]}
    if loss == "expected":
        implied.add("surrogate.features")
    return differing({name: value for name, value in fitted.items() if name not in implied}, usual)


def _command(config: Experiment, loss: str, changes: Sequence[str]) -> str:
    if loss == config.ordinary_loss:
        return f"reloss diagnose {config.name}"
    words = ["reloss", "run", config.name, "--loss", loss, "--stage", "learn"]
    return shlex.join([*words, *(["--set", *changes] if changes else [])])


def _count(figures: Mapping[str, float], name: str) -> int | None:
    return int(figures[name]) if name in figures else None


def _status(config: Experiment, rankings: Mapping[str, float]) -> RowStatus:
    if not rankings:
        return RowStatus(RowKind.NOT_RUN, "no surrogate and no diagnosis")
    if config.scope is Scope.REDUCED:
        return RowStatus(RowKind.REDUCED, config.scope_note)
    if config.scope is Scope.EXTRA:
        return RowStatus(RowKind.EXTRA)
    return RowStatus(RowKind.MEASURED, "no verified number to compare with")


def correlation_table(rows: Sequence[CorrelationRow]) -> Table:
    """Return the table of the rows."""
    return Table(HEADERS, [_cells(row) for row in rows], NOTE, objects=[_object(row) for row in rows])


def _object(row: CorrelationRow) -> dict[str, Any]:
    values = {**asdict(row), "surrogate": _surrogate_text(row), "status": str(row.status)}
    del values["changes"], values["rankings"]
    return values | {name: row.rankings.get(name) for name in RANKINGS}


def _surrogate_text(row: CorrelationRow) -> str:
    return " ".join([row.surrogate, *row.changes]) or "none"


def _cells(row: CorrelationRow) -> list[Cell]:
    """Return the cells of a row, in the order of HEADERS."""
    return [
        *(row.experiment, row.loss, _surrogate_text(row), row.metric),
        *_measures(row),
        *(row.status, Code(row.command), names_cell(row.commits), names_cell(row.records)),
    ]


def _measures(row: CorrelationRow) -> list[Cell]:
    """Return the cells of what was measured, in the order of MEASURES."""
    missing = Missing("not measured" if row.status.is_run else "not run")
    difference: Cell = missing
    if row.difference is not None:
        difference = Number(row.difference, f"{row.difference:+.3f}")
    elif not row.surrogate and row.rankings:
        difference = Missing("is the ordinary loss")
    counts = (missing if count is None else count for count in (row.items, row.checkpoints))
    return [*(row.rankings.get(name, missing) for name in RANKINGS), difference, *counts]
