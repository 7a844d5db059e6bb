"""`reloss status`: the state of the runs of a sweep, or of all records of its experiments."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence

from rich.console import Console

from reloss.experiment.status import Status
from reloss.experiment.workspace import Workspace
from reloss.report.table import Table
from reloss.report.tables import existing
from reloss.report.terminal import EXPERIMENT, Layout, print_table
from reloss.runtime.errors import UsageError
from reloss.sweep.plan import make_plan, parse_losses, parse_seeds
from reloss.sweep.status import Row, of_plan, of_records

HEADERS = (EXPERIMENT, "loss", "seed", "state", "progress", "updated", "why")


def read_status(name: str, losses: str, seeds: str, settings: Sequence[str], workspace: Workspace) -> list[Row]:
    """Return one row per run: of the sweep that the arguments describe, or of every record if no seeds are given.

    Raises:
        UsageError: an unknown name, loss or setting, settings without seeds, or there is no folder of records.
    """
    if settings and not seeds:
        raise UsageError("--set describes a sweep and needs its --seeds")
    chosen = parse_losses(losses)
    plan = make_plan(name, chosen, parse_seeds(seeds) if seeds else [0], settings)
    existing(workspace.runs, f"reloss sweep {name}")
    return of_plan(plan, workspace) if seeds else of_records(plan, chosen, workspace)


def print_status(rows: Sequence[Row]) -> None:
    """Print the rows as a table, and the number of runs in each state.

    A terminal gets a part for each experiment, fitted to its width, without the columns that are empty.
    """
    table = _table(rows)
    if not sys.stdout.isatty():
        print(f"{table.plain()}\n")
    else:
        filled = (header for header, *texts in zip(HEADERS, *table.texts(), strict=True) if any(texts))
        layout = Layout(tuple(header for header in filled if header != EXPERIMENT))
        print_table(table, layout, Console(highlight=False))
    counts = Counter(_words(row.state) for row in rows if row.stage == "all")
    total = ", ".join(f"{count} {state}" for state, count in counts.items())
    print(f"{counts.total()} runs: {total}")


def _table(rows: Sequence[Row]) -> Table:
    cells = [
        (
            *(row.experiment, row.loss, row.seed if row.stage == "all" else row.stage),
            *(_words(row.state), row.progress, row.updated, row.reason),
        )
        for row in rows
    ]
    return Table(HEADERS, cells)


def _words(state: Status) -> str:
    return state.replace("_", " ")
