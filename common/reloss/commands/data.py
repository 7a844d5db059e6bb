"""`reloss data`: the data of an experiment by its name, or by the name of the data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reloss.experiment.config import Experiment
from reloss.experiment.settings import override
from reloss.experiment.task import Task, tasks
from reloss.runtime.errors import unknown


def find_data(name: str, settings: Sequence[str] = ()) -> tuple[Task, Experiment]:
    """Return the task and an experiment with the data `name`: a data set (its first experiment), or an experiment.

    Raises:
        UsageError: neither has that name, or a setting does not fit.
    """
    known: dict[str, tuple[Task, Experiment]] = {}
    for task in tasks().values():
        for make in task.experiments.values():
            config = make()
            known.setdefault(config.data.name, (task, config))
            known[config.name] = (task, config)
    if name not in known:
        raise unknown("data set or experiment", name, known)
    task, config = known[name]
    return task, override(config, settings)


def check_data(name: str, data: Path, settings: Sequence[str] = ()) -> str:
    """Return one line that describes the data in the folder `data`.

    Raises:
        UsageError: see `find_data`.
        RelossError: data are missing; the message says where they go.
    """
    task, config = find_data(name, settings)
    return task.check_data(config, data)


def fetch_data(name: str, data: Path, settings: Sequence[str] = ()) -> None:
    """Download the data into the folder `data`.

    Raises:
        UsageError: see `find_data`; or the data cannot be downloaded, and the message says how to get them.
        RelossError: the download failed.
    """
    task, config = find_data(name, settings)
    task.fetch_data(config, data)
