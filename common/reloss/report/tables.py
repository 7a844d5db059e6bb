"""The tables by name, as `reloss table` prints them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from reloss.experiment.records import read_records, read_runs
from reloss.experiment.task import Task, find_experiment, tasks
from reloss.report.ablation_table import ablation_rows, ablation_table
from reloss.report.correlation_table import correlation_rows, correlation_table
from reloss.report.pooled_table import pooled_rows, pooled_table
from reloss.report.table import Table
from reloss.report.task_table import task_rows, task_table
from reloss.report.terminal import ABLATION as ABLATION_LAYOUT
from reloss.report.terminal import CORRELATION as CORRELATION_LAYOUT
from reloss.report.terminal import POOLED, TUNED, VARIANTS, Layout, chosen_headers, variant_table
from reloss.report.tuned_table import tuned_rows, tuned_table
from reloss.runtime.errors import UsageError, unknown
from reloss.sweep.ablation import ABLATION

CORRELATION = "correlation"
"""The name of the table of how well each loss ranks."""


def read_table(
    name: str,
    runs: Path,
    tuned: str = "",
    pool: str = "",
    damaged: list[str] | None = None,
    with_variants: bool = False,
) -> Table:
    """Return a table of the records below a folder.

    Args:
        name: a task, an experiment, `ablation` or `correlation`.
        runs: folder of the records.
        tuned: a score such as `accuracy`: compare the losses of `name` at their best learning rates.
        pool: with `tuned`, a pattern of experiments such as `keel_*`: one table over all of them.
        damaged: receives one message for each damaged record, which is then skipped.
        with_variants: name the variants as `reloss compare` does, for a terminal; else the table has the columns of
            the committed pages.

    Raises:
        UsageError: there is no such table, no folder `runs`, no record with the score `tuned`, or `pool` without it.
        RelossError: a record is damaged, and `damaged` is None; or the published numbers do not follow their schema.
    """
    if pool and not tuned:
        raise UsageError("--pool compares losses at their best learning rates: name the score with --tuned")
    if name == ABLATION and not tuned:
        table = ablation_table(ablation_rows(read_records(existing(runs, "reloss sweep ablation"), damaged)))
    elif name == CORRELATION and not tuned:
        table = correlation_table(correlation_rows(read_records(existing(runs), damaged)))
    else:
        task, experiment = _find(name, [] if tuned else [ABLATION, CORRELATION])
        records = [run for run in read_runs(existing(runs), damaged) if experiment in ("", run.experiment)]
        if pool:
            table = pooled_table(pooled_rows(task, records, tuned, pool), tuned)
        elif tuned:
            table = tuned_table(tuned_rows(task, records, tuned), tuned)
        else:
            rows = [row for row in task_rows(task, records) if experiment in ("", row.experiment)]
            table = variant_table(rows) if with_variants else task_table(rows)
    return replace(table, skipped=damaged or ())


def choose_columns(table: Table, columns: str, format: str) -> Table:
    """Return the table with the columns that `columns` names, a list such as `loss,n`, for `format`.

    CSV and JSON have names for programs, see `Table.data`; Markdown and LaTeX have headers, see `chosen_headers`.

    Raises:
        UsageError: a name is unknown; the nearest ones are named.
    """
    if format not in ("csv", "json"):
        return table.select(chosen_headers(table.headers, columns))
    rows = table.data()
    names = chosen_headers(dict.fromkeys(name for row in rows for name in row), columns)
    return replace(table, objects=[{name: row.get(name) for name in names} for row in rows])


def table_layout(name: str, tuned: str = "", pool: str = "") -> Layout:
    """Return how a terminal shows the table that `read_table` returns for the same arguments."""
    if tuned:
        return POOLED if pool else TUNED
    return {ABLATION: ABLATION_LAYOUT, CORRELATION: CORRELATION_LAYOUT}.get(name, VARIANTS)


def _find(name: str, others: Sequence[str]) -> tuple[Task, str]:
    """Return the task called `name` and the empty string, or the task of the experiment `name` and this name.

    Raises:
        UsageError: neither has that name; the nearest ones, or the nearest of `others`, are named.
    """
    if "/" in name:
        task, config = find_experiment(name)
        return task, config.name
    if name not in tasks():
        experiments = [full for task in tasks().values() for full in task.experiments if name in full]
        raise unknown("table", name, [*tasks(), *others, *experiments])
    return tasks()[name], ""


def existing(runs: Path, start: str = "reloss run") -> Path:
    """Return the folder of records `runs`.

    Raises:
        UsageError: there is no such folder; the message names the command to start with.
    """
    if not runs.is_dir():
        raise UsageError(f"no folder of records at {runs}; name it with --runs, or start with `{start}`")
    return runs
