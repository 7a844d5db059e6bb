"""Where a heatmap puts a joint, in expectation: the probability of a hit within several radii, and the expected OKS.

PCK and OKS see a heatmap's largest value only, which passes no gradient. Under the softmax of the heatmap, each pixel
is the joint with some probability. The expected share of hits is then the probability within the radius, and it says
how sure the heatmap is to be near the joint, which the mean squared error does not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reloss.metrics.keypoints import COCO_SIGMAS
from reloss.surrogates.base import bounded
from reloss.surrogates.checks import check_heatmaps
from reloss.surrogates.expected.base import ExpectedLoss, ExpectedMetric
from reloss.surrogates.expected.sums import log_of_sum
from reloss.surrogates.pose import JointLoss

RADII = (0.025, 0.05, 0.1, 0.2)  # fractions of width and height; `heatmap_pck` asks for a distance below 0.05
BODY_SIGMA = sum(COCO_SIGMAS[5:]) / len(COCO_SIGMAS[5:])  # mean of COCO's joints without those of the face
SMALLEST_POWER = 1e-12  # of a heatmap; the error relative to less is not finite
FEATURES = (*(f"log_mass_{radius}" for radius in RADII), "log_expected_oks", "minus_relative_error")


def offsets_to_joints(targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return how far each column and each row is from the joint, the largest value of its target heatmap, in pixels.

    Args:
        targets: [..., H, W]; of equal largest values, the first is taken.

    Returns:
        Offsets in x [..., W] and in y [..., H].
    """
    height, width = targets.shape[-2:]
    joint = targets.flatten(-2).argmax(-1)[..., None]
    columns, rows = (torch.arange(length, device=targets.device) for length in (width, height))
    return columns - joint % width, rows - joint // width


def log_probabilities(heatmaps: Tensor, sharpness: Tensor | float) -> Tensor:
    """Return log softmax(sharpness * heatmap) over the pixels of each heatmap: [..., H, W] -> [..., H, W]."""
    return (sharpness * heatmaps.flatten(-2)).log_softmax(-1).view(heatmaps.shape)


def log_masses(log_p: Tensor, targets: Tensor) -> Tensor:
    """Return the log-probability that a joint is nearer to its target than each of `RADII`.

    The distance is the one of `heatmap_pck`: x is divided by the width of the heatmap, y by its height. Computed from
    logarithms, so that probabilities that round to 0 keep value and gradient; and only from the pixels within the
    largest radius.

    Args:
        log_p: [..., H, W] log-probability of each pixel.
        targets: [..., H, W] target heatmaps.

    Returns:
        [..., 4], at most 0.
    """
    height, width = targets.shape[-2:]
    reach_x, reach_y = (math.ceil(RADII[-1] * length) for length in (width, height))
    columns, rows = (torch.arange(2 * reach + 1, device=log_p.device) for reach in (reach_x, reach_y))
    window = torch.cartesian_prod(rows, columns)  # the pixels around a joint, from the corner of the window, [P, 2]
    distances = torch.hypot((window[:, 1] - reach_x) / width, (window[:, 0] - reach_y) / height)
    outside = distances >= distances.new_tensor(RADII)[:, None]  # [4, P]
    padded = F.pad(log_p, (reach_x, reach_x, reach_y, reach_y), value=-math.inf)
    joint = targets.flatten(-2).argmax(-1, keepdim=True)
    pixels = (joint // width + window[:, 0]) * padded.shape[-1] + joint % width + window[:, 1]
    near = padded.flatten(-2).gather(-1, pixels)
    masses = log_of_sum(near[..., None, :], ~outside)
    return masses.clamp(max=0)  # rounding can exceed 0


def log_expected_oks(log_p: Tensor, targets: Tensor) -> Tensor:
    """Return the logarithm of the expected OKS of each joint: log_p and targets [..., K, H, W] -> [..., K].

    The OKS of a joint is exp(-d^2 / (2 area (2 sigma)^2)) at the distance d from its target, in whole pixels. The area
    is that of `heatmap_oks`: 0.53 of the person's box, and the heatmap is that box enlarged by 1.25. With 17 joints,
    the sigmas are COCO's. Other sets of joints have no published sigmas: each joint gets 0.08, the mean of COCO's
    joints of the body.
    """
    joints, height, width = targets.shape[-3:]
    area = 0.53 * height * width / 1.25**2
    sigmas = COCO_SIGMAS if joints == len(COCO_SIGMAS) else (BODY_SIGMA,) * joints
    spread = 2 * area * (2 * log_p.new_tensor(sigmas)[:, None]).square()  # [K, 1]
    x, y = (offset.square() / spread for offset in offsets_to_joints(targets))
    return log_of_sum((log_p - x[..., None, :] - y[..., :, None]).flatten(-2)).clamp(max=0)


def minus_relative_error(heatmaps: Tensor, targets: Tensor) -> Tensor:
    """Return minus the squared error relative to an empty heatmap's: [..., H, W] twice -> [...].

    It is 0 for the target itself, -1 where all values are 0, and 0 for an invisible joint's empty target.
    """
    power = targets.square().sum((-2, -1))
    errors = (heatmaps - targets).square().sum((-2, -1))
    return (-errors / power.where(power > 0, 1).clamp(min=SMALLEST_POWER)).where(power > 0, 0)


def expected_pck(features: Tensor) -> Tensor:
    """Return the probability of a hit within 0.05, the threshold of `heatmap_pck`: features [..., F] -> [...]."""
    return features[..., RADII.index(0.05)].exp()


def expected_oks(features: Tensor) -> Tensor:
    """Return the expected OKS of each joint: features [..., F] -> [...]."""
    return features[..., FEATURES.index("log_expected_oks")].exp()


class ExpectedPose(JointLoss, ExpectedLoss):
    """The surrogate for pose, over the probability that each joint's heatmap gives to places near the joint.

    Takes heatmaps [B, K, H, W] twice, of any size. Unlike mmpose's losses, the mean is over the visible joints of an
    item (or weighted, with the weights passed), as in PCK. Over all joints, the loss would also rank items by their
    share of visible joints. The loss is 0 without a visible joint.

    Args:
        metric: see `ExpectedLoss`; `heatmap_pck` or `heatmap_oks` (in whole pixels) need no learning.
        width: units of the hidden layers.
        scale: see `SurrogateLoss`.
        sharpness: factor of the heatmaps before the softmax, positive; a fit learns it, starting here. At 20, a heatmap
            as mmpose asks for, with values from 0 to 1, has nearly all its probability around the joint.

    Raises:
        ValueError: there is no formula for the metric, or a width, scale or sharpness is not positive.
    """

    FEATURES: ClassVar[tuple[str, ...]] = FEATURES

    EXPECTED: ClassVar[Mapping[str, ExpectedMetric]] = {"heatmap_pck": expected_pck, "heatmap_oks": expected_oks}

    def __init__(self, metric: str | None = None, width: int = 16, scale: float = 1.0, sharpness: float = 20.0) -> None:
        super().__init__(metric, width, scale)
        if not 0 < sharpness < math.inf:
            raise ValueError(f"sharpness must be a positive number, not {sharpness}")
        self.sharpness = sharpness
        if metric is None:
            self.log_sharpness = nn.Parameter(torch.tensor(math.log(sharpness)))

    def current_sharpness(self) -> Tensor | float:
        """Return the factor of the heatmaps, as far as it is learned."""
        return self.sharpness if self.metric is not None else self.log_sharpness.exp()

    def features(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the features of each joint: heatmaps [N, B, K, H, W] twice -> [N, B, K, 6], in order of `FEATURES`.

        All are at most 0, and 0 for a perfect prediction.

        Raises:
            ValueError: the shapes do not agree.
        """
        check_heatmaps(outputs, targets)
        targets = bounded(targets.to(outputs.dtype))
        log_p = log_probabilities(outputs, self.current_sharpness())
        single = torch.stack((log_expected_oks(log_p, targets), minus_relative_error(outputs, targets)), -1)
        return torch.cat((log_masses(log_p, targets), single), -1)

    def reduce(self, losses: Tensor, group_weights: Tensor | None) -> Tensor:
        """Return the weighted mean over the joints, times the scale: losses and weights [N, B, K] -> [N]."""
        assert group_weights is not None
        weights = group_weights.to(losses.dtype)
        total = weights.sum((-2, -1))
        return self.scale * (losses * weights).sum((-2, -1)) / total.where(total > 0, 1)
