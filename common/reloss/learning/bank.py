"""The prediction bank: outputs and targets recorded while a model trains, on disk, within a budget of bytes.

A bank must show predictions of all qualities, from the first steps to the last, in bounded space. Keeping the first or
the last items would not do, so the bank is a reservoir: a uniform sample of everything that was recorded. Every item
gets a random key on [0, 1), and only items with key < 2^-level stay. When the budget is full, the level rises by one
and about half of the items are removed; no item is ever replaced, and the bank stays between half full and full. A key
depends only on the seed, the step, the number within the step and the writer, so a recording that is killed and resumed
ends with the same items.

Several processes can record into one bank without communicating: each one writes its own shards within its share of the
budget. At the end `merge` brings all of them to the highest level that any of them reached.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from reloss.learning.shards import Shard, ShardFolder, concatenate, count, item_name
from reloss.runtime.errors import RelossError
from reloss.runtime.files import read_json, read_object, short_hash, write_json

if TYPE_CHECKING:
    from reloss.surrogates import SurrogateLoss

META = {"item_size": int, "max_bytes": int, "seed": int, "level": int, "complete": bool, "origin": dict}
SHARD_BYTES = 32 << 20
FLOAT16_MAX = float(np.finfo(np.float16).max)


class PredictionBank:
    """Recorded outputs and targets, as items. Use `create` for a new bank and `open` for an existing one.

    An item is `item_size` consecutive examples of one training step, or of neighbouring steps.

    Attributes:
        path: the folder with `bank.json` and `shards/`, and `metrics/`, the cached values of slow metrics.
        meta: the content of `bank.json`: item_size, seed, max_bytes, level, complete; `items`, their number once the
            bank is complete; and `origin`, the recorder's description of itself.
    """

    def __init__(self, path: Path, meta: dict[str, Any], writer: int = 0, writers: int = 1) -> None:
        self.path = path
        self.meta = meta
        self._writer, self._writers = writer, writers
        self._level = meta["level"]
        self._last = (-1, 0)  # the step of the last item, and its number within the step
        self._output_shape: torch.Size | None = None  # of one example
        self._surrogate: SurrogateLoss | None = None  # checks what is recorded
        self._partial: list[tuple[Tensor, Tensor]] = []  # examples that do not fill an item yet
        self._pending: dict[str, Shard] = {}  # items that do not fill a shard yet
        self._shards = ShardFolder(path / "shards")

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
        """Create an empty bank in the folder `path`.

        Args:
            path: the folder, which must not hold a bank.
            item_size: the number of examples in an item.
            max_bytes: the maximum size of the recorded items on disk; at least two items should fit.
            seed: the seed of the reservoir.
            origin: a JSON description of what is recorded, stored in `bank.json`.
            surrogate: the surrogate to be fitted, if known; `append` then refuses batches that it cannot learn from.

        Raises:
            RelossError: the folder already holds a bank, or cannot be written.
            ValueError: item_size or max_bytes is not positive.
        """
        path = Path(path)
        if item_size < 1 or max_bytes < 1:
            raise ValueError(f"item_size and max_bytes must be positive, not {item_size} and {max_bytes}")
        if (path / "bank.json").exists():
            raise RelossError(f"{path} holds a prediction bank already; open it, or remove the folder to record again")
        meta = {"item_size": item_size, "max_bytes": max_bytes, "seed": seed, "level": 0, "complete": False}
        bank = cls(path, {**meta, "origin": origin or {}})
        bank._surrogate = surrogate
        write_json(path / "bank.json", bank.meta)
        return bank

    @classmethod
    def open(cls, path: str | Path, *, writer: int = 0, writers: int = 1) -> PredictionBank:
        """Open the bank in the folder `path`, to read it or, after `resume`, to continue recording.

        Args:
            path: the folder.
            writer: the number of this process among the recording processes.
            writers: the number of recording processes; each has an equal share of `max_bytes`.

        Raises:
            RelossError: there is no bank, or it is damaged or incomplete; the message names the file.
            ValueError: `writer` is not between 0 and `writers` - 1.
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
        """Record one batch of training step `step`.

        Outputs, and targets of a floating type, are stored in float16, clamped to its range.

        Args:
            outputs: [b, ...].
            targets: [b, ...].
            step: not smaller than the step of the previous batch.

        Raises:
            ValueError: outputs or targets are no tensors, their batch sizes differ, the shape of the outputs has
                changed, or the step is smaller than the previous one.
            RelossError: the outputs hold NaN, or the surrogate given to `create` cannot learn from the batch.
        """
        self._check_batch(outputs, targets, step)
        self._partial.append((compact(outputs), compact(targets)))
        size = self.meta["item_size"]
        while sum(len(targets) for _, targets in self._partial) >= size:
            outputs, targets = (torch.cat(parts) for parts in zip(*self._partial, strict=True))
            self._offer(outputs[:size], targets[:size], step)
            self._partial = [(outputs[size:], targets[size:])]

    def flush(self) -> None:
        """Write the recorded items to disk; examples that do not fill an item are dropped."""
        self._partial = []
        self._write_pending()

    def merge(self) -> None:
        """Turn the items of all writers into one uniform sample. Writer 0 calls this after all writers have flushed."""
        self.flush()
        self._shards.refresh()
        levels = {path: read_json(path) for path in self.path.glob("level*.json")}
        self._level = max([self._level, *levels.values()])
        self._write_meta(level=self._level)
        self._shards.filter(self._shards.read(), lambda shard: shard["keys"] < 0.5**self._level)
        for path in levels:
            path.unlink()

    def finish(self) -> None:
        """Merge, and mark the bank as complete, with the number of its items."""
        self.merge()
        self._write_meta(complete=True, items=len(self))

    def resume(self, step: int) -> None:
        """Continue recording at `step`; this writer's items of that and later steps are removed."""
        self._partial, self._pending = [], {}
        self._shards.refresh()
        self._last = (step - 1, 0)
        if self._writer == 0:
            self._write_meta(complete=False)
        self._filter_own(lambda shard: (shard["steps"] < step) & (shard["keys"] < 0.5**self._level))

    def _check_batch(self, outputs: Tensor, targets: Tensor, step: int) -> None:
        """Raise the errors of `append`."""
        if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)):
            raise ValueError(f"outputs and targets must be tensors, not {type(outputs)} and {type(targets)}")
        if len(outputs) != len(targets):
            raise ValueError(f"{len(outputs)} outputs, but {len(targets)} targets")
        shape, expected = outputs.shape[1:], self._output_shape
        if expected is not None and shape != expected:
            raise ValueError(f"an example's outputs have shape {list(shape)}, but had {list(expected)} before")
        self._output_shape = shape
        if step < self._last[0]:
            raise ValueError(f"step {step} comes after step {self._last[0]}; call resume to return to an earlier step")
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

    def _offer(self, outputs: Tensor, targets: Tensor, step: int) -> None:
        """Add an item if its key is below 2^-level; raise the level when this writer's share of the budget is full."""
        number = self._last[1] + 1 if step == self._last[0] else 0
        self._last = (step, number)
        key = draw_key(self.meta["seed"], step, number, self._writer)
        if key >= 0.5**self._level:
            return
        position = {"steps": torch.tensor(step), "keys": torch.tensor(key, dtype=torch.float64)}
        item = {"outputs": outputs, "targets": targets, **position}
        self._pending[item_name(step, number, self._writer)] = item
        item_bytes = sum(value.nbytes for value in item.values())
        items = count(self._shards.of_writer(self._writer, self._writers)) + len(self._pending)
        full = items * item_bytes > self.meta["max_bytes"] // self._writers
        if full or len(self._pending) * item_bytes >= SHARD_BYTES:
            self._write_pending()
        if full:
            self._raise_level()

    def _raise_level(self) -> None:
        self._level += 1
        if self._writer == 0:
            self._write_meta(level=self._level)
        else:
            write_json(self._level_file(self._writer), self._level)
        self._filter_own(lambda shard: shard["keys"] < 0.5**self._level)

    def _write_pending(self) -> None:
        if self._pending:
            self._shards.write(self._pending)
            self._pending = {}

    def _filter_own(self, condition: Callable[[Shard], Tensor]) -> None:
        """Remove this writer's items for which `condition` is false."""
        self._shards.filter(self._shards.of_writer(self._writer, self._writers), condition)

    def _level_file(self, writer: int) -> Path:
        return self.path / f"level{writer}.json"

    def _write_meta(self, **changes: Any) -> None:
        self.meta.update(changes)
        write_json(self.path / "bank.json", self.meta)

    # Reading

    def __len__(self) -> int:
        """Return the number of items on disk."""
        return count(self._shards.read())

    def items(self, indices: Tensor, device: str | torch.device = "cpu") -> tuple[Tensor, Tensor]:
        """Return the items at `indices` [N]: outputs [N, B, ...] in float32 and targets [N, B, ...]."""
        outputs, targets = self._shards.items(indices)
        return outputs.to(device).float(), targets.to(device)

    def steps(self) -> Tensor:
        """Return the training step of each item, [len(bank)]."""
        return concatenate(self._shards.read(), "steps")

    def output_shape(self) -> tuple[int, ...]:
        """Return the shape of one example's outputs.

        Raises:
            RelossError: the bank is empty.
        """
        shards = list(self._shards.read().values())
        if not shards:
            raise RelossError(f"the bank {self.path} is empty; a recording ends with bank.finish()")
        return tuple(shards[0]["outputs"].shape[2:])

    def fingerprint(self) -> str:
        """Return a hash of what is recorded: the origin, the reservoir's settings and the keys of the items."""
        keys = concatenate(self._shards.read(), "keys").numpy().tobytes().hex()
        settings = {name: value for name, value in self.meta.items() if name not in ("complete", "items")}
        return short_hash([json.dumps(settings, sort_keys=True), keys])

    def verify(self) -> None:
        """Compare every shard with its stored checksum; reads the whole bank.

        Raises:
            RelossError: a shard is damaged, and the message names it, or items are missing.
        """
        self._check_count()
        self._shards.verify()

    def _check_count(self) -> None:
        """Raise RelossError if items are missing: a fit on the rest would give another surrogate."""
        expected = self.meta.get("items")  # absent in banks of earlier versions
        if self.meta["complete"] and expected is not None and len(self) != expected:
            shards = self._shards.path
            raise RelossError(
                f"the bank {self.path} has {len(self)} of its {expected} items: shards are missing in {shards}; "
                f"restore them from a copy, or remove {self.path} to record again"
            )


def compact(values: Tensor) -> Tensor:
    """Return a copy on the CPU for storage; floating types become float16, clamped to its range."""
    values = values.detach().cpu()
    return values.float().clamp(-FLOAT16_MAX, FLOAT16_MAX).half() if values.is_floating_point() else values.clone()


def draw_key(seed: int, step: int, number: int, writer: int) -> float:
    """Return the reservoir's key of an item, uniform on [0, 1), determined by the arguments alone."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[number, step, writer, 0])).random()
