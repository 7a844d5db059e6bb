"""PCK relative to the torso as a metric of mmpose, and the names that scores have in a record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmpose.registry import METRICS

from reloss.metrics import pck


@METRICS.register_module()
class TorsoPCK(BaseMetric):
    """The share of visible joints whose error is below a fraction of the torso's length, over all joints and persons.

    mmpose's `PCKAccuracy` only knows the torso of one data set, JHMDB, and averages each joint first. A person with an
    invisible torso joint is skipped.

    Args:
        threshold: fraction of the torso's length.
        torso: indices of two joints; their distance is the torso's length.
    """

    default_prefix = "pck"

    def __init__(self, threshold: float = 0.2, torso: tuple[int, int] = (8, 3), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.threshold = threshold
        self.torso = torso

    def process(self, data_batch: Sequence[dict], data_samples: Sequence[dict]) -> None:
        """Store the joints of a batch of persons."""
        for sample in data_samples:
            self.results.append(
                {
                    "outputs": sample["pred_instances"]["keypoints"][0],
                    "targets": sample["gt_instances"]["keypoints"][0],
                    "visible": np.asarray(sample["gt_instances"]["keypoints_visible"]).reshape(-1),
                }
            )

    def compute_metrics(self, results: list[dict[str, np.ndarray]]) -> dict[str, float]:
        """Return PCK over all persons."""
        outputs, points, visible = (
            torch.as_tensor(np.stack([result[name] for result in results])).float()
            for name in ("outputs", "targets", "visible")
        )
        first, second = self.torso
        norm = (points[:, first] - points[:, second]).norm(dim=-1)
        norm = norm.where((visible[:, first] > 0) & (visible[:, second] > 0), 0)
        targets = torch.cat([points, visible[..., None]], -1)
        return {"PCK": float(pck(outputs[None], targets[None], threshold=self.threshold, norm=norm[None]))}


def record_names(metrics: dict[str, float]) -> dict[str, float]:
    """Return mmengine's metrics under the names of records: `coco/AP .5` becomes AP_50, `pck/PCK` becomes PCK."""
    short = {"AP .5": "AP_50", "AP .75": "AP_75", "AR .5": "AR_50", "AR .75": "AR_75"}
    names = {name: name.partition("/")[2] or name for name in metrics}
    return {short.get(names[name], names[name].replace(" ", "_")): float(value) for name, value in metrics.items()}
