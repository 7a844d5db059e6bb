"""The prediction bank: outputs and targets recorded while a model trains, on disk, in a bounded number of bytes.

The unit is the item: `item_size` consecutive examples of one training step (or of neighbouring ones). Items are
written in shards, safetensors files that are whole or absent, never changed in place, and read through memory maps;
so a bank can be read while it is written, and a kill loses at most the shard being filled.

The byte budget is kept by a reservoir that needs no replacing: item number i carries a key drawn uniformly from
(seed, i), and only items with key < 2^-level stay. When the budget is full the level goes up by one and the shards are
rewritten without the items that fall out: what remains is a uniform sample of everything recorded, between half and
all of the budget, and the same one after a kill and a resume.
"""

from __future__ import annotations

import json
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from reloss.errors import RelossError
from reloss.files import atomic, read_json, remove_stale, short_hash, write_json

SHARD_BYTES = 32 << 20
FLOAT16_MAX = float(np.finfo(np.float16).max)


class PredictionBank:
    """Recorded (outputs, targets), as items. Make one with `create`, or read one with `open`.

    Attributes:
        path: the folder, which holds `bank.json` and `shards/` (and `metrics/`, the values that fits kept).
        meta: item_size, seed, max_bytes, level, complete, and `origin`, what the recorder said of itself.
        position: the number of items offered so far, kept or not, since the start of the recording.
    """

    def __init__(self, path: Path, meta: dict[str, Any]) -> None:
        self.path = path
        self.meta = meta
        self.position = 0
        self._partial: list[tuple[Tensor, Tensor, int]] = []
        self._pending: list[dict[str, Tensor]] = []
        self._shards: list[dict[str, Tensor]] | None = None

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        item_size: int = 128,
        max_bytes: int = 1 << 30,
        seed: int = 0,
        origin: dict[str, Any] | None = None,
    ) -> PredictionBank:
        """Make an empty bank in the folder `path`, which must not hold one.

        Args:
            path: the folder.
            item_size: examples in an item.
            max_bytes: what the recorded items may take on disk (at least two items).
            seed: of the reservoir.
            origin: what is recorded, as JSON: kept in `bank.json` for provenance.

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
        write_json(path / "bank.json", bank.meta)
        return bank

    @classmethod
    def open(cls, path: str | Path) -> PredictionBank:
        """Open the bank in the folder `path`, to read it or to go on recording after `resume`.

        Raises:
            RelossError: there is no bank, or it is damaged; the message names the file.
        """
        path = Path(path)
        if not (path / "bank.json").exists():
            raise RelossError(f"no prediction bank at {path}: record one with `reloss run EXPERIMENT --stage baseline`")
        return cls(path, read_json(path / "bank.json"))

    # Recording

    def append(self, outputs: Tensor, targets: Tensor, step: int) -> None:
        """Record one batch of step `step`: outputs [b, ...], targets [b, ...].

        Outputs are kept in float16 (clamped to its range), as are targets of a floating type.

        Raises:
            ValueError: the batch sizes differ.
            RelossError: outputs hold a NaN.
        """
        if len(outputs) != len(targets):
            raise ValueError(f"{len(outputs)} outputs, but {len(targets)} targets")
        if outputs.isnan().any():
            raise RelossError(
                f"the outputs of step {step} hold NaN: training diverged; what was recorded before is kept. Try a "
                "smaller train.lr"
            )
        self._partial.append((compact(outputs), compact(targets), step))
        size = self.meta["item_size"]
        while sum(len(part[1]) for part in self._partial) >= size:
            outputs = torch.cat([part[0] for part in self._partial])
            targets = torch.cat([part[1] for part in self._partial])
            self._offer(outputs[:size], targets[:size], step)
            self._partial = [(outputs[size:], targets[size:], step)]

    def flush(self) -> None:
        """Write what was recorded to disk; the rest of an item that is not full is dropped."""
        self._partial = []
        self._write_pending()

    def finish(self) -> None:
        """Flush, and mark the recording as complete."""
        self.flush()
        self._write_meta(complete=True)

    def resume(self, position: int) -> None:
        """Go on recording after the first `position` items, a position seen after a flush; later shards are removed."""
        self._partial, self._pending = [], []
        for path in self._shard_paths():
            if int(path.stem) >= position:
                path.unlink()
        remove_stale(self.path)
        self.position = position
        self._shards = None
        self._write_meta(complete=False)
        self._thin()

    def _offer(self, outputs: Tensor, targets: Tensor, step: int) -> None:
        index = self.position
        self.position += 1
        if self._key(index) >= 0.5 ** self.meta["level"]:
            return
        item = {"outputs": outputs, "targets": targets, "steps": torch.tensor(step), "indices": torch.tensor(index)}
        self._pending.append(item)
        item_bytes = sum(value.nbytes for value in item.values())
        full = (len(self) + len(self._pending)) * item_bytes > self.meta["max_bytes"]
        if full or len(self._pending) * item_bytes >= SHARD_BYTES:
            self._write_pending()
        if full:
            self._write_meta(level=self.meta["level"] + 1)
            self._thin()

    def _write_pending(self) -> None:
        if self._pending:
            shard = {name: torch.stack([item[name] for item in self._pending]) for name in self._pending[0]}
            _write_shard(self.path / "shards" / f"{int(shard['indices'][0]):012d}.safetensors", shard)
            self._pending = []
            self._shards = None

    def _thin(self) -> None:
        """Remove the items that fall out at the present level; harmless to repeat, so safe against a kill."""
        limit = 0.5 ** self.meta["level"]
        for path, shard in zip(self._shard_paths(), self._open_shards(), strict=True):
            keep = torch.tensor([self._key(int(index)) < limit for index in shard["indices"]])
            if not keep.any():
                path.unlink()
            elif not keep.all():
                _write_shard(path, {name: value[keep].contiguous() for name, value in shard.items()})
        self._shards = None

    def _key(self, index: int) -> float:
        return float(np.random.Generator(np.random.Philox(key=self.meta["seed"], counter=index)).random())

    def _write_meta(self, **changes: Any) -> None:
        self.meta.update(changes)
        write_json(self.path / "bank.json", self.meta)

    # Reading

    def __len__(self) -> int:
        """Return the number of items on disk."""
        return sum(len(shard["indices"]) for shard in self._open_shards())

    def items(self, indices: Tensor, device: str | torch.device = "cpu") -> tuple[Tensor, Tensor]:
        """Return the items at `indices` [N]: outputs [N, B, ...] in float32 and targets [N, B, ...]."""
        shards = self._open_shards()
        starts = np.cumsum([0] + [len(shard["indices"]) for shard in shards])
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
        shards = self._open_shards()
        if not shards:
            raise RelossError(f"the bank {self.path} is empty")
        return tuple(shards[0]["outputs"].shape[2:])

    def verify(self) -> None:
        """Compare every shard with the checksum that was written with it; reads the whole bank.

        Raises:
            RelossError: a shard is damaged; the message names it.
        """
        for path, shard in zip(self._shard_paths(), self._open_shards(), strict=True):
            with safe_open(path, framework="pt") as opened:
                written = (opened.metadata() or {}).get("crc32")
            if written not in (None, _checksum(shard)):
                raise RelossError(
                    f"bank shard {path} is damaged: its checksum is another; remove it to go on with the others, or "
                    f"remove {self.path} to record anew"
                )

    def steps(self) -> Tensor:
        """Return the training step at which each item was recorded, [len(bank)]."""
        shards = self._open_shards()
        return torch.cat([shard["steps"] for shard in shards]) if shards else torch.zeros(0, dtype=torch.long)

    def fingerprint(self) -> str:
        """Return a name for what is recorded: origin, reservoir and the items that stayed."""
        indices = [shard["indices"] for shard in self._open_shards()]
        held = torch.cat(indices).numpy().tobytes().hex() if indices else ""
        described = {name: value for name, value in self.meta.items() if name != "complete"}
        return short_hash([json.dumps(described, sort_keys=True), held])

    def _shard_paths(self) -> list[Path]:
        return sorted(path for path in (self.path / "shards").glob("*.safetensors") if not path.name.startswith("."))

    def _open_shards(self) -> list[dict[str, Tensor]]:
        if self._shards is None:
            self._shards = []
            for path in self._shard_paths():
                with suppress(FileNotFoundError):  # the recorder may have thinned it out since it was listed
                    self._shards.append(_map_shard(path))
        return self._shards


def compact(values: Tensor) -> Tensor:
    """Return a copy on the CPU to keep: in float16, clamped to its range, if of a floating type."""
    values = values.detach().cpu()
    return values.clamp(-FLOAT16_MAX, FLOAT16_MAX).half() if values.is_floating_point() else values.clone()


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
                tensors = {name: shard.get_tensor(name) for name in ("outputs", "targets", "steps", "indices")}
        except (OSError, SafetensorError, RuntimeError) as error:
            if _version(path) == version:
                raise RelossError(
                    f"bank shard {path} cannot be read ({error}); remove it to go on with the others"
                ) from error
        else:
            if _version(path) == version:
                return tensors


def _version(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns
