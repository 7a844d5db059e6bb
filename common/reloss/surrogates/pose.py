"""The surrogate for heatmaps of joints: a learned function of the squared errors of each joint's heatmap.

The mean squared error treats all pixels alike. PCK asks only whether the peak is near the joint. A small network that
sees all squared errors of a joint's heatmap can tell errors that move the peak from errors that do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from reloss.metrics.shapes import ShapeError, check_shapes
from reloss.surrogates.base import SurrogateLoss, bounded
from reloss.surrogates.checks import check_heatmaps, check_sizes, widen
from reloss.surrogates.options import Features, Input, Output
from reloss.surrogates.released.pose import joint_network, weighted_error


class JointLoss(SurrogateLoss):
    """A loss of heatmaps: a mean over the joints of the loss of each joint, in which invisible ones do not count."""

    def group_weights(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return which joints are visible, 1 or 0: [N, B, K]."""
        return visible(targets)

    def reduce(self, losses: Tensor, group_weights: Tensor | None) -> Tensor:
        """Return the mean over all joints, in which an invisible one counts as 0 (as in mmpose), times the scale."""
        assert group_weights is not None
        return self.scale * (losses * group_weights.to(losses.dtype)).mean((-2, -1))

    def per_item(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the loss of each item, in the dtype of the parameters, also under autocast.

        Args:
            outputs: [N, B, K, H, W] heatmaps.
            targets: [N, B, K, H, W] heatmaps.
            weights: [N, B, K] weights of the joints, 0 for an invisible one. By default, 1 for joints whose target has
                a positive value, and 0 for others.

        Returns:
            [N].

        Raises:
            ValueError: the shapes do not agree, or the heatmaps have a size that this surrogate does not take.
        """
        if weights is not None:
            self.check(outputs, targets)
            check_shapes({"outputs [N, B, K, H, W]": outputs, "weights [N, B, K]": weights})
        return self._compute(outputs, targets, weights)

    def forward(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the loss of one batch, a scalar: heatmaps [B, K, H, W] twice, weights [B, K] of the joints."""
        self._refuse_unfitted(outputs, targets)
        try:
            return self.per_item(outputs[None], targets[None], None if weights is None else weights[None])[0]
        except ShapeError as error:
            raise error.of_one_batch() from None

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise ValueError unless both are heatmaps [N, B, K, H, W] that this surrogate takes."""
        check_heatmaps(outputs, targets)

    @staticmethod
    def ordinary_loss(outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean squared error of the visible joints of each item, as mmpose's `KeypointMSELoss`: [N]."""
        check_heatmaps(outputs, targets)
        return ((widen(outputs) - widen(targets)).square().mean((-2, -1)) * visible(targets)).mean((-2, -1))


class PoseReLoss(JointLoss):
    """ReLoss for pose: the mean over the joints of a learned function of each one's heatmap.

    Takes heatmaps [B, K, H, W] twice. Layers and parameter names are the release's, so that its weights load.
    Whatever is learned, the loss is 0 where the heatmaps are right. There its curve is flat, so its slope cannot be
    held at 1: fit it with penalty `one_sided` or `off`.

    Args:
        size: height and width of the heatmaps; 64 x 48 and 96 x 72 in the release.
        monotone: whether the loss of a joint is the network itself, minus its value where all errors are 0. By
            construction it then rises with every error, and can level off. If not, it is the mean squared error times
            a learned weight in (0, 1), as in the release; see `reloss.surrogates.released.pose` for its flaw.
        width: units of the hidden layer.
        scale: see `SurrogateLoss`.

    Raises:
        ValueError: a size is not a positive whole number.
    """

    reaches_any_value = False  # at most the mean squared error

    def __init__(
        self, size: Sequence[int] = (64, 48), monotone: bool = True, width: int = 8, scale: float = 1.0
    ) -> None:
        super().__init__(scale)
        if not isinstance(size, Sequence) or len(size) != 2:
            raise ValueError(f"size must be the height and the width of the heatmaps, not {size}")
        check_sizes(height=size[0], width=size[1])
        check_sizes(width=width)
        self.size = (size[0], size[1])
        self.monotone = monotone
        self.width = width
        self.logits_fcs = joint_network(size[0] * size[1], width)

    @classmethod
    def arguments(cls, shape: Sequence[int], *, features: Features, input: Input, output: Output) -> dict[str, Any]:
        """Return the constructor's arguments for heatmaps [K, H, W]: their size, and whether the loss is monotone.

        Raises:
            ValueError: one example's outputs have another number of dimensions.
        """
        if len(shape) != 3:
            raise ValueError(f"expected heatmaps [K, H, W] of an example, not {list(shape)}")
        return {"size": tuple(shape[1:]), "monotone": output == "monotone"}

    @classmethod
    def options_of(cls, weights: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the release's form: only its weights come without a card. They do not show the size."""
        return {"monotone": False}

    def options(self) -> dict[str, Any]:
        """Return the constructor's arguments that build a surrogate like this one, as JSON holds them."""
        return {**super().options(), "size": list(self.size)}

    def features(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the squared errors of each joint's heatmap: [N, B, K, H, W] twice -> [N, B, K, H·W].

        Raises:
            ValueError: the shapes do not agree, or the heatmaps have another size.
        """
        self.check(outputs, targets)
        return (outputs - bounded(targets.to(outputs.dtype))).square().flatten(-2)

    def network(self, features: Tensor) -> Tensor:
        """Return the loss of each joint: squared errors [..., H·W] -> [...]."""
        if not self.monotone:
            return weighted_error(self.logits_fcs, features)
        perfect = self.perceptron(features.new_zeros(features.shape[-1]))
        return perfect - self.perceptron(features)  # the network falls as an error grows

    def lowest(self) -> float:
        """Return the loss of right heatmaps, 0."""
        return 0.0

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise ValueError unless both are heatmaps [N, B, K, H, W] of this surrogate's size."""
        check_heatmaps(outputs, targets, self.size)


def visible(targets: Tensor) -> Tensor:
    """Return 1 for each joint whose target heatmap has a positive value, else 0: [..., H, W] -> [...]."""
    return (targets.amax((-2, -1)) > 0).to(targets.dtype)
