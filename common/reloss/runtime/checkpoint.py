"""Checkpoints of a training that can be gone on from: the last one and, should it be damaged, the one before."""

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
    """Write `state` (tensors and plain values) to `path`; the checkpoint that stood there becomes the one before.

    A damaged one does not: the one before, which training went on from, is then kept.

    Raises:
        RelossError: it cannot be written; those that were there still are.
    """
    with atomic(path) as temporary:
        with temporary.open("wb") as file, uninterrupted():  # torch's own writer would not say that the disk is full
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())  # before any other is touched
        if _fault(path) is None:
            path.replace(before(path))


def load_checkpoint(path: Path, anew: str) -> dict[str, Any] | None:
    """Return the last checkpoint that is whole, on the CPU; None if there is none. No code in it is executed.

    Args:
        path: where `save_checkpoint` wrote.
        anew: what removing all of them does, for the message, such as "to train this run anew".

    Raises:
        RelossError: there are some, and all are damaged or cannot be read.
    """
    found = [each for each in (path, before(path)) if each.exists()]
    whole = last_whole(found)
    if whole is not None:
        state: dict[str, Any] = torch.load(whole, map_location="cpu", weights_only=True)
        return state
    if found:
        raise unusable(found, f"remove {' and '.join(each.name for each in found)} {anew}")
    return None


def last_whole(paths: Iterable[Path]) -> Path | None:
    """Return the first of some checkpoints, newest first, that is whole; says what is wrong with those before it."""
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


def unusable(paths: Iterable[Path], way_out: str) -> RelossError:
    """Return the error for checkpoints, newest first, of which none is whole; it names one that may be mended."""
    paths = list(paths)
    for path in paths:
        if isinstance(fault := _fault(path), OSError):
            return RelossError(
                f"checkpoint {path} cannot be read ({fault.strerror or fault}); make it readable, or {way_out}"
            )
    return RelossError(f"checkpoint {paths[0]} is damaged; {way_out}")


def _fault(path: Path) -> Exception | None:
    """Return what is wrong with a checkpoint: an OSError if it cannot be read, another if it is damaged; else None."""
    try:
        with ZipFile(path) as archive:
            if damaged := archive.testzip():  # torch.load does not compare the sums
                return ValueError(f"{damaged} has another checksum")
        torch.load(path, map_location="meta", weights_only=True, mmap=True)
    except Exception as error:
        return error
    return None


def remove_checkpoint(path: Path) -> None:
    """Remove the last checkpoint and the one before."""
    for each in (path, before(path)):
        each.unlink(missing_ok=True)


def before(path: Path) -> Path:
    """Return where the checkpoint before the last one stands."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")
