"""The results table of a task: the published number next to ours, and where each number comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from reloss.experiment.config import Experiment, Scope
from reloss.experiment.records import RunRecord
from reloss.experiment.settings import differing, flat, override
from reloss.experiment.task import Task
from reloss.report.groups import (
    Key,
    baseline_group,
    commits,
    group_runs,
    learning_rate,
    scores_by_seed,
    unfinished_runs,
)
from reloss.report.published import Published, read_published
from reloss.report.row_status import RowKind, RowStatus
from reloss.report.statistics import (
    Difference,
    Sample,
    describe,
    difference_data,
    paired_difference,
    sample_data,
)
from reloss.report.table import PROVENANCE, Cell, Code, Missing, Number, Table, names_cell
from reloss.report.verdicts import MARGIN, MIN_SEEDS, reproduction
from reloss.runtime.errors import RelossError, UsageError

HEADERS = (
    *("experiment", "loss", "metric", "published", "ours, %", "error, %", "difference to baseline"),
    *("Spearman", "n", "status", *PROVENANCE),
)
NOTE = (
    "Ours: mean ± standard deviation over n seeds. Difference: paired by seed with the ordinary loss under the same "
    "protocol and initialisation (best learning rate on validation; named when it differs), with its 95 % t interval. "
    "Spearman: rank correlation of minus the loss with the metric, on held-out recorded items. Status: `reproduced`: "
    f"full data and protocol, at least {MIN_SEEDS} seeds and as many as the published mean, and a 95 % t interval "
    f"within {MARGIN:g} points of the published value; `reduced`: anything smaller, with the reason."
)


@dataclass(frozen=True)
class TaskRow:
    """One row: an experiment with a loss and settings, over seeds.

    Attributes:
        experiment: name of the experiment.
        loss: name of the loss.
        settings: changes of the experiment's config.
        score: name of the score.
        published: the published number and its source, or why there is none.
        published_value: the published number in percent, None if there is none or it could not be verified.
        ours: our score in percent, None without a finished run.
        difference: difference to the baseline, in points of the score.
        is_baseline: whether the row is the baseline that other rows are compared with.
        baseline_rate: learning rate of the baseline, if the row has another one.
        spearman: rank correlation of minus the loss with the metric, on held-out recorded items.
        status: how the row relates to the paper.
        command: the command that runs the first seed.
        commits: commits of the code that ran.
        records: names of the records.
        missing: the reason if there is no score.
    """

    experiment: str
    loss: str
    settings: tuple[str, ...]
    score: str
    published: str
    published_value: float | None
    ours: Sample | None
    difference: Difference | None
    is_baseline: bool
    baseline_rate: float | None
    spearman: float | None
    status: RowStatus
    command: str
    commits: tuple[str, ...]
    records: tuple[str, ...]
    missing: str


def task_rows(task: Task, runs: Sequence[RunRecord]) -> list[TaskRow]:
    """Return the rows of every experiment and loss of a task, run or not.

    Raises:
        RelossError: the task's published numbers do not follow their schema.
    """
    entries = read_published(task.folder / "published.yaml")
    published = {(entry.experiment, entry.loss): entry for entry in entries if not entry.method}
    return [row for make in task.experiments.values() for row in _experiment_rows(make(), runs, published)]


def _experiment_rows(
    config: Experiment, runs: Sequence[RunRecord], published: Mapping[tuple[str, str], Published]
) -> list[TaskRow]:
    groups = group_runs(config, (run for run in runs if run.experiment == config.name))
    rows = []
    for loss in config.losses:
        entry = published.get((config.name, loss))
        comparable = entry if entry and not entry.needs else None
        loss_groups = [group for key, group in groups.items() if key[0] == loss]
        rows += [_row(config, group, comparable, groups) for group in loss_groups]
        if not loss_groups:
            rows.append(_empty_row(config, loss, comparable))
        if entry and entry.needs:  # a number that no run of ours can be compared with has its own row
            needs = f"needs {entry.needs}"
            rows.append(_empty_row(config, loss, entry, missing=needs, reason=needs))
    return rows


def _row(
    config: Experiment,
    group: Sequence[RunRecord],
    published: Published | None,
    groups: Mapping[Key, Sequence[RunRecord]],
) -> TaskRow:
    """Return the row of one group of runs; `groups` are all groups of the experiment."""
    scores, first = scores_by_seed(group, config.score), group[0]
    ours = describe(list(scores.values())) if scores else None
    baseline = baseline_group(groups, config.ordinary_loss, first, config.score)
    is_baseline = baseline is group
    rate, baseline_rate = (learning_rate(config, runs[0].settings) for runs in (group, baseline or group))
    return TaskRow(
        experiment=config.name,
        loss=first.loss,
        settings=first.settings,
        score=config.score,
        published=str(published) if published else "none",
        published_value=published.value if published else None,
        ours=ours,
        difference=None if is_baseline else paired_difference(scores, scores_by_seed(baseline, config.score)),
        is_baseline=is_baseline,
        baseline_rate=baseline_rate if baseline_rate != rate else None,
        spearman=_spearman(config, group, groups),
        status=_status(config, group, ours, published),
        command=first.command or f"reloss run {config.name} --loss {first.loss}",
        commits=commits(group),
        records=tuple(run.name for run in group),
        missing="not finished",
    )


def _empty_row(
    config: Experiment, loss: str, published: Published | None, missing: str = "not run", reason: str = "no record"
) -> TaskRow:
    return TaskRow(
        experiment=config.name,
        loss=loss,
        settings=(),
        score=config.score,
        published=str(published) if published else "none",
        published_value=published.value if published else None,
        ours=None,
        difference=None,
        is_baseline=False,
        baseline_rate=None,
        spearman=None,
        status=RowStatus(RowKind.NOT_RUN, reason),
        command=f"reloss run {config.name} --loss {loss} --seed 0",
        commits=(),
        records=(),
        missing=missing,
    )


def _spearman(
    config: Experiment, group: Sequence[RunRecord], groups: Mapping[Key, Sequence[RunRecord]]
) -> float | None:
    """Return how well the loss ranks held-out items, as the fit of a surrogate measured it.

    Each fit measures the ordinary loss as well. For this loss, a fit that belongs to runs with the same settings comes
    first, because these rows are compared with each other; next comes one with the same settings of the ordinary loss.
    """

    def ordinary_settings(run: RunRecord) -> list[str]:
        unused = config.unused_keys(config.ordinary_loss)
        return [setting for setting in run.settings if not setting.startswith(unused)]

    first = group[0]
    if first.loss == config.ordinary_loss:
        candidates = [run for runs in groups.values() for run in runs if run.protocol == first.protocol]
        candidates.sort(key=lambda run: ordinary_settings(run) != ordinary_settings(first))
        candidates.sort(key=lambda run: run.settings != first.settings)
        correlations = [run.fit["spearman_ordinary"] for run in candidates if "spearman_ordinary" in run.fit]
    else:
        correlations = [run.fit["spearman"] for run in group if "spearman" in run.fit]
    return correlations[0] if correlations else None


def _status(
    config: Experiment, group: Sequence[RunRecord], ours: Sample | None, published: Published | None
) -> RowStatus:
    unfinished = unfinished_runs(group)
    if ours is None:
        return RowStatus(RowKind.NOT_RUN, "; ".join(unfinished) or f"finished without {config.score}")
    kind, note = _kind(config, group[0].settings, ours, published)
    remark = outdated(config, group[0])
    return RowStatus(kind, note, (*([remark] if remark else []), *unfinished))


def _kind(
    config: Experiment, settings: Sequence[str], ours: Sample, published: Published | None
) -> tuple[RowKind, str]:
    """Return how a finished row relates to the paper, with a note."""
    if config.scope is Scope.REDUCED:
        return RowKind.REDUCED, " ".join([config.scope_note, *settings])
    if settings:
        return RowKind.REDUCED, " ".join(settings)
    if config.scope is Scope.EXTRA:
        return RowKind.EXTRA, ""
    if published is None or published.value is None:
        return RowKind.FULL, "no verified number to compare with"
    if ours.n < published.seeds:
        return RowKind.REDUCED, f"{ours.n} of {published.seeds} seeds"
    return reproduction(ours, published.value)


def outdated(config: Experiment, run: RunRecord) -> str:
    """Return a remark if settings that the run took from its experiment have changed since; else the empty string."""
    try:
        recorded = flat(run.config())
    except RelossError:
        return "its config cannot be read"
    try:
        today = flat(override(config, run.settings).model_dump(mode="json"))
    except UsageError:
        return "its settings no longer exist"
    unused = config.unused_keys(run.loss)
    used = {name: value for name, value in recorded.items() if not name.startswith(unused)}
    changes = [setting for setting in differing(used, today) if setting.partition("=")[0] not in Experiment.FIXED]
    return f"run with {' '.join(changes)}, which the experiment has changed since" if changes else ""


def task_table(rows: Sequence[TaskRow]) -> Table:
    """Return the table of the rows. Without any verified published number it lacks that column."""
    table = Table(HEADERS, [_cells(row) for row in rows], NOTE, objects=[_object(row) for row in rows])
    return table.without_empty("published")


def _object(row: TaskRow) -> dict[str, Any]:
    values = {**asdict(row), "status": str(row.status)}
    del values["ours"], values["difference"]
    return {**values, **sample_data(row.ours), **difference_data(row.difference)}


def _cells(row: TaskRow) -> list[Cell]:
    """Return the cells of a row, in the order of HEADERS."""
    missing = Missing(row.missing)
    return [
        *(row.experiment, row.loss, row.score),
        row.published if row.published_value is not None else Missing(row.published),
        row.ours or missing,
        row.ours._replace(mean=100 - row.ours.mean) if row.ours else missing,
        difference_cell(row),
        row.spearman if row.spearman is not None else Missing("not measured"),
        row.ours.n if row.ours else 0,
        row.status,
        *(Code(row.command), names_cell(row.commits), names_cell(row.records)),
    ]


def difference_cell(row: TaskRow) -> Cell:
    """Return the difference of a row to its baseline, or why there is none."""
    if row.difference is None:
        return Missing(row.missing if row.ours is None else "is the baseline" if row.is_baseline else "no paired seed")
    if row.baseline_rate is None:
        return row.difference
    return Number(row.difference.mean, f"{row.difference}, to lr={row.baseline_rate:g}")
