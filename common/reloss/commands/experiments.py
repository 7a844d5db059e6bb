"""`reloss list`: the experiments of all tasks, and which of them can run here and now."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from textwrap import fill
from typing import Any

from reloss.experiment.task import tasks

STATES = ("ready", "no data", "no packages")


def list_experiments(data: Path) -> list[dict[str, Any]]:
    """Return name, task, data, losses, scope and its note of every experiment, and what it lacks.

    Args:
        data: folder of the data sets.

    Returns:
        One dictionary for each experiment. `missing_packages` names packages that are not installed, and `missing_data`
        is the path that is missing in `data`, or None.
    """
    rows = []
    for task in tasks().values():
        packages = task.missing_packages()
        for make in task.experiments.values():
            config = make()
            place = config.data.place(data)
            row = {"name": config.name, "task": task.name, "data": config.data.name, "losses": list(config.losses)}
            row |= {"scope": config.scope, "scope_note": config.scope_note, "missing_packages": packages}
            rows.append({**row, "missing_data": None if place is None or place.exists() else str(place)})
    return rows


def render_experiments(rows: Sequence[dict[str, Any]], width: int | None = None) -> str:
    """Return the experiments, grouped by task: one line for each, or as many as fit `width` columns."""
    name_width, state_width = max(len(row["name"]) for row in rows), max(map(len, STATES))
    groups = []
    for _, group in groupby(rows, lambda row: row["task"]):
        lines = []
        for row in group:
            start, facts = f"{row['name']:<{name_width}}  {_state(row):<{state_width}}", _facts(row)
            if width is None or len(f"{start}  {facts}") <= width:
                lines.append(f"{start}  {facts}")
            else:
                lines += [start.rstrip(), fill(facts, width, initial_indent="    ", subsequent_indent="    ")]
        groups.append("\n".join(lines))
    return "\n\n".join(groups)


def remedies(rows: Sequence[dict[str, Any]], data: Path) -> list[str]:
    """Return one line for each reason why an experiment is not ready: what is missing, and what to do."""
    lines = []
    for task in tasks().values():
        packages = next(row["missing_packages"] for row in rows if row["task"] == task.name)
        if packages:
            remedy = f": `{task.install}`" if task.install else ""
            lines.append(f"no packages: {task.name} needs {', '.join(packages)}{remedy}")
    if any(_state(row) == "no data" for row in rows):
        lines.append(f"no data: not in {data} (--data); `reloss data check EXPERIMENT` reports what belongs where")
    return lines


def _state(row: dict[str, Any]) -> str:
    """Return one of STATES."""
    return "no packages" if row["missing_packages"] else "no data" if row["missing_data"] else "ready"


def _facts(row: dict[str, Any]) -> str:
    return f"{row['data']}; {', '.join(row['losses'])}; {row['scope']}: {row['scope_note']}"
