"""The metric of a fit, checked: one finite value per item, higher where predictions are better.

Metrics come as vectorised functions, as functions of one batch, or as torchmetrics objects, and some are better when
lower. The fit sees none of this: `Measure` turns the sign where needed, checks every value, and names the item when
something is wrong.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from reloss.learning.items import Items
from reloss.learning.metric_cache import MetricCache, not_finite
from reloss.metrics import Metric, PerItem, as_metric
from reloss.metrics.per_item import tensor_hint
from reloss.runtime.errors import RelossError, UsageError

PER_ITEM_HINT = (
    "reloss.metrics.PerItem(function) makes such a metric of a function of one batch, (outputs [B, ...], targets "
    "[B, ...]) -> a number"
)


class Measure:
    """The metric of a fit. A metric that is computed item by item is computed once per item, over all fits on a bank.

    Args:
        metric: (outputs [N, B, ...], targets [N, B, ...]) -> [N], a tensor or a NumPy array; or a torchmetrics object.
        higher_is_better: whether a larger metric means a better prediction; if not, the sign is turned.
        folder: the folder that caches the values of a metric computed item by item; None keeps them in memory only.

    Attributes:
        name: the name of the metric.
        by_item: whether the metric is computed item by item.
        sign: 1 or -1; the metric's own value is `sign` times the measured value.

    Raises:
        UsageError: `metric` is not a metric, or it declares the other direction as better.
    """

    def __init__(self, metric: Metric, higher_is_better: bool, folder: Path | None = None) -> None:
        self.metric = as_metric(metric)
        self.sign = 1.0 if higher_is_better else -1.0
        self.name = getattr(self.metric, "__name__", type(self.metric).__name__)
        declared = getattr(self.metric, "higher_is_better", None)
        if isinstance(declared, bool) and declared != higher_is_better:
            raise UsageError(
                f"metric {self.name} declares that {'higher' if declared else 'lower'} is better; "
                f"pass higher_is_better={declared}"
            )
        self._cache = MetricCache(self.metric, folder) if isinstance(self.metric, PerItem) else None
        self.by_item = self._cache is not None

    @torch.no_grad()
    def __call__(self, items: Items, label: str = "item", first: int = 0) -> Tensor:
        """Return the metric [N] in float32; higher is better.

        Args:
            items: N items.
            label: what error messages call an item.
            first: the number of the first item, for error messages.

        Raises:
            RelossError: the metric cannot measure these predictions, or did not return one finite value per item.
        """
        if self._cache is not None:
            labels = [f"{label} {first + number}" for number in range(len(items.targets))]
            values = self._cache(items.outputs, items.targets, labels)
        else:
            values = self._vectorised(items)
            finite = torch.isfinite(values)
            if not finite.all():
                number = int((~finite).nonzero()[0])
                raise not_finite(self.name, values[number].item(), f"{label} {first + number}")
        return self.sign * values.float().to(items.outputs.device)

    def close(self) -> None:
        """End the worker processes of the metric."""
        if isinstance(self.metric, PerItem):
            self.metric.close()

    def _vectorised(self, items: Items) -> Tensor:
        """Return the values [N] of a vectorised metric."""
        try:
            values = self.metric(items.outputs, items.targets)
        except RelossError:
            raise
        except Exception as error:
            raise RelossError(
                f"metric {self.name} cannot measure the bank's predictions: {type(error).__name__}: {error}"
                f"{tensor_hint(error)}. It was called with all items at once, outputs {list(items.outputs.shape)} and "
                f"targets {list(items.targets.shape)}; {PER_ITEM_HINT}"
            ) from error
        count = len(items.targets)
        if isinstance(values, np.ndarray):
            values = torch.as_tensor(values)
        if not isinstance(values, Tensor):
            raise RelossError(
                f"metric {self.name} returned a {type(values).__name__} for {count} items; expected a tensor with one "
                f"value per item; {PER_ITEM_HINT}"
            )
        if values.shape != (count,):
            raise RelossError(
                f"metric {self.name} returned {list(values.shape)} for {count} items; expected one value per item; "
                f"{PER_ITEM_HINT}"
            )
        return values
