"""Where the parts of a record lie: in the files of a live folder, or in one line of a packed file.

A run writes a folder of small files (see `reloss.experiment.record`). Hundreds of such folders are slow to list and a
burden to commit, so `reloss pack` writes the parts of each folder into one line of JSON. Both forms hold the same parts
under the same names, and `reloss.experiment.records` makes the same objects of both.

    RUNS/<task>/<data>_<model>/<loss>[@<variant>]/seed<N>/   one run
    RUNS/<task>/<data>_<model>/surrogates/<hash>/            one surrogate
    RUNS/<task>/<data>_<model>/diagnostics/                  how all losses of an experiment rank its checkpoints

    PACKED/<task>/<data>_<model>.jsonl                       one line per run
    PACKED/surrogates.jsonl                                  one line per surrogate or diagnostics folder
    PACKED/configs.json, PACKED/environments.json            parts that many runs share, by their hash
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reloss.experiment.metrics_log import read_metrics
from reloss.runtime.errors import RelossError
from reloss.runtime.files import damage, parse_plain, read_json, read_object, read_text

FILES = {
    "summary": "summary.json",
    "environment": "environment.json",
    "config": "config.yaml",
    "metrics": "metrics.jsonl",
    "card": "surrogate.json",
    "history": "history.jsonl",
    "picture": "picture.json",
    "diagnostics": "diagnostics.json",
}
SURROGATES = "surrogates.jsonl"
SHARED = {"config": "configs.json", "environment": "environments.json"}


@dataclass(frozen=True)
class LiveFolder:
    """The parts of a record in its live folder."""

    name: str
    folder: Path

    def where(self, part: str) -> str:
        """Return the path of a part, for messages."""
        return str(self.folder / FILES[part])

    def read(self, part: str) -> Any:
        """Return a part as plain values, or None if it has no file.

        Raises:
            RelossError: the file cannot be read, or holds other values.
        """
        path = self.folder / FILES[part]
        readers: dict[str, Callable[[Path], Any]] = {".jsonl": read_metrics, ".yaml": read_object}
        try:
            if not path.exists():
                return None
            value = readers.get(path.suffix, read_json)(path)
        except OSError as error:
            raise RelossError(f"{path} cannot be read ({error.strerror or error}); make it readable") from error
        if value is None:
            raise damage(path, "empty")
        return value


@dataclass(frozen=True)
class PackedLine:
    """The parts of a record in its line of a packed file."""

    name: str
    parts: Mapping[str, Any]
    origin: str
    """File and line number, for messages."""

    @property
    def folder(self) -> None:
        """A packed record has no folder."""
        return None

    def where(self, part: str) -> str:
        """Return the file, the line and the part, for messages."""
        return f"{self.origin}, part {part}"

    def read(self, part: str) -> Any:
        """Return a part as plain values, or None if the line lacks it."""
        return self.parts.get(part)


Source = LiveFolder | PackedLine


def live_folders(runs: Path, pattern: str) -> list[LiveFolder]:
    """Return the folders below `runs` that match the glob `pattern`; their names are relative to `runs`."""
    return [LiveFolder(path.relative_to(runs).as_posix(), path) for path in runs.glob(pattern)]


def packed_runs(packed: Path, damaged: list[str] | None = None) -> Iterator[PackedLine]:
    """Yield the lines of all runs below `packed`, with the parts that they share.

    Args:
        packed: PACKED, see above.
        damaged: receives one message for each damaged line or file, which is then skipped.

    Raises:
        RelossError: a line or a file is damaged, and `damaged` is None.
    """
    paths = sorted(packed.glob("*/*.jsonl"))
    if not paths:
        return
    with skipping(damaged):
        shared = {part: read_object(packed / file) for part, file in SHARED.items()}
        for path in paths:
            for line in _lines(path, damaged):
                with skipping(damaged):
                    yield _with_shared(line, shared)


def packed_surrogates(packed: Path, damaged: list[str] | None = None) -> Iterator[PackedLine]:
    """Yield the lines of all surrogates and diagnostics below `packed`; see `packed_runs`."""
    if (packed / SURROGATES).exists():
        yield from _lines(packed / SURROGATES, damaged)


def _lines(path: Path, damaged: list[str] | None) -> Iterator[PackedLine]:
    """Yield the lines of one packed file."""
    with skipping(damaged):
        for number, text in enumerate(read_text(path).removesuffix("\n").split("\n"), start=1):
            with skipping(damaged):
                yield _parse(text, f"{path}, line {number}")


def _parse(text: str, origin: str) -> PackedLine:
    parts = parse_plain(text, origin)
    if not isinstance(parts, dict) or not isinstance(parts.get("name"), str):
        raise damage(origin, "without a name")
    return PackedLine(parts.pop("name"), parts, origin)


def _with_shared(line: PackedLine, shared: Mapping[str, Mapping[str, Any]]) -> PackedLine:
    """Return the line with its shared parts in the place of their hashes, and its command in the environment."""
    parts = dict(line.parts)
    for part, values in shared.items():
        if part in parts:
            value = values.get(parts[part]) if isinstance(parts[part], str) else None
            if not isinstance(value, dict):
                raise damage(line.origin, f"its {part} is not in {SHARED[part]}")
            parts[part] = value
    if "command" in parts:
        parts["environment"] = {**parts.get("environment", {}), "command": parts.pop("command")}
    return PackedLine(line.name, parts, line.origin)


@contextmanager
def skipping(damaged: list[str] | None) -> Iterator[None]:
    """Add the message of a RelossError to `damaged`, and end the block; raise it again if `damaged` is None."""
    try:
        yield
    except RelossError as error:
        if damaged is None:
            raise
        damaged.append(str(error))


def name_order(name: str) -> list[str]:
    """Return the key that sorts the names of records as folders are sorted: folder by folder."""
    return name.split("/")
