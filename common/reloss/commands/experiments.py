"""`reloss list`: the experiments of all tasks."""

from itertools import groupby
from textwrap import fill
from typing import Any

from reloss.experiment.task import tasks


def list_experiments() -> list[dict[str, Any]]:
    """Return name, task, data, losses, scope and its note of every experiment."""
    rows = []
    for task in tasks().values():
        for make in task.experiments.values():
            config = make()
            row = {"name": config.name, "task": task.name, "data": config.data.name, "losses": list(config.losses)}
            rows.append({**row, "scope": config.scope, "scope_note": config.scope_note})
    return rows


def render_experiments(rows: list[dict[str, Any]], width: int | None = None) -> str:
    """Return the experiments, grouped by task: one line for each, or as many as fit `width` columns."""
    name_width = max(len(row["name"]) for row in rows)
    groups = []
    for _, group in groupby(rows, lambda row: row["task"]):
        lines = [f"{row['name']:<{name_width}}  {_facts(row)}" for row in group]
        if width is not None:
            lines = [fill(line, width, subsequent_indent=" " * (name_width + 2)) for line in lines]
        groups.append("\n".join(lines))
    return "\n\n".join(groups)


def _facts(row: dict[str, Any]) -> str:
    return f"{row['data']}; {', '.join(row['losses'])}; {row['scope']}: {row['scope_note']}"
