"""Settings: the `key=value` texts of `--set`, which change single fields of a config. Imports no torch.

Settings name the variant of a run, hence its folder. So they are compared by what they resolve to: `0.10`, `1e-1` and
`0.1` are the same setting, the default value is no setting, and what a loss does not use is no setting of its runs.
"""

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from reloss.experiment.config import Experiment, Scope
from reloss.runtime.errors import UsageError, unknown
from reloss.runtime.files import load_yaml
from reloss.surrogates.options import FEATURES

# Keys of earlier versions, in commands and records, and what they are called today.
RENAMED_KEYS = {
    "learn.input": "surrogate.input",
    "learn.output": "surrogate.output",
    "structure": "surrogate.structure",
}

ConfigT = TypeVar("ConfigT", bound=BaseModel)


def override(config: ConfigT, settings: Sequence[str]) -> ConfigT:
    """Return `config` with every `key=value` of `settings` applied; keys are dotted, such as `train.epochs=30`.

    Raises:
        UsageError: a setting without `=`, an unknown key (the nearest keys are named), a key that is given twice, or a
            value that does not fit the field.
    """
    values = config.model_dump(exclude_unset=True)
    for key, text in _parsed(config, settings).items():
        *sections, name = key.split(".")
        section = values
        for part in sections:
            section = section.setdefault(part, {})
        section[name] = _value(key, text)
    try:
        return type(config).model_validate(values)
    except ValidationError as error:
        raise UsageError(f"--set: {'; '.join(map(_problem, error.errors()))}") from None


def _problem(details: Mapping[str, Any]) -> str:
    """Return what is wrong with a value, given one of pydantic's errors."""
    if details["type"] == "value_error":  # raised by a validator of ours, whose message is complete
        return str(details["ctx"]["error"])
    return f"{'.'.join(map(str, details['loc']))}: {details['msg']}, not {details['input']!r}"


def canonical_settings(config: Experiment, settings: Sequence[str], loss: str) -> tuple[str, ...]:
    """Return the settings in which a run differs from its experiment, sorted, as `key=value` with resolved values.

    Settings that change nothing are dropped. So are settings that `loss` does not use.

    Raises:
        UsageError: see `override`; also for a setting that is dropped.
    """
    override(config, settings)
    unused = config.unused_keys(loss)
    texts = {key: text for key, text in _parsed(config, settings).items() if not key.startswith(unused)}
    values = _resolved(config, texts)
    for key in sorted(texts):
        rest = {other: text for other, text in texts.items() if other != key}
        with suppress(UsageError):  # the rest alone is not valid, so the setting changes something
            if _resolved(config, rest) == values:
                texts = rest
    return tuple(f"{key}={as_text(values[key])}" for key in sorted(texts))


def _resolved(config: Experiment, texts: Mapping[str, str]) -> dict[str, Any]:
    """Return all values of the config by dotted keys, with the settings applied."""
    settings = [f"{key}={text}" for key, text in texts.items()]
    return flat(override(config, settings).model_dump(mode="json"))


def renamed(setting: str) -> str:
    """Return a setting of an earlier version under the key that it has today."""
    key, equals, text = setting.partition("=")
    return f"{RENAMED_KEYS.get(key, key)}{equals}{text}"


def current_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config of an earlier version, nested by section, as it is written today: renamed keys, and the scope.

    Earlier versions had no choice of features, and `example` was the default of the gradient penalty.
    """
    current = copy.deepcopy(config)
    for old, new in RENAMED_KEYS.items():
        (*old_path, old_key), (*new_path, new_key) = old.split("."), new.split(".")
        section: Any = current
        for key in old_path:
            section = section.get(key) if isinstance(section, dict) else None
        if not isinstance(section, dict) or old_key not in section:
            continue
        value, section = section.pop(old_key), current
        for key in new_path:
            if not isinstance(section.get(key), dict):
                section[key] = {}
            section = section[key]
        section[new_key] = value
    learn = current.get("learn")
    surrogate = current.setdefault("surrogate", {}) if isinstance(learn, dict) else None
    if isinstance(learn, dict) and isinstance(surrogate, dict) and "features" not in surrogate:
        surrogate["features"] = FEATURES.get(learn.get("fidelity", "corrected"), "likelihood")
        if learn.get("penalty") == "example":
            learn["penalty"] = "auto"
    if isinstance(paper := current.pop("paper", None), str):
        kind, colon, note = paper.partition(": ")
        scope = {"none": Scope.EXTRA, "reduced": Scope.REDUCED}.get(kind) if colon else None
        current |= {"scope": str(scope or Scope.PAPER), "scope_note": note if scope else paper}
    return current


def _parsed(config: BaseModel, settings: Sequence[str]) -> dict[str, str]:
    """Return the texts of the values by key."""
    keys = dotted_keys(config)
    texts: dict[str, str] = {}
    for setting in map(renamed, settings):
        key, equals, text = setting.partition("=")
        if not equals:
            raise UsageError(f"--set takes key=value, not '{setting}'")
        if key not in keys:
            raise unknown("config key", key, keys)
        if not text.isprintable():
            raise UsageError(f"--set: the value of {key} holds a character that cannot be printed: {text!r}")
        if key in texts:
            raise UsageError(f"--set: {key} is given twice, as {texts[key]} and {text}; give it once")
        texts[key] = text
    return texts


def _value(key: str, text: str) -> Any:
    """Return a list or a mapping of texts, None for null, else the text. The field's type parses the texts.

    Quotes around a text are dropped.
    """
    if text == "null":
        return None
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    if not text.startswith(("[", "{")):
        return text
    try:
        return load_yaml(text, yaml.BaseLoader)  # which leaves all scalars as texts
    except (yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"--set {key}={text}: the value is not YAML ({' '.join(str(error).split())})") from error


def as_text(value: Any) -> str:
    """Return a value as `--set` takes it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def tuned(config: Experiment, settings: Iterable[str]) -> list[str]:
    """Return the settings that may be tuned for each loss."""
    return [setting for setting in settings if setting.partition("=")[0] in config.TUNED]


def baseline_settings(config: Experiment, settings: Iterable[str]) -> tuple[str, ...]:
    """Return the settings of the baseline that is recorded or fine-tuned for a run, without tuned keys."""
    own = ("learn.", "surrogate.", *(f"{key}=" for key in config.TUNED))
    return tuple(setting for setting in settings if not setting.startswith(own))


def dotted_keys(config: BaseModel, prefix: str = "") -> list[str]:
    """Return the keys that `--set` takes, such as `train.epochs`."""
    fixed = config.FIXED if isinstance(config, Experiment) else frozenset()
    keys: list[str] = []
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            keys += dotted_keys(value, f"{prefix}{name}.")
        elif name not in fixed:
            keys.append(prefix + name)
    return keys


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a config's values by dotted keys, such as `train.epochs`; keys of earlier versions as of today."""
    flattened: dict[str, Any] = {}
    for name, value in values.items():
        key = prefix + name
        if isinstance(value, Mapping) and key != "learn.mixture":  # whose value may be a mapping
            flattened |= flat(value, f"{key}.")
        else:
            flattened[RENAMED_KEYS.get(key, key)] = value
    return flattened


def differing(own: Mapping[str, Any], reference: Mapping[str, Any]) -> list[str]:
    """Return, as `key=value`, the values of `own` that differ from those of `reference`, of the keys both have."""
    common = sorted(own.keys() & reference.keys())
    return [f"{key}={own[key]}" for key in common if own[key] != reference[key]]
