"""What the stages of one run share: the run, its resolved experiment, and the options of the command."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from reloss.experiment.banks import bank_folder
from reloss.experiment.config import FITTED_LOSSES, Experiment
from reloss.experiment.run_spec import RunSpec, Stage
from reloss.experiment.settings import baseline_settings, tuned
from reloss.experiment.task import Task
from reloss.experiment.workspace import Workspace
from reloss.runtime import distributed
from reloss.runtime.lock import locked

Resume = Literal["auto", "never"]


@dataclass(frozen=True)
class Context:
    """A run, and how it is to be run.

    Attributes:
        run: the run.
        task: its task.
        config: its experiment with the settings applied.
        workspace: where records and data lie.
        stage: the stage that the command names; `all` runs the missing stages before it too.
        track: where metrics are mirrored.
        resume: `never` refuses to touch a record that exists.
        allow_changed_data: whether to continue if the data changed since the record or the bank was written.
    """

    run: RunSpec
    task: Task
    config: Experiment
    workspace: Workspace
    stage: Stage = "all"
    track: str = "wandb"
    resume: Resume = "auto"
    allow_changed_data: bool = False

    @property
    def home(self) -> Path:
        """The folder of the experiment."""
        return self.workspace.experiment(self.config.name)

    @property
    def record(self) -> Path:
        """The folder of the record."""
        return self.workspace.record(self.run)

    @cached_property
    def bank(self) -> Path:
        """The folder of the bank."""
        return bank_folder(self.config, self.workspace)

    @property
    def is_fitted(self) -> bool:
        """Whether the loss is a surrogate."""
        return self.run.loss in FITTED_LOSSES

    @cached_property
    def data_fingerprint(self) -> str:
        """The fingerprint of the data; computing it takes a while if there are many files."""
        return self.task.data_fingerprint(self.config, self.workspace.data)

    def of(self, run: RunSpec) -> Context:
        """Return the context of another run with the same options, for all of its stages."""
        task, config = run.load()
        return replace(self, run=run, task=task, config=config, stage="all")

    def of_baseline(self, seed: int) -> Context:
        """Return the context of the baseline with that seed: the ordinary loss, without settings tuned per loss."""
        settings = baseline_settings(self.config, self.run.settings)
        return self.of(RunSpec.resolve(self.config.name, self.config.ordinary_loss, seed, settings))

    def may_record_bank(self) -> bool:
        """Return whether this is the baseline whose predictions fill the bank: of its seed, with nothing tuned."""
        is_recorded = (self.run.loss, self.run.seed) == (self.config.ordinary_loss, self.config.recording.seed)
        return is_recorded and not tuned(self.config, self.run.settings)


def sole_writer(folder: Path) -> AbstractContextManager[None]:
    """Lock the folder for the block. If a run has several processes, the main one holds the lock."""
    return locked(folder) if distributed.is_main() else nullcontext()
