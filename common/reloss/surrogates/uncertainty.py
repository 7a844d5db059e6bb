"""Weights of a learned loss and the ordinary loss that are learned in training: the uncertainty rule.

How much should the ordinary loss count next to the learned one? The uncertainty rule treats each loss as the error of a
prediction with an unknown standard deviation s. The sum L / (2 s^2) + log s over both losses is smallest at s^2 = L, so
each loss is weighted relative to its own size, and a loss that stops falling loses weight.

The rule needs losses that cannot be negative. A learned loss has an arbitrary offset, so its lowest possible value is
subtracted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from reloss.runtime import distributed
from reloss.runtime.errors import UsageError
from reloss.surrogates.base import SurrogateLoss

RATE = 0.01  # size of a gradient step on the logarithms of the deviations
LARGEST = 3.0  # bounds the logarithms of the deviations, hence the weights: from 0.0012 to 200


class UncertaintyWeights(nn.Module):
    """The sum of a learned and an ordinary loss, each divided by twice its variance, plus both log deviations.

    The deviations are parameters of this module, saved with its state. In training mode, each call also takes one
    gradient step on them, of a fixed size. The model's optimiser does not: at the learning rate of a fine-tuned
    network, they would stay where they start. Both weights start at 1, as with a fixed weight of 1.

    With several processes, all take the same step, for the mean of their losses. The deviations stay in float32.
    Source: Kendall et al. (2018), Multi-Task Learning Using Uncertainty to Weigh Losses; Xiong et al. (2018), DCN+.

    Args:
        lowest: value that no learned loss is below.
    """

    def __init__(self, lowest: float = 0.0) -> None:
        super().__init__()
        self.lowest = lowest
        self.log_deviations = nn.Parameter(torch.full((2,), -math.log(2) / 2), requires_grad=False)

    @classmethod
    def of(cls, surrogate: SurrogateLoss) -> Self:
        """Return the weights for a surrogate and the ordinary loss.

        Raises:
            UsageError: the lowest loss of this surrogate is not known.
        """
        lowest = surrogate.lowest()
        if lowest is None:
            raise UsageError(
                f"the weight of the ordinary loss cannot be learned for {type(surrogate).__name__}, whose lowest loss "
                "is not known: choose surrogate.features=expected, or a fixed train.ordinary_weight such as 1"
            )
        return cls(lowest)

    def forward(self, learned: Tensor, ordinary: Tensor) -> Tensor:
        """Return the weighted sum of two scalars, in float32 or float64; see the class."""
        losses = torch.stack((learned - self.lowest, ordinary))
        if self.training:
            self._step(losses.detach().float())
        return (self.weights() * losses).sum() + self.log_deviations.sum()

    def weights(self) -> Tensor:
        """Return the current weights of the learned and the ordinary loss, [2]."""
        return (-2 * self.log_deviations).exp() / 2

    def summary(self) -> dict[str, float]:
        """Return the current weights by name, for a record."""
        learned, ordinary = self.weights().tolist()
        return {"learned_weight": learned, "ordinary_weight": ordinary}

    @torch.no_grad()
    def _step(self, losses: Tensor) -> None:
        """Take a step along the gradient of the log deviations, 1 - loss / s^2."""
        residuals = distributed.mean(losses).clamp(min=0)
        moved = self.log_deviations - RATE * (1 - 2 * self.weights() * residuals)
        self.log_deviations.copy_(moved.clamp(-LARGEST, LARGEST))

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the parameters as `nn.Module` does, except that they stay in float32: steps are small."""
        super()._apply(function, recurse)
        self.log_deviations.data = self.log_deviations.data.float()
        return self
