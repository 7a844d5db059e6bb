"""`reloss doctor`: versions, devices, packages, data and tracking, as a run on this machine would find them."""

import os
from importlib import metadata
from pathlib import Path
from typing import Any

from reloss.experiment import environment
from reloss.experiment.config import Experiment
from reloss.experiment.task import Task, tasks
from reloss.runtime.errors import RelossError
from reloss.runtime.extras import EXTRA_OF, install_command, missing_packages

INDENT = 10  # column where the lines of the report start, after its titles
SHARED_EXTRAS = sorted({*EXTRA_OF.values()} - {"nmt"})
"""The extras that belong to no task."""


def examine(data: Path) -> dict[str, Any]:
    """Return commit, image, versions, devices, tasks, extras, the data sets found below `data`, and W&B's state."""
    return {
        "commit": environment.commit(),
        "image": environment.image(),
        "versions": environment.versions(),
        "devices": environment.devices(),
        "tasks": {task.name: _state(task.missing_packages(), task.install) for task in tasks().values()},
        "extras": {extra: _state(missing_packages(extra), install_command(extra)) for extra in SHARED_EXTRAS},
        "data": _data_sets(data),
        "wandb": _wandb(),
    }


def _state(missing: list[str], command: str) -> str:
    """Return whether the packages of a task or an extra are installed, and the command that installs them if not."""
    return f"missing {', '.join(missing)}: `{command}`" if missing else "installed"


def _data_sets(data: Path) -> dict[str, str]:
    """Return one line for each data set, by its name: what is there, or what is missing."""
    descriptions: dict[str, str] = {}
    for task in tasks().values():
        for make in task.experiments.values():
            config = make()
            if config.data.name not in descriptions:
                descriptions[config.data.name] = _describe(task, config, data)
    return descriptions


def _describe(task: Task, config: Experiment, data: Path) -> str:
    """Return what is there of a data set, or what is missing."""
    try:
        return task.check_data(config, data)
    except RelossError as error:
        return f"missing: {str(error).removeprefix(f'{config.data.name}: ')}"


def _wandb() -> str:
    try:
        version = metadata.version("wandb")
    except metadata.PackageNotFoundError:
        return "not installed: metrics stay local"
    online = bool(os.environ.get("WANDB_API_KEY"))
    return f"{version}, " + ("online: WANDB_API_KEY is set" if online else "offline: WANDB_API_KEY is not set")


def render(report: dict[str, Any]) -> str:
    """Return the report of `examine` as lines of text."""
    devices = report["devices"]
    sections = {
        "commit": [report["commit"]],
        "image": [report["image"]],
        "versions": [f"{name} {version}" for name, version in report["versions"].items() if version != "not installed"],
        "cpu": [f"{devices['cpu']}, {devices['threads']} threads"],
        "gpus": [", ".join(devices["gpus"]) or "none"],
        "tasks": [f"{name}: {state}" for name, state in report["tasks"].items()],
        "extras": [f"{name}: {state}" for name, state in report["extras"].items()],
        "data": _data_lines(report["data"]),
        "wandb": [report["wandb"]],
    }
    return "\n".join(
        f"{title if number == 0 else '':<{INDENT - 1}} {line}"
        for title, lines in sections.items()
        for number, line in enumerate(lines)
    )


def _data_lines(descriptions: dict[str, str]) -> list[str]:
    """Return a line for each data set; sets that lack the same share a line, with NAME in place of their names."""
    lines, sharing = [], dict[str, list[str]]()
    for name, text in descriptions.items():
        sharing.setdefault(text.replace(name, "NAME") if text.startswith("missing: ") else text, []).append(name)
    for shared, names in sharing.items():
        text = descriptions[names[0]] if len(names) == 1 else shared
        lines.append(text if text.startswith(names[0]) else f"{', '.join(names)}: {text}")
    return lines
