"""`reloss list`: the experiments of all tasks."""

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


def render_experiments(rows: list[dict[str, Any]]) -> str:
    """Return one line per experiment."""
    width = max(len(row["name"]) for row in rows)
    return "\n".join(
        f"{row['name']:<{width}}  {row['data']:<9} {', '.join(row['losses'])}; {row['scope']}: {row['scope_note']}"
        for row in rows
    )
