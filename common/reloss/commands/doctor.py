"""`reloss doctor`: what a run would find here."""

import os
from importlib import metadata
from pathlib import Path
from typing import Any

from reloss.experiment import environment
from reloss.experiment.task import tasks
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
    found: dict[str, str] = {}
    for task in tasks().values():
        for make in task.experiments.values():
            config: Any = make()
            if config.data.name not in found:
                try:
                    found[config.data.name] = task.check_data(config, data)
                except RelossError as error:
                    found[config.data.name] = f"missing: {error}"
    return found


def _wandb() -> str:
    try:
        version = metadata.version("wandb")
    except metadata.PackageNotFoundError:
        return "not installed: metrics stay local"
    online = bool(os.environ.get("WANDB_API_KEY"))
    return f"{version}, " + ("online: WANDB_API_KEY is set" if online else "offline: WANDB_API_KEY is not set")


def render(found: dict[str, Any]) -> str:
    """Return the findings as lines of text."""
    devices = found["devices"]
    lines = [f"commit    {found['commit']}", f"image     {found['image']}"]
    lines += [f"{'versions' if not i else '':<9} {name} {v}" for i, (name, v) in enumerate(found["versions"].items())]
    lines.append(f"cpu       {devices['cpu']}, {devices['threads']} threads")
    lines.append(f"gpus      {', '.join(devices['gpus']) or 'none'}")
    lines += [f"{'data' if not i else '':<9} {name}: {line}" for i, (name, line) in enumerate(found["data"].items())]
    lines.append(f"wandb     {found['wandb']}")
    return "\n".join(lines)
