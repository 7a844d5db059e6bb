"""PoseReLoss as a keypoint loss of mmpose: `loss=dict(type='PoseReLoss', surrogate=...)` in any heatmap config."""

from __future__ import annotations

from pathlib import Path

from mmpose.models.losses import KeypointMSELoss
from mmpose.registry import MODELS
from torch import Tensor, nn

from reloss.surrogates import PoseReLoss, SurrogateLoss


@MODELS.register_module("PoseReLoss")
class KeypointReLoss(nn.Module):
    """A frozen `reloss.PoseReLoss`, in the place of mmpose's `KeypointMSELoss`.

    A config imports it with `custom_imports = dict(imports=['reloss_tasks.pose.losses'])`. The surrogate's parameters
    are not the model's: they are in no optimiser and in no checkpoint.

    Args:
        surrogate: a learned one; its folder, or its name as of `PoseReLoss.from_pretrained`.
        use_target_weight: whether joints are weighted by their visibility, as in mmpose.
        ordinary_weight: mmpose's mean squared error is added, times this.
        loss_weight: of the whole.
    """

    def __init__(
        self,
        surrogate: SurrogateLoss | str | Path,
        use_target_weight: bool = True,
        ordinary_weight: float = 0.0,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        loaded = PoseReLoss.from_pretrained(surrogate) if isinstance(surrogate, str | Path) else surrogate
        self._surrogate = (loaded.freeze(),)  # in a tuple, where PyTorch does not look for parameters
        self.ordinary = KeypointMSELoss(use_target_weight=use_target_weight)
        self.use_target_weight = use_target_weight
        self.ordinary_weight = ordinary_weight
        self.loss_weight = loss_weight

    @property
    def surrogate(self) -> SurrogateLoss:
        """Return the surrogate."""
        return self._surrogate[0]

    def forward(self, output: Tensor, target: Tensor, target_weights: Tensor | None = None) -> Tensor:
        """Return the loss of heatmaps [B, K, H, W]; target_weights [B, K] of the joints, all 1 by default.

        Raises:
            ValueError: the shapes do not agree, or the surrogate is for heatmaps of another size.
        """
        ones = output.new_ones(output.shape[:2])
        weights = target_weights if self.use_target_weight and target_weights is not None else ones
        loss = self.surrogate.to(output.device)(output, target, weights)
        if self.ordinary_weight:
            loss = loss + self.ordinary_weight * self.ordinary(output.float(), target, weights)
        return self.loss_weight * loss
