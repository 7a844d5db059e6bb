"""Metrics of joints in an image. Coordinates are (x, y); a joint counts where its third target number is above 0."""

from collections.abc import Sequence

import torch
from torch import Tensor

from reloss.metrics.shapes import check_shapes

# From nose to ankles, the standard deviations of annotators on each joint of COCO relative to the size of the person:
# https://cocodataset.org/#keypoints-eval, and `kpt_oks_sigmas` in cocoapi's pycocotools/cocoeval.py.
COCO_SIGMAS = (
    *(0.026, 0.025, 0.025, 0.035, 0.035),
    *(0.079, 0.079, 0.072, 0.072, 0.062, 0.062),
    *(0.107, 0.107, 0.087, 0.087, 0.089, 0.089),
)


def decode_heatmaps(heatmaps: Tensor, *, refine: bool = True) -> Tensor:
    """Return the coordinates of the largest value of each heatmap, as mmpose 1.1's `MSRAHeatmap.decode` does.

    Args:
        heatmaps: [..., H, W]; the first of equal largest values is taken.
        refine: move by 0.25 towards the larger neighbour in x and in y (mmpose's `refine_keypoints`). A coordinate
            stays where it is in the first two or the last row of its direction, or where the other one is 0.

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
    """Return the share of visible joints nearer to their target than the threshold (percentage of correct keypoints).

    Args:
        outputs: [N, B, K, 2] coordinates.
        targets: [N, B, K, 3] coordinates and visibility.
        threshold: the distance, after division by `norm`, below which a joint is right.
        norm: [N, B] lengths, such as those of a head or torso, or [N, B, 2] widths and heights, such as those of a box;
            an example whose norm is not positive is left out.

    Returns:
        [N] in [0, 1], the mean over all visible joints of an item; 0 for an item without any. (mmpose's
        `keypoint_pck_accuracy` takes the mean for each of the K joints first, then the mean of those.)

    Raises:
        ValueError: the shapes do not agree.
    """
    norm = norm[..., None].expand(*norm.shape, 2) if norm.dim() == 2 else norm
    check_shapes({"outputs [N, B, K, 2]": outputs, "targets [N, B, K, 3]": targets, "norm [N, B, 2]": norm})
    distances = ((outputs - targets[..., :2]) / norm[..., None, :]).norm(dim=-1)
    visible = (targets[..., 2] > 0) & (norm > 0).all(-1, keepdim=True)
    right = visible & (distances < threshold)
    return right.sum((1, 2)) / visible.sum((1, 2)).clamp(min=1)


def heatmap_pck(outputs: Tensor, targets: Tensor, *, threshold: float = 0.05) -> Tensor:
    """Return `pck` of the heatmaps' largest values, unrefined, with distances relative to the heatmap's size.

    It is mmpose's `pose_pck_accuracy` with `normalize=[[W, H]]`, but for the mean (see `pck`). mmpose's own default is
    [[H, W]], which divides x by the height and y by the width.

    Args:
        outputs: [N, B, K, H, W] heatmaps; one without a positive value is decoded to (-1, -1).
        targets: [N, B, K, H, W] heatmaps; a joint without a positive value is not visible.
        threshold: the distance, as a fraction of width and height, below which a joint is right.

    Returns:
        [N] in [0, 1], the mean over all visible joints of an item; 0 for an item without any.

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
    """Return `oks` of the heatmaps' largest values, of COCO's joints, refined as mmpose decodes them.

    The person's area is not in a heatmap. It is taken as 0.53 of its box, as mmpose's `CocoMetric` does where a data
    set has none, and the box as the heatmap less the margin of a quarter with which mmpose crops.

    Args:
        outputs: [N, B, 17, H, W] heatmaps.
        targets: [N, B, 17, H, W] heatmaps; a joint without a positive value is not visible.

    Returns:
        [N] in [0, 1]; 0 for an item without any visible joint.

    Raises:
        ValueError: the shapes do not agree.
    """
    check_shapes({"outputs [N, B, 17, H, W]": outputs, "targets [N, B, 17, H, W]": targets})
    visible = (targets.amax((-2, -1)) > 0)[..., None]
    joints = torch.cat([decode_heatmaps(targets), visible], -1)
    height, width = targets.shape[-2:]
    areas = joints.new_full(joints.shape[:2], 0.53 * height * width / 1.25**2)
    return oks(decode_heatmaps(outputs), joints, areas)


def oks(outputs: Tensor, targets: Tensor, areas: Tensor, sigmas: Sequence[float] | Tensor = COCO_SIGMAS) -> Tensor:
    """Return the mean object keypoint similarity of the examples with a visible joint, as COCO's `computeOks`.

    The similarity of an example is the mean over its visible joints of exp(-d^2 / (2 area (2 sigma)^2)).

    Args:
        outputs: [N, B, K, 2] coordinates.
        targets: [N, B, K, 3] coordinates and visibility.
        areas: [N, B] areas of the persons, in squares of the coordinates' unit, at least 0.
        sigmas: [K], one for each joint.

    Returns:
        [N] in [0, 1]; 0 for an item without any visible joint.

    Raises:
        ValueError: the shapes do not agree.
    """
    sigmas = torch.as_tensor(sigmas, dtype=torch.float64, device=outputs.device)
    shapes = {"outputs [N, B, K, 2]": outputs, "targets [N, B, K, 3]": targets, "areas [N, B]": areas}
    check_shapes({**shapes, "sigmas [K]": sigmas})
    visible = targets[..., 2] > 0
    squares = (outputs.double() - targets[..., :2].double()).square().sum(-1)
    # The smallest spacing at 1, as COCO adds it, keeps an area of 0 from making 0 / 0 of a perfect joint.
    spread = 2 * (areas.double()[..., None] + torch.finfo(torch.float64).eps) * (2 * sigmas).square()
    similarity = (-squares / spread).exp().where(visible, 0).sum(-1) / visible.sum(-1).clamp(min=1)
    return (similarity.sum(-1) / visible.any(-1).sum(-1).clamp(min=1)).float()
