"""Types of arguments that several subcommands share, with their help texts and defaults."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from shutil import get_terminal_size
from typing import Annotated, Any

from tyro.conf import Positional, UseAppendAction, arg
from tyro.constructors import PrimitiveConstructorSpec

from reloss.runtime.text import finite

Name = Annotated[Positional[str], arg(metavar="NAME")]
Experiment = Annotated[Positional[str], arg(metavar="EXPERIMENT")]
Settings = Annotated[UseAppendAction[tuple[tuple[str, ...], ...]], arg(metavar="KEY=VALUE ...")]
Track = Annotated[
    str,
    arg(
        metavar="TRACKERS",
        help="Where metrics go besides the run's own files, separated by commas: wandb (offline unless "
        "WANDB_API_KEY is set), csv, tensorboard; or off.",
    ),
]
Device = Annotated[
    str, arg(metavar="cpu|cuda|cuda:N", help="The device; by default the first GPU, or the processor if there is none.")
]


def as_folder(text: str) -> Path:
    """Return the path that `text` names; it is absolute for a text such as `./runs` or `runs/`.

    To Docker, these are folders, but the plain name `runs` is a volume. `Path` alone would make all three `runs`; see
    `docker_lines`.
    """
    path = Path(text)
    return path.absolute() if os.sep in text and os.sep not in str(path) else path


_FOLDER: PrimitiveConstructorSpec[Path] = PrimitiveConstructorSpec(
    nargs=1,
    metavar="PATH",
    instance_from_str=lambda words: as_folder(words[0]),
    is_instance=lambda value: isinstance(value, Path),
    str_from_instance=lambda path: [str(path)],
)
Data = Annotated[Path, _FOLDER, arg(help="Folder of the data sets (RELOSS_DATA).")]
Runs = Annotated[Path, _FOLDER, arg(help="Folder of the records (RELOSS_RUNS).")]

DATA = as_folder(os.environ.get("RELOSS_DATA", "data"))
RUNS = as_folder(os.environ.get("RELOSS_RUNS", "runs"))


def flat(settings: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    """Return the settings of all `--set` options in one tuple."""
    return tuple(setting for group in settings for setting in group)


def terminal_width() -> int | None:
    """Return the number of columns of the terminal; None if the output goes elsewhere."""
    return get_terminal_size().columns if sys.stdout.isatty() else None


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    print(json.dumps(finite(value), indent=2))
