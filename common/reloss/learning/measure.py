"""The metric's value of items, checked: one finite number each, higher where predictions are better."""

from __future__ import annotations

import torch
from torch import Tensor

from reloss.errors import RelossError
from reloss.learning.items import Items
from reloss.metrics import Metric


class Measure:
    """The metric of a fit.

    Args:
        metric: (outputs [N, B, ...], targets [N, B, ...]) -> [N].
        higher_is_better: whether a larger metric is a better prediction; else its sign is turned.
    """

    def __init__(self, metric: Metric, higher_is_better: bool) -> None:
        self.metric = metric
        self.sign = 1.0 if higher_is_better else -1.0
        self.name = getattr(metric, "__name__", str(metric))

    @torch.no_grad()
    def __call__(self, items: Items) -> Tensor:
        """Return the metric [N] in float32, turned so that higher is better.

        Raises:
            RelossError: the metric cannot measure these predictions, or gave something else than one finite value an
                item.
        """
        try:
            values = self.metric(items.outputs, items.targets)
        except (TypeError, ValueError) as error:
            raise RelossError(f"metric {self.name} cannot measure the bank's predictions: {error}") from error
        count = len(items.targets)
        if values.shape != (count,):
            raise RelossError(
                f"metric {self.name} gave {list(values.shape)} for {count} items; expected one value each"
            )
        if not torch.isfinite(values).all():
            bad = int((~torch.isfinite(values)).nonzero()[0])
            raise RelossError(f"metric {self.name} gave {values[bad].item()} for item {bad}; it must be finite")
        return self.sign * values.float()
