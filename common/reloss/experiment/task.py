"""What a task is, and how the core finds tasks. Imports no torch.

A task adapts one framework to the core. It is data: a `Task` object in the `__init__` of the task's package, named by
an entry point of the group `reloss.tasks`. The code lies in modules with fixed names, which are imported when they are
needed:

- `<package>.data`: `check(section, folder)`, `fetch(section, folder)`, `fingerprint(section, folder)`
- `<package>.training`: `train(run)`, `evaluate(run)`
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from reloss.experiment.config import Experiment
from reloss.runtime.errors import RelossError, Unavailable, UsageError, unknown
from reloss.runtime.extras import is_installed, missing_packages

if TYPE_CHECKING:
    from reloss.experiment.record import Record
    from reloss.learning.bank import PredictionBank
    from reloss.surrogates import SurrogateLoss
    from reloss.sweep.ablation import Ablation


ExperimentT = TypeVar("ExperimentT", bound=Experiment)

CONTENTS = "contents"  # first word of a fingerprint that covers the contents of the files, not only names and sizes


def comparable(fingerprint: str, other: str) -> bool:
    """Return whether two fingerprints were computed in the same way, so that they differ if the data differ."""
    return fingerprint.rpartition("-")[0] == other.rpartition("-")[0]


@dataclass
class Run(Generic[ExperimentT]):
    """One training run, as a task sees it, such as `Run[PoseExperiment]`.

    Attributes:
        config: the resolved experiment, an instance of the task's own subclass.
        loss: name of the loss to train with.
        seed: seed of initialisation, data order and augmentation.
        data: folder that holds the data sets.
        record: takes metrics, checkpoints and weights.
        bank: takes the predictions of this run if it is the recorded baseline; each process adds its own.
        surrogate: the frozen surrogate, if the loss is learned.
        initial_weights: weights of a finished baseline to start from, if the run fine-tunes.
    """

    config: ExperimentT
    loss: str
    seed: int
    data: Path
    record: Record
    bank: PredictionBank | None = None
    surrogate: SurrogateLoss | None = None
    initial_weights: Path | None = None

    def flush_bank(self) -> None:
        """Write the recorded predictions to disk and wait for all processes. Call it before each checkpoint."""
        from reloss.runtime import distributed

        if self.bank is not None:
            self.bank.flush()
            distributed.barrier()


@dataclass(frozen=True)
class Task:
    """The adapter of one framework.

    Attributes:
        name: first part of the names of its experiments.
        package: import name of the task's package.
        libraries: distribution names of the packages whose versions decide a result, kept in every record.
        experiments: functions that return the experiments, by the experiments' names.
        install: command that installs the packages that the task needs besides the core's.
        ablations: the task's ablations.
    """

    name: str
    package: str
    libraries: tuple[str, ...]
    experiments: Mapping[str, Callable[[], Experiment]]
    install: str = ""
    ablations: tuple[Ablation, ...] = ()

    @property
    def folder(self) -> Path:
        """The folder of the package, which holds `published.yaml`."""
        spec = find_spec(self.package)
        assert spec is not None
        assert spec.origin is not None
        return Path(spec.origin).parent

    def check_data(self, config: Experiment, data: Path) -> str:
        """Return one line that describes the data, or raise RelossError with what is missing and where it goes."""
        with self._naming_missing_packages():
            return str(self._module("data").check(config.data, data))

    def fetch_data(self, config: Experiment, data: Path) -> None:
        """Download the data into the folder `data`, verified, or raise RelossError with how to get them."""
        with self._naming_missing_packages():
            self._module("data").fetch(config.data, data)

    def data_fingerprint(self, config: Experiment, data: Path) -> str:
        """Return a hash of the data, prefixed with how it was computed (see `comparable`)."""
        with self._naming_missing_packages():
            return str(self._module("data").fingerprint(config.data, data))

    def missing_packages(self) -> list[str]:
        """Return the packages that are not installed: those of the extra named like the task, and `libraries`."""
        missing = [*missing_packages(self.name), *(name for name in self.libraries if not is_installed(name))]
        return list(dict.fromkeys(missing))

    def check_packages(self) -> None:
        """Raise Unavailable if a package is missing that training imports."""
        with self._naming_missing_packages():
            self._module("training")

    def train(self, run: Run) -> None:
        """Train `run`, resuming from its last checkpoint, and write `run.record.weights` at the end."""
        with self._naming_missing_packages():
            self._module("training").train(run)

    def evaluate(self, run: Run) -> dict[str, float]:
        """Return the final scores of the weights in `run.record.weights`."""
        with self._naming_missing_packages():
            scores: dict[str, float] = self._module("training").evaluate(run)
        return scores

    def new_surrogate(self, config: Experiment, loss: str = "reloss") -> SurrogateLoss:
        """Return a fresh surrogate for the experiment's predictions.

        Args:
            config: the experiment.
            loss: the loss it is for. For `expected` it is the expected metric, which needs no fit.

        Raises:
            UsageError: there is no formula for the expected metric.
            Unavailable: a package is missing that the shape of the predictions depends on.
        """
        from reloss.surrogates import build

        options = config.surrogate.build_options()
        if loss == "expected":
            options = {"features": "expected", "metric": config.metric}
        if options["features"] == "expected":
            options |= config.expected_options
        with self._naming_missing_packages():
            shape = config.surrogate_shape
        try:
            return build(config.surrogate_kind, shape, **options)
        except ValueError as error:
            raise UsageError(f"loss {loss} of {config.name}: {error}") from error

    @contextmanager
    def _naming_missing_packages(self) -> Iterator[None]:
        """Turn a failing import into an error that names the package and how to install it.

        Raises:
            Unavailable: a package is not installed.
        """
        try:
            yield
        except ModuleNotFoundError as error:
            module = error.name or ""
            if not module or module.startswith(("reloss", self.package)):
                raise
            remedy = f": `{self.install}`" if self.install else ""
            raise Unavailable(
                f"{self.name} needs the package {module.partition('.')[0]}, which is not installed{remedy}"
            ) from error

    def _module(self, name: str) -> Any:
        return import_module(f"{self.package}.{name}")


@lru_cache(maxsize=1)
def tasks() -> dict[str, Task]:
    """Return all installed tasks by name.

    Raises:
        RelossError: none is installed, or two have the same name.
    """
    installed: dict[str, Task] = {}
    for point in entry_points(group="reloss.tasks"):
        task: Task = point.load().TASK
        if task.name in installed:
            raise RelossError(
                f"two tasks have the name '{task.name}', in {installed[task.name].package} and {task.package}; "
                "uninstall one of them"
            )
        installed[task.name] = task
    if not installed:
        raise RelossError("no task is installed: run `make setup`, or `pip install --no-deps -e .` in the checkout")
    return installed


def ablations() -> list[Ablation]:
    """Return the ablations of all tasks."""
    return [ablation for task in tasks().values() for ablation in task.ablations]


def find_experiment(name: str) -> tuple[Task, Experiment]:
    """Return the experiment called `name` and its task.

    Raises:
        UsageError: there is none of that name; the nearest ones are named.
    """
    known = {experiment: task for task in tasks().values() for experiment in task.experiments}
    if name not in known:
        raise unknown("experiment", name, known)
    return known[name], known[name].experiments[name]()
