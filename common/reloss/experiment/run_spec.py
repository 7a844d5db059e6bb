"""The description of one run, from the command line to Slurm.

Four values identify a run: the experiment, the loss, the seed and the settings in which it differs from its experiment.
The name of its folder, its label, its log file and the command that starts it all follow from these. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from reloss.experiment.config import Experiment
from reloss.experiment.settings import canonical_settings, override
from reloss.experiment.task import Task, find_experiment
from reloss.runtime.errors import UsageError, unknown
from reloss.runtime.files import short_hash

Stage = Literal["all", "baseline", "learn", "train", "evaluate"]

FIT_KEYS = ("metric=", "refit=", "surrogate.", "learn.")
"""Beginnings of the settings that change a surrogate or its fit."""

MAX_SEED = 2**63 - 1
"""The largest seed that PyTorch's generators take."""

MAX_VARIANT_BYTES = 100
"""Length of a variant's name. With the loss and the endings of logs, it stays below the 255 bytes of a file name."""


@dataclass(frozen=True)
class RunSpec:
    """One run.

    Attributes:
        experiment: name of the experiment, such as classification/digits_cnn.
        loss: name of one of its losses.
        seed: seed of initialisation, data order and augmentation, from 0 to MAX_SEED.
        settings: changes of the experiment's config, each `key=value`.
    """

    experiment: str
    loss: str
    seed: int
    settings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_seed(self.seed)

    @classmethod
    def resolve(cls, experiment: str, loss: str = "", seed: int = 0, settings: Sequence[str] = ()) -> RunSpec:
        """Return the run that a user describes, checked; the ordinary loss if none is named.

        Raises:
            UsageError: an unknown experiment, loss or setting, a value that does not fit, or a seed out of range.
        """
        _, config = find_experiment(experiment)
        loss = loss or config.ordinary_loss
        if loss not in config.losses:
            raise unknown(f"loss of {config.name}", loss, config.losses)
        return cls(experiment, loss, seed, canonical_settings(config, settings, loss))

    def load(self) -> tuple[Task, Experiment]:
        """Return the task of the run, and its config with the settings applied.

        Raises:
            UsageError: an unknown experiment or setting, or a value that does not fit.
        """
        task, config = find_experiment(self.experiment)
        return task, override(config, self.settings)

    @property
    def variant(self) -> str:
        """The name of the settings; the empty string if there are none."""
        return variant_name(self.settings)

    @property
    def fit_settings(self) -> tuple[str, ...]:
        """The settings that change the surrogate or its fit; runs that agree in them share a surrogate."""
        return select_fit_settings(self.settings)

    @property
    def loss_with_variant(self) -> str:
        """The loss and, after an `@`, the variant if there is one: the name of a folder."""
        return f"{self.loss}@{self.variant}" if self.variant else self.loss

    def first_round(self) -> RunSpec:
        """Return the run without `refit` and with the seed of the bank; a second fit learns from its predictions."""
        settings = [setting for setting in self.settings if not setting.startswith("refit=")]
        return RunSpec.resolve(self.experiment, self.loss, self.load()[1].recording.seed, settings)

    def label(self, stage: Stage = "all") -> str:
        """Return the name of the run, or of one stage that several runs share, for messages."""
        return f"{self.experiment} {self.loss_with_variant} {f'seed {self.seed}' if stage == 'all' else stage}"

    def file_name(self, stage: Stage = "all") -> str:
        """Return the name of a stage's log and note, without ending."""
        return file_name(self.experiment, self.loss_with_variant, self.seed, stage)

    def command(self, stage: Stage = "all", options: Sequence[str] = ()) -> list[str]:
        """Return the words of the `reloss run` command, with more of its options, such as `--runs` and its value."""
        words = ["reloss", "run", self.experiment, "--loss", self.loss, "--seed", str(self.seed)]
        words += ["--stage", stage] if stage != "all" else []
        return [*words, *options, *(["--set", *self.settings] if self.settings else [])]


def variant_name(settings: Sequence[str]) -> str:
    """Return the name of what `settings` change, fit for a folder; the empty string for no settings.

    A name of more than MAX_VARIANT_BYTES bytes in UTF-8 is cut, and ends in a hash of the whole.
    """
    name = ",".join(sorted(setting.replace("/", "_").replace(" ", "") for setting in settings))
    if len(name.encode()) <= MAX_VARIANT_BYTES:
        return name
    beginning = name.encode()[: MAX_VARIANT_BYTES - 9].decode(errors="ignore")
    return f"{beginning}~{short_hash(name, 8)}"


def file_name(experiment: str, loss_with_variant: str, seed: int, stage: Stage = "all") -> str:
    """Return the name of the log and the note of a run's stage, without ending."""
    return f"{experiment.replace('/', '_')}-{loss_with_variant}-{stage}-seed{seed}"


def select_fit_settings(settings: Sequence[str]) -> tuple[str, ...]:
    """Return those settings that change a surrogate or its fit. A second fit learns from a run, so all change it."""
    if any(setting.startswith("refit=") for setting in settings):
        return tuple(settings)
    return tuple(setting for setting in settings if setting.startswith(FIT_KEYS))


def check_seed(seed: int) -> None:
    """Raise UsageError unless `seed` is one that every generator takes."""
    if not 0 <= seed <= MAX_SEED:
        raise UsageError(f"a seed is a whole number from 0 to {MAX_SEED}, not {seed}")
