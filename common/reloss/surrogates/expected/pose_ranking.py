"""Whether the confidence of a person tells how good its pose is, in expectation, and the surrogate that sees it.

COCO's average precision ranks all persons by their confidence. A good pose with a low confidence comes late, a bad one
with a high confidence comes early, and both cost precision. So a loss for AP must see the order of the confidences next
to the order of the poses' quality, which is their expected OKS.

Source of the idea: Keles et al. (2025), RSPose: Ranking Based Losses for Human Pose Estimation.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from reloss.metrics.keypoints import confidences
from reloss.surrogates.expected import pose
from reloss.surrogates.expected.pose import ExpectedPose
from reloss.surrogates.pose import visible


def expected_quality(log_oks: Tensor, is_visible: Tensor) -> Tensor:
    """Return the expected OKS of each person: log_oks [..., K] of its joints, is_visible [..., K] -> [...].

    It is the mean over the visible joints; 0 if there are none.
    """
    return (log_oks.exp() * is_visible).sum(-1) / is_visible.sum(-1).clamp(min=1)


def agreement(confidence: Tensor, quality: Tensor, counts: Tensor, sharpness: Tensor | float) -> Tensor:
    """Return how well each person's confidence agrees with its quality, compared with the other persons of its item.

    Of two persons, the better one should have the higher confidence; it does with the log-probability
    log sigmoid(sharpness * difference of the confidences). The result is the mean over the other persons, in which a
    pair weighs as much as the qualities differ. No gradient flows through the qualities: agreement should come from the
    confidence, not from poses that are equally bad.

    Args:
        confidence: [..., B].
        quality: [..., B].
        counts: [..., B], true for the persons that count.
        sharpness: factor of the differences.

    Returns:
        [..., B], at most 0; 0 for a person without others to compare with.
    """
    quality = quality.detach()
    lead = quality[..., :, None] - quality[..., None, :]
    weights = lead.abs() * (counts[..., :, None] & counts[..., None, :])
    log_p = F.logsigmoid(sharpness * lead.sign() * (confidence[..., :, None] - confidence[..., None, :]))
    total = weights.sum(-1)
    return (log_p * weights).sum(-1) / total.where(total > 0, 1)


class ExpectedPoseRanking(ExpectedPose):
    """The surrogate for COCO's average precision: that of poses, which also sees how confidence and quality agree.

    Each joint has one more feature, the `agreement` of its person. The confidence is mmpose's, see
    `reloss.metrics.keypoints.confidences`. An item should be a batch of many persons. Arguments: see `ExpectedPose`.
    """

    FEATURES: ClassVar[tuple[str, ...]] = (*pose.FEATURES, "agreement_of_confidence")

    def features(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the features of each joint: heatmaps [N, B, K, H, W] twice -> [N, B, K, 7], in order of `FEATURES`.

        Raises:
            ValueError: the shapes do not agree.
        """
        features = super().features(outputs, targets)
        is_visible = visible(targets)
        quality = expected_quality(features[..., pose.FEATURES.index("log_expected_oks")], is_visible)
        agreements = agreement(confidences(outputs), quality, is_visible.any(-1), self.current_sharpness())
        return torch.cat((features, agreements[..., None, None].expand(*features.shape[:-1], 1)), -1)
