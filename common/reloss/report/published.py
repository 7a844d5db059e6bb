"""Published numbers: the validated entries of each task's `published.yaml`."""

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
    method: str | None = Field(None, description="name of a rival method, if the number is not the experiment's own")
    metric: str
    value: float | None = Field(allow_inf_nan=False, description="the number in percent; null if it was not recorded")
    source: str
    table: str | None = None
    page: int | None = Field(None, ge=1)
    seeds: int = Field(1, ge=1, description="number of runs in the mean; 1 if the source names none")
    verified: str = Field(description="how the value was verified, or `value not recorded`")
    needs: str | None = Field(None, description="what scoring our models in the same way needs and no run here has")

    @model_validator(mode="after")
    def _no_value_without_check(self) -> Published:
        if (self.value is None) != (self.verified == "value not recorded"):
            raise ValueError("a value needs the way it was verified; without a value, verified is `value not recorded`")
        return self

    def __str__(self) -> str:
        """Return the value with its source, table and page, for a cell of a table."""
        if self.value is None:
            return "unverified: value not recorded"
        place = [self.source, *([self.table] if self.table else []), *([f"p. {self.page}"] if self.page else [])]
        return f"{self.value:g} ({', '.join(place)})"


def read_published(path: Path) -> list[Published]:
    """Return the entries of a `published.yaml`.

    Raises:
        RelossError: the file does not follow the schema, or holds a number twice; the message names the entries.
    """
    try:
        entries = TypeAdapter(list[Published]).validate_python(yaml.safe_load(path.read_text(encoding="utf-8")) or [])
    except ValidationError as error:
        problems = "; ".join(_located(tuple(problem["loc"]), problem["msg"]) for problem in error.errors())
        raise RelossError(f"{path}: {problems}") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RelossError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    counts = Counter((entry.experiment, entry.loss, entry.method) for entry in entries)
    if duplicates := [f"{experiment} with {loss}" for (experiment, loss, _), count in counts.items() if count > 1]:
        raise RelossError(f"{path} holds more than one number for {', '.join(duplicates)}; remove all but one")
    return entries


def _located(location: tuple[int | str, ...], message: str) -> str:
    """Return the message with the number of the entry, counted from 1, and the key."""
    if not location:
        return f"not a list of entries ({message})"
    number, *keys = location
    return f"entry {int(number) + 1}{', ' if keys else ''}{'.'.join(map(str, keys))}: {message}"
