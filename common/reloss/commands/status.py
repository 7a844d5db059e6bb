"""`reloss status`: the state of the runs of a sweep, or of all records of its experiments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from reloss.experiment.status import Status
from reloss.experiment.workspace import Workspace
from reloss.report.table import Table
from reloss.report.tables import existing
from reloss.runtime.errors import UsageError
from reloss.sweep.plan import make_plan, parse_losses, parse_seeds
from reloss.sweep.status import Row, of_plan, of_records

HEADERS = ("experiment", "loss", "seed", "state", "progress", "updated", "why")


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


def render_status(rows: Sequence[Row]) -> str:
    """Return the rows as a table in plain text, and a line with the number of runs in each state."""
    cells = [
        (
            *(row.experiment, row.loss, row.seed if row.stage == "all" else row.stage),
            *(_words(row.state), row.progress, row.updated, row.reason),
        )
        for row in rows
    ]
    counts = Counter(_words(row.state) for row in rows if row.stage == "all")
    total = ", ".join(f"{count} {state}" for state, count in counts.items())
    return f"{Table(HEADERS, cells).plain()}\n\n{counts.total()} runs: {total}"


def _words(state: Status) -> str:
    return state.replace("_", " ")
