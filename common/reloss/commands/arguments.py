"""Types of arguments that several subcommands share, with their help texts and defaults."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, UseAppendAction, arg

from reloss.runtime.text import finite

Name = Annotated[Positional[str], arg(metavar="NAME")]
Experiment = Annotated[Positional[str], arg(metavar="EXPERIMENT")]
Settings = Annotated[UseAppendAction[tuple[tuple[str, ...], ...]], arg(metavar="KEY=VALUE ...")]
Track = Literal["wandb", "off"]
Data = Annotated[Path, arg(help="Folder of the data sets (RELOSS_DATA).")]
Runs = Annotated[Path, arg(help="Folder of the records (RELOSS_RUNS).")]

DATA = Path(os.environ.get("RELOSS_DATA", "data"))
RUNS = Path(os.environ.get("RELOSS_RUNS", "runs"))


def flat(settings: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    """Return the settings of all `--set` options in one tuple."""
    return tuple(setting for group in settings for setting in group)


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    print(json.dumps(finite(value), indent=2))
