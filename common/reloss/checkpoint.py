"""Checkpoints of a training that can be gone on from: the last one and, should it be damaged, the one before."""

from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch

from reloss.errors import RelossError
from reloss.files import atomic
from reloss.progress import say


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors and plain values) to `path`; the checkpoint that stood there becomes the one before.

    Raises:
        RelossError: it cannot be written; the last one is still there.
    """
    with atomic(path) as temporary:
        with temporary.open("wb") as file:  # torch's own writer would not say that the disk is full
            torch.save(state, file)
        if path.exists():
            path.replace(before(path))


def load_checkpoint(path: Path, anew: str) -> dict[str, Any] | None:
    """Return the last checkpoint that is whole, on the CPU; None if there is none. No code in it is executed.

    Args:
        path: where `save_checkpoint` wrote.
        anew: what removing all of them does, for the message, such as "to train this run anew".

    Raises:
        RelossError: there are some, and all are damaged.
    """
    found = [each for each in (path, before(path)) if each.exists()]
    for each in found:
        try:
            with ZipFile(each) as archive:
                if damaged := archive.testzip():  # torch.load does not compare the sums
                    raise ValueError(f"{damaged} has another checksum")
            state: dict[str, Any] = torch.load(each, map_location="cpu", weights_only=True)
        except Exception as error:
            cause = error
            say(f"checkpoint {each} is damaged ({str(error).partition(chr(10))[0]})")
        else:
            return state
    if found:
        names = " and ".join(each.name for each in found)
        raise RelossError(f"checkpoint {path} is damaged; remove {names} {anew}") from cause
    return None


def remove_checkpoint(path: Path) -> None:
    """Remove the last checkpoint and the one before."""
    for each in (path, before(path)):
        each.unlink(missing_ok=True)


def before(path: Path) -> Path:
    """Return where the checkpoint before the last one stands."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")
