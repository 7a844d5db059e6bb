"""The tables by name, as `reloss table` prints them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from reloss.experiment.records import read_records, read_runs
from reloss.experiment.task import tasks
from reloss.report.ablation_table import ablation_rows, ablation_table
from reloss.report.correlation_table import correlation_rows, correlation_table
from reloss.report.pooled_table import pooled_rows, pooled_table
from reloss.report.table import Table
from reloss.report.task_table import task_rows, task_table
from reloss.report.tuned_table import tuned_rows, tuned_table
from reloss.runtime.errors import UsageError, unknown
from reloss.sweep.ablation import ABLATION

CORRELATION = "correlation"
"""The name of the table of how well each loss ranks."""


def read_table(name: str, runs: Path, tuned: str = "", pool: str = "", damaged: list[str] | None = None) -> Table:
    """Return a table of the records below a folder.

    Args:
        name: a task, `ablation` or `correlation`.
        runs: folder of the records.
        tuned: a score such as `accuracy`: compare the losses of task `name` at their best learning rates.
        pool: with `tuned`, a pattern of experiments such as `keel_*`: one table over all of them.
        damaged: receives one message for each damaged record, which is then skipped.

    Raises:
        UsageError: there is no such table, no folder `runs`, no record with the score `tuned`, or `pool` without it.
        RelossError: a record is damaged, and `damaged` is None; or the published numbers do not follow their schema.
    """
    if pool and not tuned:
        raise UsageError("--pool compares losses at their best learning rates: name the score with --tuned")
    others = [] if tuned else [ABLATION, CORRELATION]
    if name not in (*tasks(), *others):
        raise unknown("table", name, [*tasks(), *others])
    if name == ABLATION:
        table = ablation_table(ablation_rows(read_records(existing(runs, "reloss sweep ablation"), damaged)))
    elif name == CORRELATION:
        table = correlation_table(correlation_rows(read_records(existing(runs), damaged)))
    elif pool:
        table = pooled_table(pooled_rows(tasks()[name], read_runs(existing(runs), damaged), tuned, pool), tuned)
    elif tuned:
        table = tuned_table(tuned_rows(tasks()[name], read_runs(existing(runs), damaged), tuned), tuned)
    else:
        table = task_table(task_rows(tasks()[name], read_runs(existing(runs), damaged)))
    return replace(table, skipped=damaged or ())


def existing(runs: Path, start: str = "reloss run") -> Path:
    """Return the folder of records `runs`.

    Raises:
        UsageError: there is no such folder; the message names the command to start with.
    """
    if not runs.is_dir():
        raise UsageError(f"no folder of records at {runs}; name it with --runs, or start with `{start}`")
    return runs
