"""The metrics of a run: a JSONL file with one object per line, appended to as training proceeds.

A line is on disk before the checkpoint that counts it, so that a run that is killed can drop the lines after its last
checkpoint and log them again.
"""

import json
import os
from pathlib import Path
from typing import Any

from reloss.runtime.errors import RelossError
from reloss.runtime.files import check_plain, read_text, write_text
from reloss.runtime.text import finite


class MetricsFile:
    """An append-only JSONL file.

    Attributes:
        path: the file.
        lines: number of whole lines in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = len(read_metrics(path))

    def append(self, values: dict[str, Any]) -> None:
        """Write one line and flush it to disk, so that a checkpoint written after it can count it.

        Numbers that are not finite, which JSON lacks, are dropped.

        Raises:
            RelossError: the file cannot be written.
        """
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(finite(values)) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RelossError(
                f"cannot write {self.path}: {error.strerror}; its earlier lines are intact. Free some space or make it "
                "writable; the same command then resumes"
            ) from error
        self.lines += 1

    def cut(self, lines: int) -> None:
        """Keep only the first `lines` whole lines; a resumed run logs the later ones again."""
        remaining = self.path.read_text(encoding="utf-8").splitlines()[: min(lines, self.lines)] if self.lines else []
        write_text(self.path, "".join(line + "\n" for line in remaining))
        self.lines = len(remaining)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a metrics file, an empty list if there is none; a last line cut short by a kill is skipped.

    Raises:
        RelossError: the file cannot be read, or another line is not an object of names and numbers.
    """
    if not path.exists():
        return []
    lines = read_text(path).splitlines()
    entries = []
    for number, line in enumerate(lines, start=1):
        try:
            entries.append(_parse(line))
        except (ValueError, RecursionError):
            if number < len(lines):
                raise RelossError(f"{path}, line {number} is damaged; remove the line to continue") from None
    check_plain(entries, path)
    return entries


def _parse(line: str) -> dict[str, Any]:
    """Return the entry on one line; raise ValueError if it is not an object of names and numbers."""
    entry = json.loads(line)
    if not (isinstance(entry, dict) and all(isinstance(value, int | float) for value in entry.values())):
        raise ValueError(line)
    return entry
