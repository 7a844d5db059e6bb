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
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from reloss.learning.shards import Shard, ShardFolder, concatenate, count, item_name
from reloss.metrics.shapes import ShapeError
from reloss.runtime.errors import RelossError
from reloss.runtime.files import damage, read_json, read_object, short_hash, write_json

if TYPE_CHECKING:
    from reloss.surrogates import SurrogateLoss

MAX_STEP = 10**9 - 1  # names of shards sort by step up to this one
MAX_LEVEL = 64
META = {"item_size": int, "max_bytes": int, "seed": int, "level": int, "complete": bool, "origin": dict}
SHARD_BYTES = 32 << 20

Layout = tuple[torch.Size, torch.Size, torch.dtype]
"""Shapes of one example's outputs and targets, and the type in which targets are stored."""


class PredictionBank:
    """Recorded outputs and targets, as items. Use `create` for a new bank and `open` for an existing one.

    An item is `item_size` consecutive examples of one training step, or of neighbouring steps.

    Attributes:
        path: the folder with `bank.json` and `shards/`, and `metrics/`, the cached values of slow metrics.
        meta: the content of `bank.json`: item_size, seed, max_bytes, level, complete; hashes of the `contents` once the
            bank is merged; the number of `items` once it is complete; and `origin`, the recorder's description of
            itself.
    """

    def __init__(self, path: Path, meta: dict[str, Any], writer: int = 0, writers: int = 1) -> None:
        self.path = path
        self.meta = meta
        self._writer, self._writers = writer, writers
        self._level = meta["level"]
        self._last = (-1, 0)  # the step of the last item, and its number within the step
        self._layout: Layout | None = None  # of one example
        self._own_items: int | None = None  # number of this writer's items on disk; None if it is to be counted
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
        full_precision: bool = False,
    ) -> PredictionBank:
        """Create an empty bank in the folder `path`.

        Args:
            path: the folder, which must not hold a bank.
            item_size: the number of examples in an item.
            max_bytes: the maximum size of the recorded items on disk; at least two items should fit.
            seed: the seed of the reservoir.
            origin: a JSON description of what is recorded, stored in `bank.json`.
            surrogate: the surrogate to be fitted, if known; `append` then refuses batches that it cannot learn from.
            full_precision: whether numbers are stored in float32, for example for regression; float16 is enough for
                logits.

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
        meta |= {"full_precision": True} if full_precision else {}
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
        low = [name for name in ("item_size", "max_bytes") if meta[name] < 1]
        if low or not 0 <= meta["level"] <= MAX_LEVEL:
            raise damage(path / "bank.json", f"wrong: {', '.join(low or ['level'])}")
        bank = cls(path, meta, writer, writers)
        bank._check_count()
        if writer and bank._level_file(writer).exists():
            bank._level = _read_level(bank._level_file(writer))
        return bank

    # Recording

    def append(self, outputs: Tensor, targets: Tensor, step: int) -> None:
        """Record one batch of training step `step`.

        Outputs, and targets of a floating type, are stored in float16, clamped to its range; see `create`.

        Args:
            outputs: [b, ...], of a floating type.
            targets: [b, ...].
            step: at least 0, and not smaller than the step of the previous batch.

        Raises:
            ValueError: outputs or targets are no tensors, their batch sizes differ, the outputs are whole numbers, an
                example's shape or type has changed, the step is smaller than the previous one, or the bank is complete.
            RelossError: the outputs hold NaN, or the surrogate given to `create` cannot learn from the batch.
        """
        self._check_batch(outputs, targets, step)
        dtype = self._float_dtype()
        self._partial.append((compact(outputs, dtype), compact(targets, dtype)))
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
        """Turn the items of all writers into one uniform sample, and store hashes of their contents.

        Writer 0 calls this after all writers have flushed.
        """
        self.flush()
        self._shards.refresh()
        levels = {path: _read_level(path) for path in self.path.glob("level*.json")}
        self._level = max([self._level, *levels.values()])
        self._write_meta(level=self._level)
        self._shards.filter(self._shards.read(), lambda shard: shard["keys"] < 0.5**self._level)
        self._own_items = None
        self._write_meta(contents=self._shards.contents())
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
        self.meta |= {"complete": False}
        self.meta.pop("contents", None)
        if self._writer == 0:
            self._write_meta()
        self._filter_own(lambda shard: (shard["steps"] < step) & (shard["keys"] < 0.5**self._level))

    def _check_batch(self, outputs: Tensor, targets: Tensor, step: int) -> None:
        """Raise the errors of `append`."""
        if self.meta["complete"]:
            raise ValueError(f"the bank {self.path} is complete; call resume to record more")
        self._layout = _layout_of(outputs, targets, self._float_dtype(), self._layout or self._recorded_layout())
        if not (isinstance(step, Integral) and 0 <= step <= MAX_STEP):
            raise ValueError(f"step must be a whole number from 0 to {MAX_STEP}, not {step}")
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
                cause = error.of_one_batch() if isinstance(error, ShapeError) else error
                raise RelossError(
                    f"{type(self._surrogate).__name__} cannot learn from the batch of step {step}, outputs "
                    f"{list(outputs.shape)} and targets {list(targets.shape)}: {cause}"
                ) from error

    def _float_dtype(self) -> torch.dtype:
        return torch.float32 if self.meta.get("full_precision") else torch.float16

    def _recorded_layout(self) -> Layout | None:
        """Return the layout of the items on disk, or None if there are none."""
        for shard in self._shards.read().values():
            return shard["outputs"].shape[2:], shard["targets"].shape[2:], shard["targets"].dtype
        return None

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
        if self._own_items is None:
            self._own_items = count(self._shards.of_writer(self._writer, self._writers))
        items = self._own_items + len(self._pending)
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
            if self._own_items is not None:
                self._own_items += len(self._pending)
            self._pending = {}
            self.meta.pop("contents", None)

    def _filter_own(self, condition: Callable[[Shard], Tensor]) -> None:
        """Remove this writer's items for which `condition` is false."""
        self._shards.filter(self._shards.of_writer(self._writer, self._writers), condition)
        self._own_items = None

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
        """Return a hash of what is recorded: the origin, the reservoir's settings, and the items.

        Of items in a bank of an earlier version, and in one that is not merged, only the keys count.
        """
        keys = concatenate(self._shards.read(), "keys").numpy().tobytes().hex()
        settings = {name: value for name, value in self.meta.items() if name not in ("complete", "items")}
        return short_hash([json.dumps(settings, sort_keys=True), keys])

    def verify(self) -> None:
        """Compare every shard with its stored checksum, and all items with the hashes in `bank.json`; reads all of it.

        Raises:
            RelossError: a shard is damaged, and the message names it; items are missing, or are others than recorded.
        """
        self._check_count()
        self._shards.verify()
        recorded = self.meta.get("contents") if self.meta["complete"] else None  # absent in banks of earlier versions
        if recorded is not None and recorded != self._shards.contents():
            raise RelossError(
                f"the bank {self.path} holds other items than those that were recorded; restore it from a copy, or "
                "remove it to record again"
            )

    def _check_count(self) -> None:
        """Raise RelossError if items are missing: a fit on the rest would give another surrogate."""
        expected = self.meta.get("items")  # absent in banks of earlier versions
        if self.meta["complete"] and expected is not None and len(self) != expected:
            shards = self._shards.path
            raise RelossError(
                f"the bank {self.path} has {len(self)} of its {expected} items: shards are missing in {shards}; "
                f"restore them from a copy, or remove {self.path} to record again"
            )


def _layout_of(outputs: Tensor, targets: Tensor, float_dtype: torch.dtype, expected: Layout | None) -> Layout:
    """Return the layout of a batch whose floating types are stored as `float_dtype`.

    Raises:
        ValueError: it is not a batch of outputs and targets, or its layout is not the `expected` one.
    """
    if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)):
        raise ValueError(f"outputs and targets must be tensors, not {type(outputs)} and {type(targets)}")
    if not outputs.dim() or not targets.dim():
        raise ValueError("outputs and targets must be batches, [b, ...], not single numbers")
    if len(outputs) != len(targets):
        raise ValueError(f"{len(outputs)} outputs, but {len(targets)} targets")
    if not outputs.is_floating_point():
        raise ValueError(f"outputs must be of a floating type, not {outputs.dtype}: record scores, not decisions")
    dtype = float_dtype if targets.is_floating_point() else targets.dtype
    layout = outputs.shape[1:], targets.shape[1:], dtype
    expected = expected or layout
    for name, shape, earlier in zip(("outputs", "targets"), layout[:2], expected[:2], strict=True):
        if shape != earlier:
            raise ValueError(
                f"an example's {name} have shape {list(shape)}, but had {list(earlier)} before; pad all to one shape"
            )
    if dtype != expected[2]:
        raise ValueError(f"the targets are stored as {dtype}, but were stored as {expected[2]} before")
    return layout


def _read_level(path: Path) -> int:
    """Return the level that a writer left.

    Raises:
        RelossError: the file is damaged.
    """
    level = read_json(path)
    if not (isinstance(level, int) and 0 <= level <= MAX_LEVEL):
        raise damage(path, "not a level")
    return level


def compact(values: Tensor, dtype: torch.dtype = torch.float16) -> Tensor:
    """Return a copy on the CPU for storage; floating types become `dtype`, clamped to its range."""
    values = values.detach().cpu()
    if not values.is_floating_point():
        return values.clone()
    largest = torch.finfo(dtype).max
    return values.float().clamp(-largest, largest).to(dtype, copy=True)


def draw_key(seed: int, step: int, number: int, writer: int) -> float:
    """Return the reservoir's key of an item, uniform on [0, 1), determined by the arguments alone."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[number, step, writer, 0])).random()
