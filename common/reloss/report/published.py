"""Published numbers: each task's `published.yaml`, validated."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from reloss.errors import RelossError


class Published(BaseModel):
    """One published number, or the statement that it could not be verified."""

    model_config = ConfigDict(extra="forbid")

    experiment: str
    loss: str
    metric: str
    value: float | None = Field(description="in the paper's unit; none where it was not recorded")
    source: str
    table: str | None = None
    page: int | None = None
    verified: str = Field(description="how the value was verified, or `value not recorded`")
    needs: str | None = Field(None, description="what it takes to score a model of ours alike that no run here has")

    @model_validator(mode="after")
    def _no_value_without_check(self) -> Published:
        if (self.value is None) != (self.verified == "value not recorded"):
            raise ValueError("a value says how it was verified; without one, verified is `value not recorded`")
        return self

    def shown(self) -> str:
        """Return the text of a table's cell."""
        return "unverified: value not recorded" if self.value is None else f"{self.value:g} ({self.source})"


def read_published(path: Path) -> list[Published]:
    """Return the entries of a `published.yaml`.

    Raises:
        RelossError: the file is not of the schema; the message names the entry.
    """
    try:
        return TypeAdapter(list[Published]).validate_python(yaml.safe_load(path.read_text(encoding="utf-8")) or [])
    except (OSError, ValidationError, yaml.YAMLError) as error:
        raise RelossError(f"{path}: {error}") from error
