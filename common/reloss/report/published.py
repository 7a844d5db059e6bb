"""Published numbers: each task's `published.yaml`, validated."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from reloss.runtime.errors import RelossError


class Published(BaseModel):
    """One published number, or the statement that it could not be verified."""

    model_config = ConfigDict(extra="forbid")

    experiment: str
    loss: str
    metric: str
    value: float | None = Field(allow_inf_nan=False, description="in percent; none where it was not recorded")
    source: str
    table: str | None = None
    page: int | None = Field(None, ge=1)
    seeds: int = Field(1, ge=1, description="runs that the value is the mean of; 1 where the source names no number")
    verified: str = Field(description="how the value was verified, or `value not recorded`")
    needs: str | None = Field(None, description="what it takes to score a model of ours alike that no run here has")

    @model_validator(mode="after")
    def _no_value_without_check(self) -> Published:
        if (self.value is None) != (self.verified == "value not recorded"):
            raise ValueError("a value says how it was verified; without one, verified is `value not recorded`")
        return self

    def shown(self) -> str:
        """Return the text of a table's cell: the value with source, table and page."""
        if self.value is None:
            return "unverified: value not recorded"
        place = [self.source, *([self.table] if self.table else []), *([f"p. {self.page}"] if self.page else [])]
        return f"{self.value:g} ({', '.join(place)})"


def read_published(path: Path) -> list[Published]:
    """Return the entries of a `published.yaml`.

    Raises:
        RelossError: the file is not of the schema, or states a number twice; the message names the entries.
    """
    try:
        entries = TypeAdapter(list[Published]).validate_python(yaml.safe_load(path.read_text(encoding="utf-8")) or [])
    except ValidationError as error:
        found = "; ".join(_at(tuple(each["loc"]), each["msg"]) for each in error.errors())
        raise RelossError(f"{path}: {found}") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RelossError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    stated = Counter((entry.experiment, entry.loss) for entry in entries)
    if twice := [f"{experiment} with {loss}" for (experiment, loss), count in stated.items() if count > 1]:
        raise RelossError(f"{path} states more than one number of {', '.join(twice)}")
    return entries


def _at(location: tuple[int | str, ...], message: str) -> str:
    """Return the message with the entry, counted from 1, and the key that it is about."""
    if not location:
        return f"not a list of entries ({message})"
    number, *keys = location
    return f"entry {int(number) + 1}{', ' if keys else ''}{'.'.join(map(str, keys))}: {message}"
