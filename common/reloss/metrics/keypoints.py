"""Metrics of joints in an image.

Both metrics turn the distance of a joint to its target into a score. PCK counts the joints nearer than a threshold; OKS
lets the score fall off smoothly with the distance, relative to the size of the person and the precision of human
annotators. Coordinates are (x, y), and a joint counts if its third target number, its visibility, is above 0.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from reloss.metrics.shapes import check_shapes

# For each joint of COCO, from nose to ankles: the standard deviation of annotators relative to the size of the person.
# Source: https://cocodataset.org/#keypoints-eval, and `kpt_oks_sigmas` in pycocotools/cocoeval.py of cocoapi.
COCO_SIGMAS = (
    *(0.026, 0.025, 0.025, 0.035, 0.035),
    *(0.079, 0.079, 0.072, 0.072, 0.062, 0.062),
    *(0.107, 0.107, 0.087, 0.087, 0.089, 0.089),
)

SURE = 0.2  # a joint counts for the confidence of a person if its heatmap exceeds this value


def decode_heatmaps(heatmaps: Tensor, *, refine: bool = True) -> Tensor:
    """Return the coordinates of the largest value of each heatmap; equal to `MSRAHeatmap.decode` of mmpose 1.1.

    Args:
        heatmaps: [..., H, W]; of equal largest values, the first is taken.
        refine: shift by 0.25 towards the larger neighbour in x and in y (`refine_keypoints` of mmpose). A coordinate is
            not shifted if it is 0, 1 or the last one, or if the other coordinate is 0.

    Returns:
        [..., 2] float32 (x, y) in pixels of the heatmap; (-1, -1) for a heatmap without a positive value.

    Raises:
        ValueError: heatmaps have fewer than two dimensions, or no pixel.
    """
    if heatmaps.dim() < 2 or 0 in heatmaps.shape[-2:]:
        raise ValueError(f"expected heatmaps [..., H, W] with H, W >= 1, not {list(heatmaps.shape)}")
    height, width = heatmaps.shape[-2:]
    pixels = heatmaps.detach().flatten(-2)
    largest, index = pixels.max(-1, keepdim=True)
    x, y = index % width, index // width
    points = torch.cat([x, y], -1).float()
    if refine:

        def slope(step: int) -> Tensor:
            after, before = ((index + offset).clamp(0, height * width - 1) for offset in (step, -step))
            return (pixels.gather(-1, after) - pixels.gather(-1, before)).sign()

        inside = torch.cat([(x > 1) & (x < width - 1) & (y > 0), (y > 1) & (y < height - 1) & (x > 0)], -1)
        points += 0.25 * torch.cat([slope(1), slope(width)], -1).where(inside, 0)
    return points.where(largest > 0, -1)


def pck(outputs: Tensor, targets: Tensor, *, threshold: float, norm: Tensor) -> Tensor:
    """Return the percentage of correct keypoints: the share of visible joints nearer to their target than a threshold.

    Source: Yang and Ramanan, "Articulated human detection with flexible mixtures of parts", PAMI 2013.

    Args:
        outputs: [N, B, K, 2] coordinates.
        targets: [N, B, K, 3] coordinates and visibility.
        threshold: a joint is correct if its distance, divided by `norm`, is smaller.
        norm: [N, B] lengths, for example of a head or torso, or [N, B, 2] widths and heights, for example of a box. An
            example whose norm is not positive is skipped.

    Returns:
        [N] in [0, 1], the mean over all visible joints of an item; 0 for an item without visible joints. mmpose's
        `keypoint_pck_accuracy` averages over each of the K joints first, then over the joints.

    Raises:
        ValueError: the shapes do not agree.
    """
    norm = norm[..., None].expand(*norm.shape, 2) if norm.dim() == 2 else norm
    check_shapes({"outputs [N, B, K, 2]": outputs, "targets [N, B, K, 3]": targets, "norm [N, B, 2]": norm})
    distances = ((outputs - targets[..., :2]) / norm[..., None, :]).norm(dim=-1)
    visible = (targets[..., 2] > 0) & (norm > 0).all(-1, keepdim=True)
    correct = visible & (distances < threshold)
    return correct.sum((1, 2)) / visible.sum((1, 2)).clamp(min=1)


def heatmap_pck(outputs: Tensor, targets: Tensor, *, threshold: float = 0.05) -> Tensor:
    """Return `pck` of the largest value of each heatmap, unrefined, with distances relative to the heatmap's size.

    Equal to mmpose's `pose_pck_accuracy` with `normalize=[[W, H]]`, except for the mean (see `pck`). mmpose's default
    is [[H, W]], which divides x by the height and y by the width.

    Args:
        outputs: [N, B, K, H, W] heatmaps; one without a positive value is decoded to (-1, -1).
        targets: [N, B, K, H, W] heatmaps; a joint without a positive value is not visible.
        threshold: the distance below which a joint is correct, as a fraction of width and height.

    Returns:
        [N] in [0, 1], the mean over all visible joints of an item; 0 for an item without visible joints.

    Raises:
        ValueError: the shapes do not agree.
    """
    check_shapes({"outputs [N, B, K, H, W]": outputs, "targets [N, B, K, H, W]": targets})
    height, width = targets.shape[-2:]
    visible = (targets.amax((-2, -1)) > 0)[..., None]
    joints = torch.cat([decode_heatmaps(targets, refine=False), visible], -1)
    norm = joints.new_tensor([width, height]).expand(*joints.shape[:2], 2)
    return pck(decode_heatmaps(outputs, refine=False), joints, threshold=threshold, norm=norm)


def heatmap_oks(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return `oks` of the largest value of each heatmap, for COCO's joints, refined as mmpose does.

    A heatmap does not contain the person's area. It is estimated as 0.53 of the person's box, as mmpose's `CocoMetric`
    does for data without areas. The box is the heatmap without mmpose's crop margin, a factor of 1.25 in each
    direction.

    Args:
        outputs: [N, B, 17, H, W] heatmaps.
        targets: [N, B, 17, H, W] heatmaps; a joint without a positive value is not visible.

    Returns:
        [N] in [0, 1]; 0 for an item without visible joints.

    Raises:
        ValueError: the shapes do not agree.
    """
    check_shapes({"outputs [N, B, 17, H, W]": outputs, "targets [N, B, 17, H, W]": targets})
    visible = (targets.amax((-2, -1)) > 0)[..., None]
    joints = torch.cat([decode_heatmaps(targets), visible], -1)
    height, width = targets.shape[-2:]
    areas = joints.new_full(joints.shape[:2], 0.53 * height * width / 1.25**2)
    return oks(decode_heatmaps(outputs), joints, areas)


def heatmap_ap(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return COCO's average precision of persons who are each alone in an image, with one detection for each.

    A detection is right if its OKS reaches a threshold. AP ranks all detections by confidence and averages precision
    over 101 recalls and ten thresholds, from 0.5 to 0.95. So it depends on whether the confidence tells good poses from
    bad ones. Equal to xtcocotools' `COCOeval`; persons, OKS and decoding are those of `heatmap_oks`. The confidence is
    that of mmpose's `CocoMetric`, see `confidences`.

    Args:
        outputs: [N, B, 17, H, W] heatmaps.
        targets: [N, B, 17, H, W] heatmaps; a joint without a positive value is not visible.

    Returns:
        [N] in [0, 1]; 0 for an item without visible joints. Persons without visible joints do not count.

    Raises:
        ValueError: the shapes do not agree.
    """
    check_shapes({"outputs [N, B, 17, H, W]": outputs, "targets [N, B, 17, H, W]": targets})
    counted = (targets.amax((-2, -1)) > 0).any(-1)
    similarities = heatmap_oks(outputs.flatten(0, 1)[:, None], targets.flatten(0, 1)[:, None]).view(counted.shape)
    scores = confidences(outputs).double().masked_fill(~counted, -1)
    order = scores.argsort(dim=-1, descending=True, stable=True)
    similarities, counted = similarities.gather(-1, order), counted.gather(-1, order)
    thresholds = torch.linspace(0.5, 0.95, 10, dtype=torch.float64, device=outputs.device)
    right = (similarities[:, None] >= thresholds[:, None]) & counted[:, None]  # [N, 10, B]
    found = right.cumsum(-1).double()
    precision = found / torch.arange(1, right.shape[-1] + 1, device=outputs.device)
    precision = precision.flip(-1).cummax(-1).values.flip(-1)  # the best precision at this recall or a higher one
    recall = found / counted.sum(-1).clamp(min=1)[:, None, None]
    levels = torch.linspace(0, 1, 101, dtype=torch.float64, device=outputs.device).expand(*recall.shape[:2], 101)
    place = torch.searchsorted(recall.contiguous(), levels.contiguous())
    reached = place < recall.shape[-1]
    return (precision.gather(-1, place.clamp(max=recall.shape[-1] - 1)) * reached).mean((1, 2)).float()


def confidences(heatmaps: Tensor) -> Tensor:
    """Return the confidence of each person, as mmpose's `CocoMetric` computes it for a box of confidence 1.

    It is the mean of the largest values of those joints whose largest value is above 0.2, or 0 if there are none:
    heatmaps [..., K, H, W] -> [...].
    """
    largest = heatmaps.amax((-2, -1))
    sure = largest > SURE
    return (largest * sure).sum(-1) / sure.sum(-1).clamp(min=1)


def oks(outputs: Tensor, targets: Tensor, areas: Tensor, sigmas: Sequence[float] | Tensor = COCO_SIGMAS) -> Tensor:
    """Return the mean object keypoint similarity of the examples with a visible joint, as `computeOks` of COCO.

    The similarity of an example is the mean of exp(-d^2 / (2 area (2 sigma)^2)) over its visible joints, where d is the
    distance of a joint to its target.

    Args:
        outputs: [N, B, K, 2] coordinates.
        targets: [N, B, K, 3] coordinates and visibility.
        areas: [N, B] areas of the persons in squared units of the coordinates, at least 0.
        sigmas: [K], the tolerance of each joint relative to the size of the person.

    Returns:
        [N] in [0, 1]; 0 for an item without visible joints.

    Raises:
        ValueError: the shapes do not agree.
    """
    sigmas = torch.as_tensor(sigmas, dtype=torch.float64, device=outputs.device)
    shapes = {"outputs [N, B, K, 2]": outputs, "targets [N, B, K, 3]": targets, "areas [N, B]": areas}
    check_shapes({**shapes, "sigmas [K]": sigmas})
    visible = targets[..., 2] > 0
    squared_distances = (outputs.double() - targets[..., :2].double()).square().sum(-1)
    # COCO adds the machine epsilon, so that an exact joint of a person of area 0 does not give 0 / 0.
    spread = 2 * (areas.double()[..., None] + torch.finfo(torch.float64).eps) * (2 * sigmas).square()
    similarity = (-squared_distances / spread).exp().where(visible, 0).sum(-1) / visible.sum(-1).clamp(min=1)
    return (similarity.sum(-1) / visible.any(-1).sum(-1).clamp(min=1)).float()
