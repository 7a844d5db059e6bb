"""What surrogates over the expected parts of a metric share: a monotone network, or the expected metric itself.

A metric counts: matching n-grams, true positives, joints within a radius. Under the probabilities that a model
predicts, the expectation of each count is a smooth function of the outputs. These expectations say more about the
metric than the likelihood of the targets does. A small monotone network that is fitted to rank with them is a learned
loss. Where the metric is a formula of the counts, the same formula of their expectations is a loss without learning:
the control that a learned loss has to beat.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from reloss.surrogates.base import SurrogateLoss
from reloss.surrogates.checks import check_sizes
from reloss.surrogates.options import Features, Penalty

ExpectedMetric = Callable[[Tensor], Tensor]
"""Expected metric of groups with these features: [..., F] -> [...], on the metric's scale; higher is better."""


class ExpectedLoss(SurrogateLoss):
    """A loss over the expected parts of a metric, learned or as the metric's formula states it.

    A kind defines `FEATURES`, `EXPECTED` and `features`. All features rise as a prediction gets better.

    Args:
        metric: None for a network to be fitted. Or a key of `EXPECTED`: the loss of a group is then 1 minus the
            expected metric, and there is nothing to learn.
        width: units of the hidden layers.
        scale: see `SurrogateLoss`.

    Raises:
        ValueError: there is no formula for the metric, or a width or scale is not positive.
    """

    FEATURES: ClassVar[tuple[str, ...]] = ()
    """Names of the features, in their order."""

    EXPECTED: ClassVar[Mapping[str, ExpectedMetric]] = {}
    """Formulas of the metrics that the features determine, by the metric's name."""

    sees: ClassVar[Features] = "expected"
    penalty: ClassVar[Penalty] = "off"

    def __init__(self, metric: str | None = None, width: int = 16, scale: float = 1.0) -> None:
        super().__init__(scale)
        check_sizes(width=width)
        if metric is not None and metric not in self.EXPECTED:
            raise ValueError(
                f"{type(self).__name__} has no formula for metric {metric}, only for {', '.join(self.EXPECTED)}; "
                "choose one of them, or learn the loss"
            )
        self.metric = metric
        self.width = width
        if metric is None:
            self.hidden = nn.Sequential(nn.Linear(len(self.FEATURES), width), nn.Linear(width, width))
            self.loss = nn.Linear(width, 1)

    @classmethod
    def expected_arguments(cls, shape: Sequence[int]) -> dict[str, Any]:
        """Return the constructor's arguments that follow from the shape of one example's outputs; none by default.

        Raises:
            ValueError: this kind takes no outputs of this shape.
        """
        return {}

    def best_features(self) -> Tensor:
        """Return the largest value of each feature [F]: that of perfect predictions. It is 0, a logarithm's of 1."""
        return torch.zeros(len(self.FEATURES), dtype=self.dtype)

    def lowest(self) -> float:
        """Return the loss of the best features, which no loss is below."""
        if self.metric is not None:
            return 0.0  # where the expected metric is 1
        weight = self._first_weight()
        assert weight is not None
        with torch.no_grad():
            return self.scale * float(self.network(self.best_features().to(weight.device)))

    def network(self, features: Tensor) -> Tensor:
        """Return the loss of each group: features [..., F] -> [...]. It falls as any feature rises."""
        if self.metric is None:
            return self.perceptron(features)
        return 1 - self.EXPECTED[self.metric](features)
