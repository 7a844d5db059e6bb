"""The mean pose: what a network must beat before its scores mean anything."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmengine.dist import get_rank, get_world_size
from mmengine.evaluator import Evaluator


def score_mean_pose(trained: Any, tested: Any, evaluator: Evaluator) -> dict[str, float]:
    """Return what `evaluator` says of predicting, for each person, the mean pose placed into the person's box.

    Args:
        trained: mmpose's data set over whose persons the mean is taken.
        tested: the one to predict.
        evaluator: of `TorsoPCK`, which asks for joints alone.
    """
    pose = _mean([trained.get_data_info(index) for index in range(len(trained))])
    persons = [tested.get_data_info(index) for index in range(len(tested))]
    samples = [{"pred_instances": {"keypoints": _place(pose, person)}, "gt_instances": person} for person in persons]
    evaluator.process(samples[get_rank() :: get_world_size()])
    return dict(evaluator.evaluate(len(samples)))


def _mean(persons: list[dict[str, Any]]) -> np.ndarray:
    """Return the mean [K, 2] of each joint, in parts of the box, over the persons where it is visible."""
    joints, visible, boxes = (
        np.concatenate([person[name] for person in persons]) for name in ("keypoints", "keypoints_visible", "bbox")
    )
    corner, size = boxes[:, None, :2], boxes[:, None, 2:] - boxes[:, None, :2]
    weights = (visible > 0)[..., None]
    return ((joints - corner) / size * weights).sum(0) / np.maximum(weights.sum(0), 1)


def _place(pose: np.ndarray, person: dict[str, Any]) -> np.ndarray:
    box = person["bbox"]
    return box[:, None, :2] + pose * (box[:, None, 2:] - box[:, None, :2])
