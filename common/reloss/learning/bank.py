"""The prediction bank: outputs and targets recorded while a model trains, on disk, in a bounded number of bytes.

The unit is the item: `item_size` consecutive examples of one training step (or of neighbouring ones). Items are
written in shards, safetensors files that are whole or absent, never changed in place, and read through memory maps;
so a bank can be read while it is written, and a kill loses at most the shard being filled.

The byte budget is kept by a reservoir that needs no replacing: an item carries a key drawn uniformly from the seed, its
step, its number within the step and its writer, and only items with key < 2^-level stay. When the budget is full the
level goes up by one and the shards are rewritten without the items that fall out: what remains is a uniform sample of
everything recorded, between half and all of the budget, and the same one after a kill and a resume.

Several processes of one run can record into one bank without a word between them: each writes shards of its own within
its share of the budget, and in the end `merge` brings all of them to the highest level that one of them came to.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from reloss.runtime.errors import RelossError
from reloss.runtime.files import atomic, read_json, read_object, short_hash, write_json

if TYPE_CHECKING:
    from reloss.surrogates import SurrogateLoss

META = {"item_size": int, "max_bytes": int, "seed": int, "level": int, "complete": bool, "origin": dict}
SHARD_BYTES = 32 << 20
SHARD = re.compile(r"\d+-\d+-\d+\.safetensors")  # the first item's step and number, and its writer
FLOAT16_MAX = float(np.finfo(np.float16).max)


class PredictionBank:
    """Recorded (outputs, targets), as items. Make one with `create`, or read one with `open`.

    Attributes:
        path: the folder, which holds `bank.json` and `shards/` (and `metrics/`, the values that fits kept).
        meta: item_size, seed, max_bytes, level, complete, `items`, their number once it is, and `origin`, what the
            recorder said of itself.
    """

    def __init__(self, path: Path, meta: dict[str, Any], writer: int = 0, writers: int = 1) -> None:
        self.path = path
        self.meta = meta
        self._writer, self._writers = writer, writers
        self._level = meta["level"]
        self._last = (-1, 0)  # step of the item that was offered last, and its number within the step
        self._shape: torch.Size | None = None  # of an example's outputs
        self._surrogate: SurrogateLoss | None = None  # that is to learn from what is recorded
        self._partial: list[tuple[Tensor, Tensor]] = []
        self._pending: dict[str, dict[str, Tensor]] = {}
        self._shards: dict[Path, dict[str, Tensor]] | None = None

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        item_size: int = 128,
        max_bytes: int = 1 << 30,
        seed: int = 0,
        origin: dict[str, Any] | None = None,
        surrogate: SurrogateLoss | None = None,
    ) -> PredictionBank:
        """Make an empty bank in the folder `path`, which must not hold one.

        Args:
            path: the folder.
            item_size: examples in an item.
            max_bytes: what the recorded items may take on disk (at least two items).
            seed: of the reservoir.
            origin: what is recorded, as JSON: kept in `bank.json` for provenance.
            surrogate: that is to be learned: `append` refuses a batch that it cannot learn from.

        Raises:
            RelossError: the folder holds a bank already, or cannot be written.
            ValueError: item_size or max_bytes is not positive.
        """
        path = Path(path)
        if item_size < 1 or max_bytes < 1:
            raise ValueError(f"item_size and max_bytes must be positive, not {item_size} and {max_bytes}")
        if (path / "bank.json").exists():
            raise RelossError(f"{path} holds a prediction bank already; open it, or remove the folder to record anew")
        meta = {"item_size": item_size, "max_bytes": max_bytes, "seed": seed, "level": 0, "complete": False}
        bank = cls(path, {**meta, "origin": origin or {}})
        bank._surrogate = surrogate
        write_json(path / "bank.json", bank.meta)
        return bank

    @classmethod
    def open(cls, path: str | Path, *, writer: int = 0, writers: int = 1) -> PredictionBank:
        """Open the bank in the folder `path`, to read it or to go on recording after `resume`.

        Args:
            path: the folder.
            writer: the number of this process among those that record.
            writers: how many record; each has its share of `max_bytes`.

        Raises:
            RelossError: there is no bank, or it is damaged or lacks items; the message names the file.
            ValueError: `writer` is not one of `writers`.
        """
        path = Path(path)
        if not 0 <= writer < writers:
            raise ValueError(f"writer must be one of 0 to {writers - 1}, not {writer}")
        meta = read_object(path / "bank.json", META)
        if not meta:
            raise RelossError(f"no prediction bank at {path}: record one with `reloss run EXPERIMENT --stage baseline`")
        bank = cls(path, meta, writer, writers)
        bank._check_count()
        if writer and bank._level_file(writer).exists():
            bank._level = read_json(bank._level_file(writer))
        return bank

    # Recording

    def append(self, outputs: Tensor, targets: Tensor, step: int) -> None:
        """Record one batch of step `step`: outputs [b, ...], targets [b, ...].

        Outputs are kept in float16 (clamped to its range), as are targets of a floating type.

        Raises:
            ValueError: these are no tensors, their batch sizes differ, the outputs' shape has changed, or the step is
                before that of the last item.
            RelossError: outputs hold a NaN, or the surrogate of `create` cannot learn from such a batch.
        """
        if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)):
            raise ValueError(f"outputs and targets must be tensors, not {type(outputs)} and {type(targets)}")
        if len(outputs) != len(targets):
            raise ValueError(f"{len(outputs)} outputs, but {len(targets)} targets")
        self._shape = self._shape or outputs.shape[1:]
        if outputs.shape[1:] != self._shape:
            raise ValueError(f"an example's outputs are {list(outputs.shape[1:])}, but were {list(self._shape)} before")
        if step < self._last[0]:
            raise ValueError(f"step {step} comes after step {self._last[0]}; to go back to a step, resume there")
        if outputs.isnan().any():
            raise RelossError(
                f"the outputs of step {step} hold NaN: training diverged; what was recorded before is kept. Try a "
                "smaller learning rate (train.lr of an experiment)"
            )
        if self._surrogate is not None and len(targets):
            try:
                self._surrogate.check(outputs.detach()[None].float(), targets[None])
            except ValueError as error:
                raise RelossError(
                    f"{type(self._surrogate).__name__} cannot learn from the batch of step {step}, outputs "
                    f"{list(outputs.shape)} and targets {list(targets.shape)}: {error}"
                ) from error
        self._partial.append((compact(outputs), compact(targets)))
        size = self.meta["item_size"]
        while sum(len(targets) for _, targets in self._partial) >= size:
            outputs, targets = (torch.cat(parts) for parts in zip(*self._partial, strict=True))
            self._offer(outputs[:size], targets[:size], step)
            self._partial = [(outputs[size:], targets[size:])]

    def flush(self) -> None:
        """Write what was recorded to disk; the rest of an item that is not full is dropped."""
        self._partial = []
        self._write_pending()

    def merge(self) -> None:
        """Make one uniform sample of what all writers recorded, once they have flushed; the first writer does this."""
        self.flush()
        self._shards = None  # others may have written since
        levels = {path: read_json(path) for path in self.path.glob("level*.json")}
        self._level = max([self._level, *levels.values()])
        self._write_meta(level=self._level)
        self._drop(self._open_shards(), lambda shard: shard["keys"] < 0.5**self._level)
        for path in levels:
            path.unlink()

    def finish(self) -> None:
        """Merge, and mark the recording as complete, with the number of its items."""
        self.merge()
        self._write_meta(complete=True, items=len(self))

    def resume(self, step: int) -> None:
        """Go on recording with `step`; what this writer recorded of it and later ones is removed."""
        self._partial, self._pending, self._shards = [], {}, None
        self._last = (step - 1, 0)
        if self._writer == 0:
            self._write_meta(complete=False)
        self._drop(self._own(), lambda shard: (shard["steps"] < step) & (shard["keys"] < 0.5**self._level))

    def _offer(self, outputs: Tensor, targets: Tensor, step: int) -> None:
        number = self._last[1] + 1 if step == self._last[0] else 0
        self._last = (step, number)
        counter = [number, step, self._writer, 0]
        key = np.random.Generator(np.random.Philox(key=self.meta["seed"], counter=counter)).random()
        if key >= 0.5**self._level:
            return
        place = {"steps": torch.tensor(step), "keys": torch.tensor(key, dtype=torch.float64)}
        item = {"outputs": outputs, "targets": targets, **place}
        self._pending[f"{step:09d}-{number:06d}-{self._writer:04d}"] = item
        item_bytes = sum(value.nbytes for value in item.values())
        kept = sum(len(shard["keys"]) for shard in self._own().values()) + len(self._pending)
        full = kept * item_bytes > self.meta["max_bytes"] // self._writers
        if full or len(self._pending) * item_bytes >= SHARD_BYTES:
            self._write_pending()
        if full:
            self._level += 1
            if self._writer == 0:
                self._write_meta(level=self._level)
            else:
                write_json(self._level_file(self._writer), self._level)
            self._drop(self._own(), lambda shard: shard["keys"] < 0.5**self._level)

    def _write_pending(self) -> None:
        if self._pending:
            items = list(self._pending.values())
            shard = {name: torch.stack([item[name] for item in items]) for name in items[0]}
            _write_shard(self.path / "shards" / f"{next(iter(self._pending))}.safetensors", shard)
            self._pending, self._shards = {}, None

    def _own(self) -> dict[Path, dict[str, Tensor]]:
        """Return this writer's shards, and those of writers that there are no longer where fewer go on."""
        return {
            path: shard for path, shard in self._open_shards().items() if _writer(path) % self._writers == self._writer
        }

    def _drop(self, shards: dict[Path, dict[str, Tensor]], stays: Callable[[dict[str, Tensor]], Tensor]) -> None:
        """Remove the items of which `stays` is not true; harmless to repeat, so safe against a kill."""
        for path, shard in shards.items():
            keep = stays(shard)
            if not keep.any():
                path.unlink()
            elif not keep.all():
                _write_shard(path, {name: value[keep].contiguous() for name, value in shard.items()})
        self._shards = None

    def _level_file(self, writer: int) -> Path:
        return self.path / f"level{writer}.json"

    def _write_meta(self, **changes: Any) -> None:
        self.meta.update(changes)
        write_json(self.path / "bank.json", self.meta)

    # Reading

    def __len__(self) -> int:
        """Return the number of items on disk."""
        return sum(len(shard["keys"]) for shard in self._open_shards().values())

    def items(self, indices: Tensor, device: str | torch.device = "cpu") -> tuple[Tensor, Tensor]:
        """Return the items at `indices` [N]: outputs [N, B, ...] in float32 and targets [N, B, ...]."""
        shards = list(self._open_shards().values())
        starts = np.cumsum([0] + [len(shard["keys"]) for shard in shards])
        owner = np.searchsorted(starts, indices.numpy(), side="right") - 1
        outputs = torch.empty(len(indices), *shards[0]["outputs"].shape[1:], dtype=torch.float16)
        targets = torch.empty(len(indices), *shards[0]["targets"].shape[1:], dtype=shards[0]["targets"].dtype)
        for number in np.unique(owner):  # over shards, of which a step touches few
            mine = torch.from_numpy(owner == number)
            inside = indices[mine] - int(starts[number])
            outputs[mine] = shards[number]["outputs"][inside]
            targets[mine] = shards[number]["targets"][inside]
        return outputs.to(device).float(), targets.to(device)

    def output_shape(self) -> tuple[int, ...]:
        """Return the shape of one example's outputs.

        Raises:
            RelossError: the bank is empty.
        """
        shards = list(self._open_shards().values())
        if not shards:
            raise RelossError(f"the bank {self.path} is empty; a recording ends with bank.finish()")
        return tuple(shards[0]["outputs"].shape[2:])

    def verify(self) -> None:
        """Compare every shard with the checksum that was written with it; reads the whole bank.

        Raises:
            RelossError: a shard is damaged, and the message names it, or items are missing.
        """
        self._check_count()
        for path, shard in self._open_shards().items():
            with safe_open(path, framework="pt") as opened:
                written = (opened.metadata() or {}).get("crc32")
            if written not in (None, _checksum(shard)):
                raise RelossError(f"bank shard {path} is damaged: its checksum is another; {_way_out(self.path)}")

    def _check_count(self) -> None:
        """Raise RelossError if items are missing, of which another surrogate than that of the rest would be learned."""
        expected = self.meta.get("items")  # banks of earlier versions do not say
        if self.meta["complete"] and expected is not None and len(self) != expected:
            shards = self.path / "shards"
            raise RelossError(
                f"the bank {self.path} has {len(self)} of its {expected} items: shards are missing in {shards}; "
                f"restore them from a copy, or remove {self.path} to record anew"
            )

    def steps(self) -> Tensor:
        """Return the training step at which each item was recorded, [len(bank)]."""
        shards = self._open_shards().values()
        return torch.cat([shard["steps"] for shard in shards]) if shards else torch.zeros(0, dtype=torch.long)

    def fingerprint(self) -> str:
        """Return a name for what is recorded: origin, reservoir and the items that stayed."""
        keys = [shard["keys"] for shard in self._open_shards().values()]
        held = torch.cat(keys).numpy().tobytes().hex() if keys else ""
        described = {name: value for name, value in self.meta.items() if name not in ("complete", "items")}
        return short_hash([json.dumps(described, sort_keys=True), held])

    def _open_shards(self) -> dict[Path, dict[str, Tensor]]:
        """Return all shards, mapped, those of each writer in the order of their steps.

        The items' order does not depend on when shards were written.
        """
        if self._shards is None:
            shards: dict[Path, dict[str, Tensor]] = {}
            for path in sorted(_list_shards(self.path / "shards"), key=lambda path: (_writer(path), path)):
                with suppress(FileNotFoundError):  # its recorder may have thinned it out since it was listed
                    shards[path] = _map_shard(path)
            _check_alike(shards)
            self._shards = shards
        return self._shards


def compact(values: Tensor) -> Tensor:
    """Return a copy on the CPU to keep: in float16, clamped to its range, if of a floating type."""
    values = values.detach().cpu()
    return values.float().clamp(-FLOAT16_MAX, FLOAT16_MAX).half() if values.is_floating_point() else values.clone()


def _way_out(bank: Path) -> str:
    return f"restore it from a copy, or remove {bank} to record anew"


def _list_shards(folder: Path) -> list[Path]:
    """Return the shards in a folder, which there is none of before the first one.

    Raises:
        RelossError: it cannot be read.
    """
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RelossError(f"the bank's folder {folder} cannot be read ({error.strerror}); make it readable") from error
    return [folder / name for name in names if SHARD.fullmatch(name)]


def _writer(shard: Path) -> int:
    """Return the number of the process that wrote a shard."""
    return int(shard.stem.rpartition("-")[2])


def _write_shard(path: Path, shard: dict[str, Tensor]) -> None:
    with atomic(path) as temporary:
        save_file(shard, temporary, metadata={"crc32": _checksum(shard)})


def _checksum(shard: dict[str, Tensor]) -> str:
    total = 0
    for name in sorted(shard):
        total = zlib.crc32(shard[name].contiguous().numpy().data, total)
    return f"{total:08x}"


def _map_shard(path: Path) -> dict[str, Tensor]:
    """Map a shard; raises FileNotFoundError where it is gone.

    safetensors opens the file twice, so it is mapped again if the recorder replaced it between the two.
    """
    while True:
        version = _version(path)
        try:
            with safe_open(path, framework="pt") as shard:
                tensors = {name: shard.get_tensor(name) for name in ("outputs", "targets", "steps", "keys")}
        except (OSError, SafetensorError, RuntimeError) as error:
            if _version(path) == version:
                raise RelossError(f"bank shard {path} cannot be read ({error}); {_way_out(path.parents[1])}") from error
        else:
            if _version(path) == version:
                return tensors


def _check_alike(shards: dict[Path, dict[str, Tensor]]) -> None:
    """Raise RelossError if a shard's items are not shaped as those of the first, or their parts differ in number."""
    expected = None
    for path, shard in shards.items():
        kind = [(name, value.dtype, value.shape[1:]) for name, value in shard.items()]
        expected = expected or kind
        if kind != expected or len({len(value) for value in shard.values()}) > 1:
            raise RelossError(f"bank shard {path} holds no items like the others'; {_way_out(path.parents[1])}")


def _version(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns
