"""The description of an experiment: one typed, validated config, and how `--set` changes it. Imports no torch."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reloss.learning.options import LearnOptions
from reloss.runtime.errors import UsageError, unknown

# Losses that are learned first, and what that changes in the options of the fit.
LEARNED_LOSSES: dict[str, dict[str, Any]] = {"reloss": {"objective": "rank"}, "approx": {"objective": "value"}}


class Section(BaseModel):
    """A part of a config; a misspelt key is an error."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class Recording(Section):
    """What the baseline leaves in the prediction bank."""

    seed: int = Field(0, description="of the baseline that is recorded; its bank serves all seeds")
    item_size: int = Field(128, ge=1, description="examples scored together")
    examples: int = Field(1024, ge=1, description="validation examples whose outputs every epoch leaves in the record")
    max_bytes: int = Field(1 << 30, ge=1, description="of the bank on disk, kept by reservoir sampling")


class Experiment(Section):
    """A complete experiment. Tasks add their sections: data, model, train."""

    TUNED: ClassVar[tuple[str, ...]] = ()
    """Keys that may differ between runs that are compared, such as train.lr; learn.* may too."""

    name: str
    paper: str = Field(
        description="the paper's table or claim that it stands for; else `none: `, or `reduced: ` if smaller, and why"
    )
    score: str = Field(description="the metric of its table")
    metric: str = Field(description="the metric that teaches the surrogate")
    ordinary_loss: str
    losses: tuple[str, ...]
    recording: Recording = Recording()
    learn: LearnOptions = LearnOptions()

    def protocol(self) -> str:
        """Return a hash of what two runs must share to be compared: all but how the loss was learned and tuned."""
        raise NotImplementedError

    def recipe(self) -> dict[str, Any]:
        """Return the section `train` but for what may be tuned for each loss."""
        tuned = {key.removeprefix("train.") for key in self.TUNED if key.startswith("train.")}
        train: Section = getattr(self, "train")  # noqa: B009 (the section is a task's)
        return train.model_dump(exclude=tuned)


ConfigT = TypeVar("ConfigT", bound=BaseModel)
FIXED = ("name", "paper", "score", "ordinary_loss", "losses")  # what an experiment is; not to be changed by --set


def override(config: ConfigT, settings: Sequence[str]) -> ConfigT:
    """Return `config` with each `key=value` of `settings` applied; keys are dotted, values are YAML.

    Raises:
        UsageError: a setting without `=`, a key that does not exist (the nearest are named), or a value that does not
            fit.
    """
    values = config.model_dump(exclude_unset=True)
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UsageError(f"--set takes key=value, not '{setting}'")
        keys = dotted_keys(config)
        if key not in keys:
            raise unknown("config key", key, keys)
        *path, last = key.split(".")
        section = values
        for part in path:
            section = section.setdefault(part, {})
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UsageError(f"--set {setting}: the value is not YAML ({error})") from error
        # YAML 1.1 reads no, off, yes and on as booleans; here they are names, such as train.precision=no.
        section[last] = text if isinstance(value, bool) and text.lower() not in ("true", "false") else value
    try:
        return type(config).model_validate(values)
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}, not {e['input']!r}" for e in error.errors())
        raise UsageError(f"--set: {found}") from None


def tuned(config: Experiment, settings: Sequence[str]) -> list[str]:
    """Return those of `settings` that may be tuned for each loss."""
    return [setting for setting in settings if setting.partition("=")[0] in config.TUNED]


def baseline_settings(config: Experiment, settings: Sequence[str]) -> tuple[str, ...]:
    """Return what of `settings` holds for the baseline that runs share: not what is learned, or tuned for each loss."""
    own = tuned(config, settings)
    return tuple(setting for setting in settings if not setting.startswith("learn.") and setting not in own)


def dotted_keys(config: BaseModel, prefix: str = "") -> list[str]:
    """Return the keys that `--set` takes, such as `train.epochs`."""
    keys: list[str] = []
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            keys += dotted_keys(value, f"{prefix}{name}.")
        elif not (isinstance(config, Experiment) and name in FIXED):
            keys.append(prefix + name)
    return keys


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a config's values by dotted keys, such as `train.epochs`."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found


def differing(own: Mapping[str, Any], others: Mapping[str, Any]) -> list[str]:
    """Return, as `key=value`, the values of `own` that `others` says otherwise; by key, of those that both have."""
    return [f"{name}={own[name]}" for name in sorted(own.keys() & others.keys()) if own[name] != others[name]]


def to_yaml(config: BaseModel) -> str:
    """Return the whole resolved config as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
