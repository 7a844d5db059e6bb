"""The metric's value of items, checked: one finite number each, higher where predictions are better."""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from reloss.learning.items import Items
from reloss.metrics import Metric, PerItem, as_metric
from reloss.metrics.identity import identity
from reloss.runtime.errors import RelossError, UsageError
from reloss.runtime.files import atomic
from reloss.runtime.progress import say

SAVE_SECONDS = 10.0  # of computing that a kill may lose
KEY_BYTES = 16
OF_ONE = (
    "a function of one batch, (outputs [B, ...], targets [B, ...]) -> a number, is made such a metric by "
    "reloss.metrics.PerItem(function)"
)
CHECKED = 8  # kept values that are computed again before the rest is believed


class Measure:
    """The metric of a fit. One that is computed item by item is computed once for each item, whatever the fit.

    Args:
        metric: (outputs [N, B, ...], targets [N, B, ...]) -> [N], a tensor or NumPy array; or a torchmetrics object.
        higher_is_better: whether a larger metric is a better prediction; else its sign is turned.
        folder: where the values of a metric that is computed item by item are kept; None keeps them in memory alone.

    Attributes:
        name: of the metric.
        by_item: whether it is computed item by item.

    Raises:
        UsageError: it is no metric, or says itself that it is better the other way.
    """

    def __init__(self, metric: Metric, higher_is_better: bool, folder: Path | None = None) -> None:
        self.metric = as_metric(metric)
        self.sign = 1.0 if higher_is_better else -1.0
        self.name = getattr(self.metric, "__name__", type(self.metric).__name__)
        declared = getattr(self.metric, "higher_is_better", None)
        if isinstance(declared, bool) and declared != higher_is_better:
            raise UsageError(
                f"metric {self.name} says that {'higher' if declared else 'lower'} is better; "
                f"give higher_is_better={declared}"
            )
        self._kept = KeptValues(self.metric, folder) if isinstance(self.metric, PerItem) else None
        self.by_item = self._kept is not None

    @torch.no_grad()
    def __call__(self, items: Items, label: str = "item", first: int = 0) -> Tensor:
        """Return the metric [N] in float32, turned so that higher is better.

        Args:
            items: N items.
            label: what messages call an item.
            first: the number of the first one.

        Raises:
            RelossError: the metric cannot measure these predictions, or gave something else than one finite value an
                item.
        """
        if self._kept is not None:
            labels = [f"{label} {first + number}" for number in range(len(items.targets))]
            values = self._kept(items.outputs, items.targets, labels)
        else:
            values = self._vectorised(items)
            if not torch.isfinite(values).all():
                bad = int((~torch.isfinite(values)).nonzero()[0])
                raise _not_finite(self.name, values[bad].item(), f"{label} {first + bad}")
        return self.sign * values.float().to(items.outputs.device)

    def close(self) -> None:
        """End what the metric runs beside this process."""
        if isinstance(self.metric, PerItem):
            self.metric.close()

    def _vectorised(self, items: Items) -> Tensor:
        try:
            values = self.metric(items.outputs, items.targets)
        except RelossError:
            raise
        except Exception as error:
            raise RelossError(
                f"metric {self.name} cannot measure the bank's predictions: {type(error).__name__}: {error}. It was "
                f"given all items at once, outputs {list(items.outputs.shape)} and targets "
                f"{list(items.targets.shape)}; {OF_ONE}"
            ) from error
        count = len(items.targets)
        if isinstance(values, np.ndarray):
            values = torch.as_tensor(values)
        if not isinstance(values, Tensor):
            raise RelossError(
                f"metric {self.name} gave a {type(values).__name__} for {count} items; expected a tensor of one value "
                f"each; {OF_ONE}"
            )
        if values.shape != (count,):
            raise RelossError(
                f"metric {self.name} gave {list(values.shape)} for {count} items; expected one value each; {OF_ONE}"
            )
        return values


class KeptValues:
    """A metric that is computed item by item, with the values that it gave, by what the items hold.

    The file is named by metric and code. What the metric calls in other modules is not seen in its code, so some of the
    file's values, of predictions of all qualities, are computed again; if one has changed, all are forgotten.

    Args:
        metric: to compute what is not there.
        folder: of the file; None keeps the values in memory alone.
    """

    def __init__(self, metric: PerItem, folder: Path | None) -> None:
        self.metric = metric
        name = re.sub(r"[^\w.-]+", "_", metric.__name__)
        self.path = None if folder is None else folder / f"{name}-{identity(metric.function)}.safetensors"
        self.values = _read(self.path) if self.path is not None and self.path.exists() else {}
        self._checked = not self.values
        self._changed = False
        self._saved = time.monotonic()

    def __call__(self, outputs: Tensor, targets: Tensor, labels: Sequence[str]) -> Tensor:
        """Return the metric of each item: outputs [N, B, ...], targets [N, B, ...] -> [N], on the CPU in float64.

        Raises:
            RelossError: the metric failed for an item, or is not finite; the message names it by its label.
        """
        outputs, targets = outputs.cpu(), targets.cpu()
        keys = [_key(*item) for item in zip(outputs, targets, strict=True)]
        self._check(outputs, targets, keys, labels)
        new = {key: number for number, key in enumerate(keys) if key not in self.values}
        numbers = list(new.values())
        new_labels = [labels[number] for number in numbers]
        try:
            with closing(self.metric.values(outputs[numbers], targets[numbers], new_labels)) as values:
                for key, label, value in zip(new, new_labels, values, strict=True):
                    if not math.isfinite(value):
                        raise _not_finite(self.metric.__name__, value, label)
                    self.values[key] = value
                    self._changed = True
                    if time.monotonic() - self._saved > SAVE_SECONDS:
                        self._save()
        finally:
            self._save()
        return torch.tensor([self.values[key] for key in keys], dtype=torch.float64)

    def _check(self, outputs: Tensor, targets: Tensor, keys: Sequence[bytes], labels: Sequence[str]) -> None:
        """Compute some of the file's values again, the first time there are any; forget all if one has changed."""
        found = [number for number, key in enumerate(keys) if key in self.values]
        if self._checked or not found:
            return
        some = sorted({found[place * (len(found) - 1) // (CHECKED - 1)] for place in range(CHECKED)})
        now = list(self.metric.values(outputs[some], targets[some], [labels[number] for number in some]))
        before = [self.values[keys[number]] for number in some]
        if not all(math.isclose(*pair, rel_tol=1e-5, abs_tol=1e-6) for pair in zip(before, now, strict=True)):
            say(f"metric {self.metric.__name__} has changed: its values in {self.path} are computed anew")
            self.values = {}
        self._checked = True

    def _save(self) -> None:
        if self.path is None or not self._changed:
            return
        keys = torch.frombuffer(bytearray(b"".join(self.values)), dtype=torch.uint8)
        values = torch.tensor(list(self.values.values()), dtype=torch.float64)
        try:
            with atomic(self.path) as temporary:
                save_file({"keys": keys, "values": values}, temporary)
        except RelossError as error:
            say(f"the values of metric {self.metric.__name__} are not kept: {error}")
            self.path = None
        self._changed, self._saved = False, time.monotonic()


def _read(path: Path) -> dict[bytes, float]:
    """Return the values in a file by their keys; none, and a line that says so, if it is damaged."""
    try:
        kept = load_file(path)
        keys = kept["keys"].numpy().tobytes()
        parts = [keys[start : start + KEY_BYTES] for start in range(0, len(keys), KEY_BYTES)]
        return dict(zip(parts, kept["values"].tolist(), strict=True))
    except Exception as error:
        say(f"{path} cannot be read ({type(error).__name__}: {error}); its values are computed anew")
        return {}


def _key(outputs: Tensor, targets: Tensor) -> bytes:
    """Return a hash of what one item holds."""
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    for values in (outputs, targets):
        digest.update(f"{values.dtype} {list(values.shape)} ".encode())
        digest.update(values.contiguous().view(torch.uint8).numpy().data)
    return digest.digest()


def _not_finite(name: str, value: float, label: str) -> RelossError:
    return RelossError(
        f"metric {name} gave {value} for {label}; it must be finite: return a number where it is not defined, as of "
        "one class alone, or record larger items (item_size)"
    )
