"""The shards of a prediction bank: safetensors files that each hold some items.

A shard is written atomically, never changed in place, and read through a memory map. So a bank can be read while it is
recorded: a reader sees whole items only, and keeps the version of a shard that it has mapped.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from reloss.runtime.errors import RelossError
from reloss.runtime.tensors import content_hash, is_intact, save_tensors

SHARD_NAME = re.compile(r"\d+-\d+-\d+\.safetensors")  # step and number of the first item, and the writer
TENSORS = ("outputs", "targets", "steps", "keys")

Shard = dict[str, Tensor]
"""n items: outputs [n, B, ...], targets [n, B, ...], the training steps [n] and the reservoir's keys [n]."""


class ShardFolder:
    """The shards in one folder, sorted by writer and step; so the order of the items does not depend on timing.

    The list of shards is read once and cached. Writing and filtering update it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._cache: dict[Path, Shard] | None = None
        self._metadata: dict[Path, dict[str, str] | None] = {}  # of the version of each shard that is mapped

    def refresh(self) -> None:
        """Forget the cached list: other processes may have written since."""
        self._cache = None

    def read(self) -> dict[Path, Shard]:
        """Return all shards, memory-mapped.

        Raises:
            RelossError: the folder or a shard cannot be read, or the shards hold items of different shapes.
        """
        if self._cache is None:
            shards: dict[Path, Shard] = {}
            for path in sorted(_list_shards(self.path), key=_order):
                with suppress(FileNotFoundError):  # the recorder may have removed it since it was listed
                    shards[path], self._metadata[path] = _map_shard(path)
            _check_layout(shards)
            self._cache = shards
        return self._cache

    def _update(self, path: Path) -> None:
        """Map a shard that was written; the others stay mapped."""
        if self._cache is None:
            return
        is_next = not self._cache or path in self._cache or _order(path) > _order(next(reversed(self._cache)))
        self._cache[path], self._metadata[path] = _map_shard(path)
        if not is_next:
            self._cache = {path: self._cache[path] for path in sorted(self._cache, key=_order)}

    def of_writer(self, writer: int, writers: int) -> dict[Path, Shard]:
        """Return the shards of one of `writers` processes.

        It includes shards of writers that are gone after resuming with fewer processes.
        """
        return {path: shard for path, shard in self.read().items() if _writer(path) % writers == writer}

    def write(self, items: dict[str, Shard]) -> None:
        """Write items as one shard.

        Args:
            items: the tensors of each item, by `item_name`; the first name becomes the name of the file.
        """
        tensors = list(items.values())
        shard = {name: torch.stack([item[name] for item in tensors]) for name in tensors[0]}
        path = self.path / f"{next(iter(items))}.safetensors"
        save_tensors(path, shard)
        self._update(path)

    def filter(self, shards: dict[Path, Shard], condition: Callable[[Shard], Tensor]) -> None:
        """Remove the items of `shards` for which `condition` is false. It is safe to repeat this after a kill."""
        for path, shard in list(shards.items()):
            keep = condition(shard)
            if not keep.any():
                path.unlink()
                if self._cache is not None:
                    self._cache.pop(path, None)
            elif not keep.all():
                save_tensors(path, {name: value[keep].contiguous() for name, value in shard.items()})
                self._update(path)

    def items(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return the items at `indices` [N]: outputs [N, B, ...] as they are stored, and targets [N, B, ...]."""
        shards = list(self.read().values())
        starts = np.cumsum([0] + [len(shard["keys"]) for shard in shards])
        numbers = np.searchsorted(starts, indices.numpy(), side="right") - 1  # the shard of each item
        outputs = torch.empty(len(indices), *shards[0]["outputs"].shape[1:], dtype=shards[0]["outputs"].dtype)
        targets = torch.empty(len(indices), *shards[0]["targets"].shape[1:], dtype=shards[0]["targets"].dtype)
        for number in np.unique(numbers):  # a loop over shards, not items
            rows = torch.from_numpy(numbers == number)
            offsets = indices[rows] - int(starts[number])
            outputs[rows] = shards[number]["outputs"][offsets]
            targets[rows] = shards[number]["targets"][offsets]
        return outputs, targets

    def verify(self) -> None:
        """Compare every shard with the checksum stored in it; reads all shards completely.

        Raises:
            RelossError: a shard is damaged; the message names it.
        """
        for path, shard in self.read().items():
            if not is_intact(shard, self._metadata[path]):
                raise RelossError(f"bank shard {path} is damaged: its checksum does not match; {_remedy(path)}")

    def contents(self) -> list[str]:
        """Return hashes of all outputs and targets, whatever shards they lie in; reads all shards completely."""
        shards = self.read().values()
        return [content_hash(name, (shard[name] for shard in shards)) for name in ("outputs", "targets")]


def count(shards: dict[Path, Shard]) -> int:
    """Return the number of items in the shards."""
    return sum(len(shard["keys"]) for shard in shards.values())


def concatenate(shards: dict[Path, Shard], name: str) -> Tensor:
    """Return one tensor of all items, such as `steps`; empty if there are no shards."""
    return torch.cat([shard[name] for shard in shards.values()]) if shards else torch.zeros(0, dtype=torch.long)


def item_name(step: int, number: int, writer: int) -> str:
    """Return the name of item `number` of a training step; names sort by step, number and writer."""
    return f"{step:09d}-{number:06d}-{writer:04d}"


def _remedy(shard: Path) -> str:
    return f"restore it from a copy, or remove {shard.parents[1]} to record again"


def _list_shards(folder: Path) -> list[Path]:
    """Return the paths of the shards in a folder; an empty list before the first shard is written.

    Raises:
        RelossError: the folder cannot be read.
    """
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RelossError(f"the bank's folder {folder} cannot be read ({error.strerror}); make it readable") from error
    return [folder / name for name in names if SHARD_NAME.fullmatch(name)]


def _writer(shard: Path) -> int:
    """Return the number of the process that wrote a shard."""
    return int(shard.stem.rpartition("-")[2])


def _order(shard: Path) -> tuple[int, str]:
    return _writer(shard), shard.name


def _map_shard(path: Path) -> tuple[Shard, dict[str, str] | None]:
    """Return the memory-mapped tensors of a shard, and the metadata of its file.

    safetensors opens the file twice. If the recorder replaces the file in between, the shard is mapped again.

    Raises:
        FileNotFoundError: the shard is gone.
        RelossError: the shard cannot be read.
    """
    while True:
        version = _version(path)
        try:
            with safe_open(path, framework="pt") as opened:
                shard = {name: opened.get_tensor(name) for name in TENSORS}
                metadata = opened.metadata()
        except (OSError, SafetensorError, RuntimeError) as error:
            if _version(path) == version:
                raise RelossError(f"bank shard {path} cannot be read ({error}); {_remedy(path)}") from error
        else:
            if _version(path) == version:
                return shard, metadata


def _version(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def _check_layout(shards: dict[Path, Shard]) -> None:
    """Raise RelossError unless every shard holds n items, all of the same types and shapes."""
    expected: Sequence[object] = ()
    for path, shard in shards.items():
        layout = [(name, value.dtype, value.shape[1:]) for name, value in shard.items()]
        expected = expected or layout
        if layout != expected or len({value.shape[:1] for value in shard.values()}) > 1:
            raise RelossError(f"bank shard {path} does not match the other shards; {_remedy(path)}")
        is_stored = shard["outputs"].dtype in (torch.float16, torch.float32)
        types = is_stored, shard["steps"].dtype, shard["keys"].dtype
        axes = shard["outputs"].dim() > 1, shard["targets"].dim() > 1, shard["steps"].dim(), shard["keys"].dim()
        if types != (True, torch.int64, torch.float64) or axes != (True, True, 1, 1):
            raise RelossError(f"bank shard {path} is damaged: it holds other tensors than items; {_remedy(path)}")
