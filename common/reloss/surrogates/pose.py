"""The surrogate for heatmaps of joints: squared errors, each joint's weighted by a network that sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reloss.metrics.shapes import check_shapes
from reloss.surrogates.base import SurrogateLoss, check_sizes
from reloss.surrogates.network import evaluate
from reloss.surrogates.options import Fidelity, Input, Output


class PoseReLoss(SurrogateLoss):
    """ReLoss for pose: the mean squared error of heatmaps, each joint's times a learned weight in (0, 1).

    A small network sees the squared errors of a joint's whole heatmap and gives its weight. Architecture and parameter
    names are the release's, so that its checkpoints load. Whatever is learned, the loss is 0 where the heatmaps are
    right and positive elsewhere. Its curve at 0 is flat, so its slope cannot be held at 1 there: learn it with penalty
    `one_sided` or `off`.

    Args:
        size: height and width of the heatmaps. The release's are 64 x 48 and 96 x 72.
        monotone: a joint's loss is the network itself, of absolute weights and half of its units mirrored, less its
            value where all errors are 0. So it rises with every error, by construction, and can level off. The
            release's weight is free, and PCK, to which all misses are alike, teaches it to weigh large errors lightly:
            training from scratch can then escape into errors so large that the loss vanishes.
        width: of the hidden layer.
        scale: see `SurrogateLoss`.

    Raises:
        ValueError: a size is not a positive whole number.
    """

    reaches_any_value = False  # at most the mean squared error

    def __init__(
        self, size: Sequence[int] = (64, 48), monotone: bool = False, width: int = 8, scale: float = 1.0
    ) -> None:
        super().__init__(scale)
        if not isinstance(size, Sequence) or len(size) != 2:
            raise ValueError(f"size is the height and the width of the heatmaps, not {size}")
        check_sizes(height=size[0], width=size[1])
        check_sizes(width=width)
        self.size = tuple(size)
        self.monotone = monotone
        self.width = width
        self.logits_fcs = nn.Sequential(nn.Linear(size[0] * size[1], width), nn.ELU(), nn.Linear(width, 1))

    @classmethod
    def arguments(cls, shape: Sequence[int], *, fidelity: Fidelity, input: Input, output: Output) -> dict[str, Any]:
        """Return the constructor's arguments for heatmaps [K, H, W]: their size, and whether the network is monotone.

        Raises:
            ValueError: one example's outputs have another number of dimensions.
        """
        if len(shape) != 3:
            raise ValueError(f"expected heatmaps [K, H, W] of an example, not {list(shape)}")
        return {"size": tuple(shape[1:]), "monotone": output == "monotone"}

    def options(self) -> dict[str, Any]:
        """Return the constructor's arguments that make a surrogate of this shape."""
        return {"size": list(self.size), "monotone": self.monotone, "width": self.width, "scale": self.scale}

    def per_item(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the loss of each item, in float32 also under autocast.

        Args:
            outputs: [N, B, K, H, W] heatmaps.
            targets: [N, B, K, H, W] heatmaps.
            weights: [N, B, K] of the joints, 0 for one that is not visible; by default 0 for a joint whose target has
                no positive value, else 1. As in mmpose, an invisible joint counts in the mean, as 0.

        Returns:
            [N].

        Raises:
            ValueError: the shapes do not agree, or the heatmaps are of another size.
        """
        self.check(outputs, targets)
        weights = visible(targets) if weights is None else weights
        check_shapes({"outputs [N, B, K, H, W]": outputs, "weights [N, B, K]": weights})
        with torch.autocast(outputs.device.type, enabled=False):
            dtype = next(self.parameters()).dtype
            errors = (outputs.to(dtype) - targets.to(dtype)).square().flatten(-2)
            return self.scale * (self._joints(errors) * weights.to(dtype)).mean((-2, -1))

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise ValueError unless both are heatmaps [N, B, K, H, W] of this surrogate's size."""
        check_shapes({"outputs [N, B, K, H, W]": outputs, "targets [N, B, K, H, W]": targets})
        if outputs.shape[-2:] != self.size:
            raise ValueError(f"this surrogate is for heatmaps of {list(self.size)}, not {list(outputs.shape[-2:])}")

    def _joints(self, errors: Tensor) -> Tensor:
        """Return each joint's loss: squared errors [..., H·W] -> [...]."""
        if not self.monotone:
            return errors.mean(-1) * torch.sigmoid(self.logits_fcs(errors)).squeeze(-1)
        linears = [layer for layer in self.logits_fcs if isinstance(layer, nn.Linear)]
        right, found = (evaluate(linears, each, monotone=True) for each in (errors.new_zeros(errors.shape[-1]), errors))
        return right - found  # the network falls

    def forward(self, outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the loss of one batch, a scalar: heatmaps [B, K, H, W] twice, weights [B, K] of the joints."""
        return self.per_item(outputs[None], targets[None], None if weights is None else weights[None])[0]

    @staticmethod
    def ordinary_loss(outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean squared error of each item's visible joints, as mmpose's `KeypointMSELoss`: -> [N]."""
        check_shapes({"outputs [N, B, K, H, W]": outputs, "targets [N, B, K, H, W]": targets})
        return ((outputs - targets).square().mean((-2, -1)) * visible(targets)).mean((-2, -1))


def visible(targets: Tensor) -> Tensor:
    """Return 1 for each joint whose target heatmap has a positive value, else 0: [..., H, W] -> [...]."""
    return (targets.amax((-2, -1)) > 0).to(targets.dtype)
