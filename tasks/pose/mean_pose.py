"""The mean pose: the score that a network must beat before its scores mean anything.

People mostly stand upright and fill their box, so the mean position of each joint, relative to the box, already hits
some joints. Predicting it for everybody needs no image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from mmengine.dist import get_rank, get_world_size
from mmengine.evaluator import Evaluator


def score_mean_pose(train: Any, test: Any, evaluator: Evaluator) -> dict[str, float]:
    """Return the evaluator's scores if the mean pose, placed into each person's box, is the prediction.

    Args:
        train: mmpose's data set over which the mean is taken.
        test: mmpose's data set with the persons to predict.
        evaluator: an evaluator with `TorsoPCK`, which only needs joints.
    """
    pose = _mean([train.get_data_info(index) for index in range(len(train))])
    persons = [test.get_data_info(index) for index in range(len(test))]
    samples = [{"pred_instances": {"keypoints": _place(pose, person)}, "gt_instances": person} for person in persons]
    evaluator.process(samples[get_rank() :: get_world_size()])
    return dict(evaluator.evaluate(len(samples)))


def _mean(persons: list[dict[str, Any]]) -> np.ndarray:
    """Return the mean [K, 2] of each joint, as fractions of the box, over the persons where it is visible."""
    joints, visible, boxes = (
        np.concatenate([person[name] for person in persons]) for name in ("keypoints", "keypoints_visible", "bbox")
    )
    corner, size = boxes[:, None, :2], boxes[:, None, 2:] - boxes[:, None, :2]
    weights = (visible > 0)[..., None]
    return ((joints - corner) / size * weights).sum(0) / np.maximum(weights.sum(0), 1)


def _place(pose: np.ndarray, person: dict[str, Any]) -> np.ndarray:
    box = person["bbox"]
    return box[:, None, :2] + pose * (box[:, None, 2:] - box[:, None, :2])
