"""Parallel texts as plain files: one sentence per line, one file per split and language."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from reloss.runtime.errors import RelossError
from reloss_tasks.nmt.config import Data

SPLITS = ("train", "valid", "test")


def text_files(config: Data, folder: Path) -> dict[tuple[str, str], Path]:
    """Return the text file of each split and language below the data folder."""
    root = folder / config.name
    return {(split, lang): root / f"{split}.{lang}" for split in SPLITS for lang in (config.source, config.target)}


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text. Only a line feed ends a line."""
    return path.read_bytes().decode("utf-8").split("\n")[:-1]


def read_sentences(path: Path) -> Iterator[str]:
    """Yield the sentences of a text, their words separated by single spaces. Only a line feed ends a line.

    A byte order mark, which some editors write at the start of a file, is dropped.

    Raises:
        RelossError: a line is not UTF-8.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield " ".join(line.decode("utf-8-sig" if number == 1 else "utf-8").split())
            except UnicodeDecodeError as error:
                raise RelossError(f"{path}: line {number} is not UTF-8 ({error.reason}); convert the file") from error


def check_parallel(counts: Mapping[Path, int]) -> None:
    """Raise RelossError unless the texts of a split, with their numbers of lines, are parallel and not empty."""
    if len(set(counts.values())) > 1 or 0 in counts.values():
        sizes = " and ".join(f"{number} lines in {path}" for path, number in counts.items())
        raise RelossError(f"{sizes}: both must have the same number of lines, at least one; align the files")
