"""`reloss doctor`: versions, devices, data and tracking, as a run on this machine would find them."""

import os
from importlib import metadata
from pathlib import Path
from typing import Any

from reloss.experiment import environment
from reloss.experiment.config import Experiment
from reloss.experiment.task import Task, tasks
from reloss.runtime.errors import RelossError


def examine(data: Path) -> dict[str, Any]:
    """Return commit, image, versions, devices, the data sets found below `data`, and the state of W&B."""
    return {
        "commit": environment.commit(),
        "image": environment.image(),
        "versions": environment.versions(),
        "devices": environment.devices(),
        "data": _data_sets(data),
        "wandb": _wandb(),
    }


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
        "versions": [f"{name} {version}" for name, version in report["versions"].items()],
        "cpu": [f"{devices['cpu']}, {devices['threads']} threads"],
        "gpus": [", ".join(devices["gpus"]) or "none"],
        "data": [line if line.startswith(name) else f"{name}: {line}" for name, line in report["data"].items()],
        "wandb": [report["wandb"]],
    }
    return "\n".join(
        f"{title if number == 0 else '':<9} {line}"
        for title, lines in sections.items()
        for number, line in enumerate(lines)
    )
