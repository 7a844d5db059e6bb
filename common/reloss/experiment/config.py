"""The description of an experiment: one typed, validated config. Imports no torch.

An experiment is a Python function that returns an `Experiment`. Every section is declared here or built on a section
that is declared here, so the core reads its fields by name. `--set key=value` changes single fields.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from reloss.learning.options import LearnOptions
from reloss.runtime.files import short_hash
from reloss.surrogates.options import FEATURES, PRESETS, Features, Fidelity, Input, Output

# The losses that are fitted on a bank first, and the options of the fit that define them.
FITTED_LOSSES: dict[str, dict[str, Any]] = {
    "reloss": {"objective": "rank"},
    "approx": {"objective": "value"},
    "expected": {"objective": "none"},
}


class Scope(StrEnum):
    """How an experiment relates to the paper."""

    PAPER = "paper"
    """It regenerates a table or claim of the paper at full size."""
    REDUCED = "reduced"
    """It is smaller than the paper's experiment."""
    EXTRA = "extra"
    """It is not in the paper."""


class Section(BaseModel):
    """A part of a config. A misspelt key is an error."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class DataSection(Section):
    """Which data, and how much of them."""

    name: str = Field(description="name of the data set")

    def place(self, root: Path) -> Path | None:
        """Return what lies in the data folder `root` if the data are there; None if they come with a package.

        A quick look for `reloss list`, which reads no file. `reloss data check` checks the data themselves.
        """
        return root / self.name


class TrainSection(Section):
    """The recipe of the training, as far as the core reads it."""

    lr: float = Field(gt=0, description="learning rate, at its highest")
    ordinary_weight: Annotated[float, Field(ge=0)] | Literal["learned"] = Field(
        0.0,
        description="weight of the ordinary loss that is added to a learned loss; learned: both weights are learned in "
        "training, by the uncertainty rule",
    )
    init: Literal["scratch", "baseline"] = Field(
        "scratch", description="initial weights; baseline: fine-tune the finished baseline of the same seed"
    )
    length: float = Field(
        1.0, gt=0, le=1, description="length of a fine-tuning run, relative to the training of the baseline"
    )
    precision: Literal["no", "fp16", "bf16"] = Field("no", description="mixed precision; no: float32")

    DURATIONS: ClassVar[tuple[str, ...]] = ()
    """Fields that count epochs or updates; `length` scales them."""

    @model_validator(mode="after")
    def _shortens_fine_tuning_only(self) -> Self:
        if self.length < 1 and self.init != "baseline":
            raise ValueError("length shortens fine-tuning; it needs init=baseline")
        return self

    def shortened(self) -> Self:
        """Return the recipe as it is trained: `length` is applied to every field that counts epochs or updates."""
        return self.model_copy(update={name: self._shorten(getattr(self, name)) for name in self.DURATIONS})

    def _shorten(self, duration: Any) -> Any:
        if isinstance(duration, tuple):
            return tuple(map(self._shorten, duration))
        return max(round(duration * self.length), 1) if duration else duration


class SurrogateSection(Section):
    """The network that becomes the loss. With `learn.fidelity=released`, unset fields take the release's values."""

    features: Features = Field(
        FEATURES["corrected"],
        description="what the surrogate sees of a prediction: the likelihood of the targets, the expected parts of the "
        "metric, or what the release computes",
    )
    input: Input = Field(
        PRESETS["likelihood"]["input"],
        description="how the target's probability p enters the network; p itself passes no gradient where it is 0 or 1",
    )
    output: Output = Field(
        PRESETS["likelihood"]["output"],
        description="what is done with the network's output; its absolute value can fold the learned curve, and the "
        "gradient penalty is blind to the sign of a slope; a monotone network has neither problem",
    )

    def with_fidelity(self, fidelity: Fidelity) -> Self:
        """Return the section with unset fields filled in for `fidelity`; they stay unset for `--set`.

        Raises:
            ValueError: a field is set that the features do not use.
        """
        section = self.model_copy()
        features = self.features if "features" in self.model_fields_set else FEATURES[fidelity]
        preset = {"features": features, **PRESETS[features]}
        section.__dict__.update({name: value for name, value in preset.items() if name not in self.model_fields_set})
        if features == "expected":
            for name, field in type(self).model_fields.items():
                if name != "features" and getattr(section, name) != field.default:
                    raise ValueError(f"surrogate.{name} is an option of surrogate.features=likelihood, not of expected")
        return section

    def build_options(self) -> dict[str, Any]:
        """Return the options for `reloss.surrogates.build`: all fields, or only the features if they are expected."""
        return {"features": self.features} if self.features == "expected" else self.model_dump()


class Recording(Section):
    """What the baseline records in the prediction bank."""

    seed: int = Field(0, ge=0, description="seed of the recorded baseline; its bank serves all seeds")
    item_size: int = Field(128, ge=1, description="examples in an item")
    examples: int = Field(1024, ge=1, description="validation examples whose outputs every epoch keeps in the record")
    max_bytes: int = Field(1 << 30, ge=1, description="size of the bank on disk, kept by reservoir sampling")


class RequiredRun(NamedTuple):
    """A run of another experiment that must be finished first."""

    experiment: str
    loss: str
    seed: int


class Experiment(Section):
    """A complete experiment. A task subclasses it with its own sections `data`, `model` and `train`."""

    FIXED: ClassVar[frozenset[str]] = frozenset({"name", "scope", "scope_note", "score", "ordinary_loss", "losses"})
    """What defines an experiment: `--set` cannot change it."""

    TUNED: ClassVar[tuple[str, ...]] = (
        *("metric", "refit", "train.lr", "train.init", "train.length", "train.ordinary_weight"),
    )
    """Keys that may be tuned for each loss: they do not change the protocol. Even so, compared runs share `train.init`
    and `train.length`; see `reloss.report.groups.baseline_group`."""

    SURROGATE_KEYS: ClassVar[tuple[str, ...]] = ("surrogate.", "learn.")
    """Beginnings of keys that only losses with learned weights use."""

    FITTED_KEYS: ClassVar[tuple[str, ...]] = ("metric", "refit", "train.ordinary_weight")
    """Further keys that only the losses in FITTED_LOSSES use."""

    PROTOCOL: ClassVar[tuple[str, ...]] = ("data", "model", "train")
    """Sections that define the protocol."""

    OUTSIDE_PROTOCOL: ClassVar[tuple[str, ...]] = ()
    """Keys of those sections that do not change the protocol, such as the number of worker processes."""

    name: str
    scope: Scope = Field(description="how the experiment relates to the paper")
    scope_note: str = Field(description="the paper's table or claim; or why the experiment is reduced or extra")
    score: str = Field(description="the metric of the results table")
    metric: str = Field(description="the metric that teaches the surrogate")
    ordinary_loss: str
    losses: tuple[str, ...]
    data: DataSection
    model: Section
    train: TrainSection
    recording: Recording = Recording()
    surrogate: SurrogateSection = SurrogateSection()
    learn: LearnOptions = LearnOptions()
    refit: bool = Field(
        False,
        description="fit the surrogate a second time, with the validation predictions of a finished run that was "
        "trained with it (the run with the seed of the bank)",
    )

    @model_validator(mode="after")
    def _fill_surrogate_from_fidelity(self) -> Self:
        self.__dict__["surrogate"] = self.surrogate.with_fidelity(self.learn.fidelity)
        return self

    @property
    def surrogate_kind(self) -> str:
        """The kind of surrogate for the predictions, a key of `reloss.surrogates.KINDS`."""
        raise NotImplementedError

    @property
    def surrogate_shape(self) -> tuple[int, ...]:
        """Shape of one example's outputs; empty if the surrogate's network does not depend on it."""
        return ()

    @property
    def expected_options(self) -> dict[str, Any]:
        """Further constructor arguments of the surrogate if its features are expected, such as the longest answer."""
        return {}

    @property
    def fine_tunes(self) -> bool:
        """Whether a run starts from the weights of the finished baseline of its seed."""
        return self.train.init == "baseline"

    def unused_keys(self, loss: str) -> tuple[str, ...]:
        """Return the keys, or beginnings of keys, that change nothing in a run with this loss."""
        if loss == "expected":
            return (*self.SURROGATE_KEYS, "refit")
        return () if loss in FITTED_LOSSES else (*self.SURROGATE_KEYS, *self.FITTED_KEYS)

    def scope_text(self) -> str:
        """Return scope and note as one phrase, such as `reduced: 800 persons of LSP`."""
        return self.scope_note if self.scope is Scope.PAPER else f"{self.scope}: {self.scope_note}"

    def required_runs(self) -> list[RequiredRun]:
        """Return the runs of other experiments that this one needs, such as a teacher's."""
        return []

    def protocol(self) -> str:
        """Return a hash of what two runs must share to be compared: the sections PROTOCOL without tuned keys."""
        outside = {*self.TUNED, *self.OUTSIDE_PROTOCOL}
        values = self.model_dump(include=set(self.PROTOCOL))
        return short_hash(
            [
                {name: value for name, value in values[section].items() if f"{section}.{name}" not in outside}
                for section in self.PROTOCOL
            ]
        )


def to_yaml(config: BaseModel) -> str:
    """Return the whole resolved config as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
