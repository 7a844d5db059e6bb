"""Expected counts of masks: how many pixels of a class a model finds, and how many it takes for one.

Dice and intersection over union are formulas of three counts for each image and class: pixels of the class, pixels
predicted as the class, and pixels that are both. If each pixel gets a class at random with its predicted probability,
the expectations of these counts are sums of probabilities. Cross-entropy adds up pixels one by one, so a small object
hardly counts in it; in these ratios it counts as much as a large one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from reloss.metrics.segmentation import check_mask_shapes, check_masks, is_labelled
from reloss.surrogates.checks import warn_of_probabilities, widen
from reloss.surrogates.expected.base import ExpectedLoss, ExpectedMetric

LARGEST = 1e4  # bounds the size of logits
SMALLEST = 1e-6  # bounds the ratios of counts from below, and counts of pixels
CHUNK = 1 << 16  # logits in the cache at a time
LOG_WORST = math.log(1e-3)  # logarithm of a ratio that is 0 by definition, as in `reloss.surrogates.expected.sets`

NAMES = (
    "log_precision",
    "log_recall",
    "log_dice",
    "log_specificity",
    "mean_log_p_class",
    "mean_log_p_others",
    "share_of_class",
    "share_of_others",
)
FEATURES = (*NAMES, *(f"pooled_{name}" for name in NAMES))


class PixelSums(NamedTuple):
    """Sums over the pixels that count, each [..., C]: one number for each class."""

    hits: Tensor
    """Probability of the class, over its own pixels: expected true positives."""
    area: Tensor
    """Probability of the class, over all pixels: expected predicted positives."""
    log_p: Tensor
    """Log-likelihood of the pixels of the class."""
    log_p_others: Tensor
    """Log-likelihood of all other pixels."""
    pixels: Tensor
    """Number of pixels of the class."""
    others: Tensor
    """Number of all other pixels."""

    def pooled(self) -> PixelSums:
        """Return the sums over all images of an item: [N, B, C] -> [N, 1, C]."""
        return PixelSums(*(part.sum(1, keepdim=True) for part in self))


class _ForegroundSums(torch.autograd.Function):
    """Six sums of each row of logits [M, P] with targets [M, P]: [M, 6].

    They are the sums over the pixels of the foreground of p and log p, over those of the background of p and
    log(1 - p), for p = sigmoid(logits), and the numbers of both. Rows are computed in chunks, which stay in the cache,
    with a gradient in closed form: this takes a quarter of the time of autograd. Logits are clamped to +-LARGEST, but
    their gradient is not 0 beyond.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        ctx.save_for_backward(logits, targets)
        return torch.cat([_foreground_sums(*rows) for rows in _chunks(logits, targets)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        logits, targets = ctx.saved_tensors
        if torch.is_grad_enabled():  # for second derivatives: let autograd differentiate the sums
            (result,) = torch.autograd.grad(_foreground_sums(logits, targets), logits, gradient, create_graph=True)
            return result, None
        result = torch.empty_like(logits)
        for x, labels, rows, out in _chunks(logits, targets, gradient, result):
            hit, log_p, false, log_q, *_ = rows[:, :, None].unbind(1)
            p = x.sigmoid()
            q = 1 - p
            # d p / d x = p q, d log p / d x = q, d log q / d x = -p
            torch.mul((hit * p).add_(log_p).mul_(q), (labels == 1).to(p.dtype), out=out)
            out.addcmul_((false * q).sub_(log_q).mul_(p), (labels == 0).to(p.dtype))
        return result, None


def _foreground_sums(logits: Tensor, targets: Tensor) -> Tensor:
    logits = logits.clamp(-LARGEST, LARGEST)
    log_p = F.logsigmoid(logits)
    p, log_q = logits.sigmoid(), log_p - logits
    positive, negative = ((targets == label).to(p.dtype) for label in (1, 0))
    parts = (p * positive, log_p * positive, p * negative, log_q * negative, positive, negative)
    return torch.stack([part.sum(-1) for part in parts], -1)


class _ClassSums(torch.autograd.Function):
    """Three sums of each class in each row of logits [M, C, P], targets [M, P]: [M, C, 3].

    They are the sums over the pixels of the class of p and log p, and the sum over all labelled pixels of p, for
    p = softmax(logits). Targets that are no class do not count. Computed as `_ForegroundSums` is.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        ctx.save_for_backward(logits, targets)
        return torch.cat([_class_sums(*rows) for rows in _chunks(logits, targets)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        logits, targets = ctx.saved_tensors
        if torch.is_grad_enabled():
            (result,) = torch.autograd.grad(_class_sums(logits, targets), logits, gradient, create_graph=True)
            return result, None
        result = torch.empty_like(logits)
        for x, labels, rows, out in _chunks(logits, targets, gradient, result):
            own, weights = _own_classes(labels, x.shape[1])
            hit, log_p, area = rows.unbind(-1)
            p = x.clamp(-LARGEST, LARGEST).softmax(1)
            # With the coefficients h, l, a of a pixel's class y: p_k (a_k - sum_j a_j p_j - h p_y - l) for each class
            # k, and h p_y + l once more for k = y.
            target = hit.gather(1, own).mul_(p.gather(1, own[:, None])[:, 0]).add_(log_p.gather(1, own)).mul_(weights)
            mean = (area[:, None] @ p)[:, 0].mul_(weights).add_(target)
            torch.mul((area[:, :, None] * weights[:, None]).sub_(mean[:, None]), p, out=out)
            out.scatter_add_(1, own[:, None], target[:, None])
        return result, None


def _class_sums(logits: Tensor, targets: Tensor) -> Tensor:
    own, weights = _own_classes(targets, logits.shape[1])
    logits = logits.clamp(-LARGEST, LARGEST)
    total = logits.logsumexp(1)
    log_p = logits.gather(1, own[:, None])[:, 0] - total
    area = ((logits - total[:, None]).exp() * weights[:, None]).sum(-1)
    zeros = torch.zeros_like(area)
    hits, likelihood = (zeros.scatter_add(1, own, values * weights) for values in (log_p.exp(), log_p))
    return torch.stack((hits, likelihood, area), -1)


def _own_classes(targets: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return targets [M, P] that can be gathered, and 1 for those that count, else 0."""
    labelled = (targets >= 0) & (targets < classes)
    return targets * labelled, labelled.to(torch.get_default_dtype())


def _chunks(logits: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield a few rows of each tensor at a time."""
    rows = max(1, CHUNK // max(logits[0].numel(), 1)) if len(logits) else 1
    return zip(*(tensor.split(rows) for tensor in (logits, *others)), strict=True)


def compact_targets(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the targets of each image: logits [N, B, C, H, W], masks -> [N, B, P] in int64; in int8 if C = 1.

    As int8, 255 is -1, which is as little a class.
    """
    targets = targets.long() if targets.is_floating_point() else targets
    dtype = torch.int8 if outputs.shape[2] == 1 else torch.int64
    return targets.to(dtype).reshape(*outputs.shape[:2], -1)


def foreground_sums(outputs: Tensor, targets: Tensor) -> PixelSums:
    """Return the sums of the foreground of each image: logits and targets [N, B, P] -> [N, B, 1] each."""
    sums: Tensor = _ForegroundSums.apply(outputs.flatten(0, 1), targets.flatten(0, 1))
    hits, log_p, false, log_q, pixels, others = sums.view(*outputs.shape[:2], 6).split(1, -1)
    return PixelSums(hits, hits + false, log_p, log_q, pixels, others)


def class_sums(outputs: Tensor, targets: Tensor) -> PixelSums:
    """Return the sums of each class of each image: logits [N, B, C, P], targets [N, B, P] -> [N, B, C] each."""
    sums: Tensor = _ClassSums.apply(outputs.flatten(0, 1), targets.flatten(0, 1))
    hits, log_p, area = sums.view(*outputs.shape[:3], 3).unbind(-1)
    pixels = class_sizes(targets, outputs.shape[2]).to(outputs.dtype)
    others = (sums.sum(-1, keepdim=True) - sums for sums in (log_p, pixels))
    return PixelSums(hits, area, log_p, next(others), pixels, next(others))


def class_sizes(targets: Tensor, classes: int) -> Tensor:
    """Return the number of pixels of each class of each image: targets [N, B, P] in int64 -> [N, B, C] in int64."""
    labelled = (targets >= 0) & (targets < classes)
    images = torch.arange(targets.shape[0] * targets.shape[1], device=targets.device).view(*targets.shape[:2], 1)
    # Pixels that do not count are counted in an extra class.
    index = targets.where(labelled, classes) + images * (classes + 1)
    counts = index.flatten().bincount(minlength=images.numel() * (classes + 1))
    return counts.view(*targets.shape[:2], classes + 1)[..., :classes]


def pixel_features(sums: PixelSums) -> Tensor:
    """Return eight features of each image and class: sums [..., C] -> [..., C, 8], in the order of `NAMES`.

    Logarithms of precision, recall, Dice and specificity of the expected counts, mean log-likelihoods, and shares of
    the pixels, which do not depend on the outputs. Without pixels of a class, its recall is 1, its precision is
    log(0.001), and its Dice is 1 / (1 + expected predicted pixels). Without other pixels, specificity is 1.
    """
    empty, full = sums.pixels == 0, sums.others == 0
    log_precision = _log_ratio(sums.hits, sums.area).masked_fill(empty, LOG_WORST)
    log_recall = _log_ratio(sums.hits, sums.pixels).masked_fill(empty, 0)
    log_dice = torch.where(empty, -sums.area.log1p(), _log_ratio(2 * sums.hits, sums.area + sums.pixels))
    rejected = sums.others - (sums.area - sums.hits)
    log_specificity = _log_ratio(rejected, sums.others).masked_fill(full, 0)
    means = (sums.log_p / sums.pixels.clamp(min=1), sums.log_p_others / sums.others.clamp(min=1))
    total = (sums.pixels + sums.others).clamp(min=1)
    shares = (sums.pixels / total, sums.others / total)
    return torch.stack((log_precision, log_recall, log_dice, log_specificity, *means, *shares), -1)


def _log_ratio(part: Tensor, whole: Tensor) -> Tensor:
    """Return log(part / whole), from the logarithm of SMALLEST to 0; constant below it."""
    return (part / whole.clamp(min=SMALLEST)).clamp(SMALLEST, 1).log()


def expected_dice(features: Tensor) -> Tensor:
    """Return the Dice score of the expected counts of an image and class: features [..., F] -> [...]."""
    return _column(features, "log_dice").exp()


def expected_iou(features: Tensor) -> Tensor:
    """Return the intersection over union of the expected counts of an image and class: [..., F] -> [...]."""
    return _iou(features, "")


def expected_pooled_iou(features: Tensor) -> Tensor:
    """Return the intersection over union of the expected counts of a class in an item: [..., F] -> [...]."""
    return _iou(features, "pooled_")


def _iou(features: Tensor, prefix: str) -> Tensor:
    score = _column(features, f"{prefix}log_dice").exp()
    return torch.where(_column(features, f"{prefix}share_of_class") > 0, score / (2 - score), score)


def _column(features: Tensor, name: str) -> Tensor:
    return features[..., FEATURES.index(name)]


class ExpectedMasks(ExpectedLoss):
    """The surrogate for metrics of masks, over expected counts of pixels.

    Takes logits [B, C, H, W] and masks [B, H, W] of classes from 0 to C - 1; or logits of one foreground [B, 1, H, W]
    and masks [B, H, W] or [B, 1, H, W] of 0 and 1. Pixels of -100 do not count, nor do those of 255, unless 255 is a
    class. Classes of a floating dtype are accepted.

    The groups are images times classes. A class counts in an image where it occurs: its false positives elsewhere are
    missed by the classes that do occur there. The foreground counts in every image with a labelled pixel, also where
    it does not occur, so that false alarms are seen. Each group sees the counts of its image and those of its class
    pooled over all images of the item, as in the mean IoU of a data set.

    Loss and gradient are finite for logits of any size, also where -inf masks a class; logits are clamped to +-1e4. An
    item without labelled pixels has loss 0. With `metric="mean_iou"`, each class that occurs in the item counts the
    same. The expected Dice of an image without foreground is 1 / (1 + expected predicted pixels); the metric's is 0 as
    soon as a pixel is predicted. The arguments are those of `ExpectedLoss`.
    """

    takes_logits = True
    FEATURES: ClassVar[tuple[str, ...]] = FEATURES

    EXPECTED: ClassVar[Mapping[str, ExpectedMetric]] = {
        "dice": expected_dice,
        "mask_iou": expected_iou,
        "mean_iou": expected_pooled_iou,
    }

    @classmethod
    def expected_arguments(cls, shape: Sequence[int]) -> dict[str, Any]:
        """Return no arguments: the shape [C, H, W] of one example's outputs decides nothing.

        Raises:
            ValueError: the outputs have another number of axes.
        """
        if len(shape) != 3:
            raise ValueError(f"expected logits [C, H, W] of an example, not {list(shape)}")
        return {}

    def features(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the features of each image and class.

        Args:
            outputs: [N, B, C, H, W] logits.
            targets: [N, B, H, W] masks; also [N, B, 1, H, W] if C = 1.

        Returns:
            [N, B, C, 16], in the order of `FEATURES`.

        Raises:
            ValueError: the shapes do not agree.
        """
        check_mask_shapes(outputs, targets)
        targets = compact_targets(outputs, targets)
        outputs = outputs.flatten(3)
        sums = foreground_sums(outputs[:, :, 0], targets) if outputs.shape[2] == 1 else class_sums(outputs, targets)
        each, pooled = pixel_features(sums), pixel_features(sums.pooled())
        return torch.cat((each, pooled.expand_as(each)), -1)

    def best_features(self) -> Tensor:
        """Return the largest value of each feature [F]: 0 for logarithms, 1 for shares."""
        return torch.tensor([float("share_of" in name) for name in self.FEATURES], dtype=self.dtype)

    def group_weights(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return how much each image and class counts: [N, B, C]; see the class."""
        targets = compact_targets(outputs, targets)
        if outputs.shape[2] == 1:
            occurs = ((targets == 0) | (targets == 1)).any(-1, keepdim=True)
        else:
            occurs = class_sizes(targets, outputs.shape[2]) > 0
        weights = occurs.to(torch.promote_types(self.dtype, torch.float32))
        if self.metric == "mean_iou":
            weights = weights / weights.sum(1, keepdim=True).clamp(min=1)
        return weights

    def reduce(self, losses: Tensor, group_weights: Tensor | None) -> Tensor:
        """Return the weighted mean over the groups, times the scale: losses and weights [N, B, C] -> [N]."""
        assert group_weights is not None
        total = group_weights.flatten(1).sum(-1)
        return self.scale * (losses * group_weights).flatten(1).sum(-1) / total.where(total > 0, 1)

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise ValueError unless these are logits and masks as in `features`, with classes in range."""
        check_masks(outputs, targets)
        pixels = outputs.flatten() if outputs.shape[2] == 1 else outputs.movedim(2, -1).flatten(0, -2)
        warn_of_probabilities(pixels)

    @staticmethod
    def ordinary_loss(outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the (binary) cross-entropy of each item, the mean over the pixels that count: [N]."""
        check_mask_shapes(outputs, targets)
        items, _, classes = outputs.shape[:3]
        outputs = widen(outputs).flatten(0, 1).flatten(2)
        targets = targets.long().reshape(len(outputs), -1)
        labelled = is_labelled(targets, classes)
        labels = targets.where(labelled, 0)
        if classes == 1:
            losses = F.binary_cross_entropy_with_logits(outputs[:, 0], labels.to(outputs.dtype), reduction="none")
        else:
            losses = F.cross_entropy(outputs, labels, reduction="none")
        losses, labelled = (values.view(items, -1) for values in (losses.where(labelled, 0), labelled))
        return losses.sum(-1) / labelled.sum(-1).clamp(min=1)
