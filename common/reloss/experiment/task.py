"""What a task offers to the core, and how the core finds tasks. Imports no torch.

A task is an object of a subclass of `Task`, named by an entry point of the group `reloss.tasks`; the core never
imports a task by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reloss.experiment.config import Experiment
from reloss.runtime.errors import RelossError, unknown

if TYPE_CHECKING:
    from reloss.experiment.record import Record
    from reloss.learning.bank import PredictionBank
    from reloss.surrogates import SurrogateLoss
    from reloss.sweep.ablation import Ablation


KIND_OF_FINGERPRINT = "contents"  # those of images begin so; earlier ones, which did not look into the files, did not


def comparable(fingerprint: str, other: str) -> bool:
    """Return whether two fingerprints were made in the same way, so that they differ where the data do."""
    return fingerprint.rpartition("-")[0] == other.rpartition("-")[0]


@dataclass
class Run:
    """One training run, as a task sees it.

    Attributes:
        config: the resolved experiment.
        loss: the name of the loss to train with.
        seed: of initialisation, data order and augmentation.
        data: the folder in which the data sets lie.
        record: where metrics and checkpoints go.
        bank: to fill with the predictions of this run, each process with those it sees, if it is the recorded baseline.
        surrogate: the frozen surrogate, if the loss is learned.
        initial_weights: of a finished baseline to start from, if the run fine-tunes.
    """

    config: Any
    loss: str
    seed: int
    data: Path
    record: Record
    bank: PredictionBank | None = None
    surrogate: SurrogateLoss | None = None
    initial_weights: Path | None = None

    def flush_bank(self) -> None:
        """Write what was recorded to disk, and wait until all processes have: before each checkpoint."""
        from reloss.runtime import distributed

        if self.bank is not None:
            self.bank.flush()
            distributed.barrier()


class Task(ABC):
    """The adapter of one framework."""

    name: str

    @property
    @abstractmethod
    def experiments(self) -> Mapping[str, Callable[[], Experiment]]:
        """Return the functions that make the experiments, by the experiments' names."""

    @property
    @abstractmethod
    def folder(self) -> Path:
        """Return the task's folder, where `published.yaml` lies."""

    @property
    def ablation(self) -> Ablation | None:
        """Return the task's part of the ablation, if it has one."""
        return None

    @abstractmethod
    def new_surrogate(self, config: Any) -> SurrogateLoss:
        """Return a fresh surrogate for the experiment's predictions."""

    @abstractmethod
    def check_data(self, config: Any, data: Path) -> str:
        """Return one line that says what was found, or raise RelossError naming what is missing and where it goes."""

    @abstractmethod
    def fetch_data(self, config: Any, data: Path) -> None:
        """Download the experiment's data into `data`, verified, or raise RelossError saying how to get it."""

    @abstractmethod
    def data_fingerprint(self, config: Any, data: Path) -> str:
        """Return a name that changes when the data do, and tells how it was made (see `comparable`)."""

    def fine_tunes(self, config: Any) -> bool:
        """Return whether the run starts from the weights of the finished baseline of its seed."""
        return bool(config.train.init == "baseline")

    def needs(self, config: Any) -> list[tuple[str, str, int]]:
        """Return the runs of other experiments whose records this one uses: experiment, loss and seed of each."""
        return []

    @abstractmethod
    def train(self, run: Run) -> None:
        """Train `run`, going on from its last checkpoint, and write `run.record.weights` at the end."""

    @abstractmethod
    def evaluate(self, run: Run) -> dict[str, float]:
        """Return the final scores of the weights in `run.record.weights`."""


@lru_cache(maxsize=1)
def tasks() -> dict[str, Task]:
    """Return all installed tasks by name.

    Raises:
        RelossError: none is installed, or two have the same name.
    """
    found: dict[str, Task] = {}
    for point in entry_points(group="reloss.tasks"):
        task: Task = point.load().TASK
        if task.name in found:
            raise RelossError(f"two tasks are called '{task.name}'")
        found[task.name] = task
    if not found:
        raise RelossError("no task is installed: run `make setup`, or `pip install --no-deps -e .` in the checkout")
    return found


def ablations() -> list[Ablation]:
    """Return the ablations of all tasks that have one."""
    return [task.ablation for task in tasks().values() if task.ablation is not None]


def find_experiment(name: str) -> tuple[Task, Experiment]:
    """Return the experiment called `name` and its task.

    Raises:
        UsageError: there is none of that name; the nearest ones are named.
    """
    everything = {full: task for task in tasks().values() for full in task.experiments}
    if name not in everything:
        raise unknown("experiment", name, everything)
    return everything[name], everything[name].experiments[name]()
