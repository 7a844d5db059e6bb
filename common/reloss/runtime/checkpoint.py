"""Training checkpoints that survive a crash during the save.

Each path has two checkpoints: the last one and the previous one. A save writes a complete new file first and only then
renames the last checkpoint to the previous one. So at every moment at least one intact checkpoint is on disk, and
loading falls back to the previous one if the last one is damaged.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch

from reloss.runtime.errors import RelossError
from reloss.runtime.files import atomic
from reloss.runtime.progress import say
from reloss.runtime.signals import uninterrupted


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors and plain values) to `path`; the checkpoint already there becomes the previous one.

    If the checkpoint at `path` is damaged, it is overwritten and the previous one stays, because training resumed from
    that one.

    Raises:
        RelossError: the checkpoint cannot be written. The existing checkpoints are untouched.
    """
    with atomic(path) as temporary:
        with temporary.open("wb") as file, uninterrupted():  # given a path, torch.save does not report a full disk
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())  # before any other file is touched
        if _fault(path) is None:
            path.replace(previous(path))


def load_checkpoint(path: Path, consequence: str) -> dict[str, Any] | None:
    """Return the latest intact checkpoint, on the CPU, or None if there is no checkpoint. Executes no code from it.

    Args:
        path: the path given to `save_checkpoint`.
        consequence: completes the error message: what removing the checkpoints leads to, such as "to train this run
            from scratch".

    Raises:
        RelossError: there are checkpoints, but all of them are damaged or unreadable.
    """
    paths = [candidate for candidate in (path, previous(path)) if candidate.exists()]
    intact = latest_intact(paths)
    if intact is not None:
        state: dict[str, Any] = torch.load(intact, map_location="cpu", weights_only=True)
        return state
    if paths:
        names = " and ".join(candidate.name for candidate in paths)
        raise no_intact_checkpoint(paths, f"remove {names} {consequence}")
    return None


def latest_intact(paths: Iterable[Path]) -> Path | None:
    """Return the first intact checkpoint of `paths`, which come newest first; report the fault of each one before it.

    Missing files are skipped.
    """
    for path in paths:
        fault = _fault(path)
        if fault is None:
            return path
        if isinstance(fault, FileNotFoundError):
            continue
        if isinstance(fault, OSError):
            say(f"checkpoint {path} cannot be read ({fault.strerror or fault})")
        else:
            say(f"checkpoint {path} is damaged ({str(fault).partition(chr(10))[0]})")
    return None


def no_intact_checkpoint(paths: Iterable[Path], remedy: str) -> RelossError:
    """Return the error for checkpoints, newest first, if all are damaged.

    The message names a checkpoint that is merely unreadable, if there is one: making it readable loses no training.
    """
    paths = list(paths)
    for path in paths:
        if isinstance(fault := _fault(path), OSError):
            return RelossError(
                f"checkpoint {path} cannot be read ({fault.strerror or fault}); make it readable, or {remedy}"
            )
    return RelossError(f"checkpoint {paths[0]} is damaged; {remedy}")


def _fault(path: Path) -> Exception | None:
    """Return None for an intact checkpoint, an OSError for an unreadable one, another error for a damaged one."""
    try:
        with ZipFile(path) as archive:
            if damaged_member := archive.testzip():  # torch.load does not verify checksums
                return ValueError(f"{damaged_member} has another checksum")
        torch.load(path, map_location="meta", weights_only=True, mmap=True)
    except Exception as error:
        return error
    return None


def remove_checkpoint(path: Path) -> None:
    """Remove the last and the previous checkpoint."""
    for checkpoint in (path, previous(path)):
        checkpoint.unlink(missing_ok=True)


def previous(path: Path) -> Path:
    """Return the path of the previous checkpoint."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")
