"""The losses of pose estimation: mmpose's own, and a surrogate for heatmaps as a keypoint loss of mmpose.

In any heatmap config of mmpose, `loss=dict(type='PoseReLoss', surrogate=...)` trains with a surrogate. Importing this
module also lets mmpose's tools load the checkpoints that they write (see `checkpoints`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mmpose.models.losses import KeypointMSELoss, KeypointOHKMMSELoss
from mmpose.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from reloss.experiment.task import Run
from reloss.runtime.errors import RelossError, UsageError
from reloss.surrogates import SurrogateLoss, load
from reloss.surrogates.pose import JointLoss
from reloss.surrogates.uncertainty import UncertaintyWeights
from reloss_tasks.pose import checkpoints  # noqa: F401
from reloss_tasks.pose.config import PoseExperiment


def make_loss(run: Run[PoseExperiment]) -> nn.Module:
    """Return the loss of a run: (heatmaps [B, K, H, W], targets [B, K, H, W], target weights [B, K]) -> scalar.

    Raises:
        RelossError: a learned loss without a surrogate.
    """
    if run.loss == "mse":
        return KeypointMSELoss(use_target_weight=True)
    if run.loss == "ohkm":
        return KeypointOHKMMSELoss(use_target_weight=True)
    if run.loss == "location_ce":
        return KeypointLocationLoss()
    if run.surrogate is None:
        raise RelossError(f"loss '{run.loss}' needs a learned surrogate; run --stage learn (or all) first")
    return KeypointReLoss(run.surrogate, ordinary_weight=run.config.train.ordinary_weight)


@MODELS.register_module("KeypointLocationLoss")
class KeypointLocationLoss(nn.Module):
    """The cross-entropy of a joint's position under a softmax of its heatmap: where is the joint, out of H·W places?

    It asks for a peak at the joint and, unlike the squared error, for no shape around it. The mean is over all joints,
    and an invisible one counts as 0, as in mmpose's `KeypointMSELoss`.

    Args:
        sharpness: factor of the heatmaps, which are between 0 and 1, before the softmax. At 20, a heatmap that mmpose
            asks for has nearly all its probability at the joint.
    """

    def __init__(self, sharpness: float = 20.0) -> None:
        super().__init__()
        self.sharpness = sharpness

    def forward(self, output: Tensor, target: Tensor, target_weights: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar: heatmaps [B, K, H, W] twice, weights [B, K] of the joints, all 1 by default.

        The position of a joint is the largest value of its target heatmap.
        """
        logits = self.sharpness * output.float().flatten(0, 1).flatten(1)
        losses = F.cross_entropy(logits, target.flatten(0, 1).flatten(1).argmax(-1), reduction="none")
        return (losses if target_weights is None else losses * target_weights.flatten()).mean()


@MODELS.register_module("PoseReLoss")
class KeypointReLoss(nn.Module):
    """A frozen surrogate for heatmaps, learned or the expected metric, in place of mmpose's `KeypointMSELoss`.

    A config imports it with `custom_imports = dict(imports=['reloss_tasks.pose.losses'])`. The surrogate's parameters
    do not belong to the model: no optimiser and no checkpoint contains them.

    Args:
        surrogate: a fitted surrogate, its folder, or its name (see `reloss.surrogates.load`).
        use_target_weight: whether joints are weighted by their visibility, as in mmpose.
        skip_empty_channel: whether joints whose target heatmap is 0 everywhere do not count.
        ordinary_weight: weight of mmpose's mean squared error, which is added. With `learned`, both weights are learned
            in training and stored in the model's checkpoints (see `reloss.surrogates.uncertainty`).
        loss_weight: factor of the whole loss.

    Raises:
        UsageError: the surrogate is for another kind of prediction, there is none of this name, or the weights cannot
            be learned for it.
    """

    def __init__(
        self,
        surrogate: SurrogateLoss | str | Path,
        use_target_weight: bool = True,
        skip_empty_channel: bool = False,
        ordinary_weight: float | Literal["learned"] = 0.0,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        loaded = load(surrogate) if isinstance(surrogate, str | Path) else surrogate
        if not isinstance(loaded, JointLoss):
            raise UsageError(
                f"{type(loaded).__name__} is no surrogate for heatmaps; choose one that was fitted to them"
            )
        self._surrogate = (loaded.freeze(),)  # in a tuple, so that PyTorch does not register its parameters
        self.ordinary = KeypointMSELoss(use_target_weight, skip_empty_channel)
        self.use_target_weight = use_target_weight
        self.skip_empty_channel = skip_empty_channel
        self.ordinary_weight = ordinary_weight
        self.uncertainty = UncertaintyWeights.of(loaded) if ordinary_weight == "learned" else None
        self.loss_weight = loss_weight

    @property
    def surrogate(self) -> SurrogateLoss:
        """The frozen surrogate."""
        return self._surrogate[0]

    def forward(
        self, output: Tensor, target: Tensor, target_weights: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Return the loss of heatmaps.

        Args:
            output: [B, K, H, W] heatmaps.
            target: [B, K, H, W] target heatmaps.
            target_weights: [B, K] weights of the joints, or [B, K, H, W] of the pixels; all 1 by default.
            mask: [B, K, H, W] or [B, 1, H, W], 1 for pixels that count and 0 for others; all 1 by default.

        Raises:
            ValueError: the shapes do not agree, or the surrogate is for heatmaps of another size.
        """
        _check_weights(target, target_weights, mask)
        target_weights = target_weights if self.use_target_weight else None
        joints, pixels = _weights(target, target_weights, mask)
        if self.skip_empty_channel:
            joints = joints * (target != 0).flatten(2).any(-1)
        # A pixel's weight is the factor of its squared error. Without any, a pixel counts as right.
        seen = output if pixels is None else target + pixels.sqrt() * (output - target)
        loss = self.surrogate.to(output.device)(seen, target, joints.to(output.dtype))
        if self.ordinary_weight:
            ordinary = self.ordinary(output.float(), target, target_weights, mask)
            if self.uncertainty is not None:
                loss = self.uncertainty(loss, ordinary)
            else:
                loss = loss + self.ordinary_weight * ordinary
        return self.loss_weight * loss


def _check_weights(target: Tensor, target_weights: Tensor | None, mask: Tensor | None) -> None:
    """Raise ValueError unless the shapes of the weights and the mask fit the target [B, K, H, W]. None always fits."""
    shape = target.shape
    if target_weights is not None and target_weights.shape not in (shape, shape[:2]):
        raise ValueError(f"target_weights must be {list(shape[:2])} or {list(shape)}, not {list(target_weights.shape)}")
    if mask is not None and mask.shape not in (shape, (shape[0], 1, *shape[2:])):
        raise ValueError(f"mask must be [{shape[0]}, 1, *{list(shape[2:])}] or {list(shape)}, not {list(mask.shape)}")


def _weights(target: Tensor, target_weights: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return the weights of the joints [B, K] and, unless all are 1, of the pixels [B, K, H, W].

    A joint without a pixel that counts has the weight 0.
    """
    joints = target.new_ones(target.shape[:2])
    pixels = None if mask is None else mask.to(target.dtype).expand_as(target)
    if target_weights is not None and target_weights.dim() == 4:
        pixels = target_weights if pixels is None else pixels * target_weights
    elif target_weights is not None:
        joints = target_weights
    if pixels is not None:
        joints = joints * (pixels != 0).flatten(2).any(-1)
    return joints, pixels
