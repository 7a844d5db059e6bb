"""A cache of metric values, for metrics that are computed item by item.

Such a metric may take seconds per item, and every fit on a bank needs its value for the same recorded items. So values
are stored in the bank's folder, keyed by a hash of the item's content, and no later fit computes them again. A file
belongs to one metric and its code. Changes outside that code, in functions the metric calls, are detected by computing
a few stored values again.
"""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor

from reloss.metrics import PerItem
from reloss.metrics.identity import identity
from reloss.runtime.errors import RelossError
from reloss.runtime.progress import say
from reloss.runtime.tensors import load_tensors, save_tensors

SAVE_SECONDS = 10.0  # a kill loses at most the values computed in so many seconds
KEY_BYTES = 16
CHECKED = 8  # stored values that are computed again before the file is trusted


class MetricCache:
    """A metric that is computed item by item, with the values it has returned.

    Args:
        metric: computes the values that are not in the cache.
        folder: the folder of the cache file; None keeps the values in memory only.
    """

    def __init__(self, metric: PerItem, folder: Path | None) -> None:
        self.metric = metric
        name = re.sub(r"[^\w.-]+", "_", metric.__name__)
        self.path = None if folder is None else folder / f"{name}-{identity(metric.function)}.safetensors"
        self.values = _read(self.path) if self.path is not None and self.path.exists() else {}
        self._checked = not self.values
        self._changed = False
        self._saved_at = time.monotonic()

    def __call__(self, outputs: Tensor, targets: Tensor, labels: Sequence[str]) -> Tensor:
        """Return the metric of each item: outputs [N, B, ...], targets [N, B, ...] -> [N], on the CPU in float64.

        Args:
            outputs: the outputs of N items.
            targets: their targets.
            labels: the names of the items in error messages.

        Raises:
            RelossError: the metric failed for an item, or returned a value that is not finite.
        """
        outputs, targets = outputs.cpu(), targets.cpu()
        keys = [_key(*item) for item in zip(outputs, targets, strict=True)]
        self._check(outputs, targets, keys, labels)
        missing = {key: number for number, key in enumerate(keys) if key not in self.values}
        numbers = list(missing.values())
        missing_labels = [labels[number] for number in numbers]
        try:
            with closing(self.metric.values(outputs[numbers], targets[numbers], missing_labels)) as values:
                for key, label, value in zip(missing, missing_labels, values, strict=True):
                    if not math.isfinite(value):
                        raise not_finite(self.metric.__name__, value, label)
                    self.values[key] = value
                    self._changed = True
                    if time.monotonic() - self._saved_at > SAVE_SECONDS:
                        self._save()
        finally:
            self._save()
        return torch.tensor([self.values[key] for key in keys], dtype=torch.float64)

    def _check(self, outputs: Tensor, targets: Tensor, keys: Sequence[bytes], labels: Sequence[str]) -> None:
        """Compute a few of the file's values again, once; drop all values if one has changed.

        The few are spread over the items, because a change may affect only predictions of some quality.
        """
        stored = [number for number, key in enumerate(keys) if key in self.values]
        if self._checked or not stored:
            return
        sample = sorted({stored[place * (len(stored) - 1) // (CHECKED - 1)] for place in range(CHECKED)})
        current = list(self.metric.values(outputs[sample], targets[sample], [labels[number] for number in sample]))
        earlier = [self.values[keys[number]] for number in sample]
        if not all(math.isclose(*pair, rel_tol=1e-5, abs_tol=1e-6) for pair in zip(earlier, current, strict=True)):
            say(f"metric {self.metric.__name__} has changed: its values in {self.path} are computed again")
            self.values = {}
        self._checked = True

    def _save(self) -> None:
        if self.path is None or not self._changed:
            return
        keys = torch.frombuffer(bytearray(b"".join(self.values)), dtype=torch.uint8)
        values = torch.tensor(list(self.values.values()), dtype=torch.float64)
        try:
            save_tensors(self.path, {"keys": keys, "values": values})
        except RelossError as error:
            say(f"the values of metric {self.metric.__name__} are not stored: {error}")
            self.path = None
        self._changed, self._saved_at = False, time.monotonic()


def not_finite(name: str, value: float, label: str) -> RelossError:
    """Return the error for a metric value that is NaN or infinite.

    Args:
        name: the metric.
        value: its value.
        label: the item.
    """
    return RelossError(
        f"metric {name} returned {value} for {label}; it must be finite: return a number where the metric is "
        "undefined, such as for an item with a single class, or record larger items (item_size)"
    )


def _read(path: Path) -> dict[bytes, float]:
    """Return the values in a file by their keys; if the file is damaged, report that and return no values."""
    try:
        tensors = load_tensors(path)
        keys = tensors["keys"].numpy().tobytes()
        parts = [keys[start : start + KEY_BYTES] for start in range(0, len(keys), KEY_BYTES)]
        return dict(zip(parts, tensors["values"].tolist(), strict=True))
    except Exception as error:
        say(f"{path} cannot be read ({type(error).__name__}: {error}); its values are computed again")
        return {}


def _key(outputs: Tensor, targets: Tensor) -> bytes:
    """Return a hash of the content of one item."""
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    for values in (outputs, targets):
        digest.update(f"{values.dtype} {list(values.shape)} ".encode())
        digest.update(values.contiguous().view(torch.uint8).numpy().data)
    return digest.digest()
