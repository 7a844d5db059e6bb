"""PCK relative to the torso, for mmpose's evaluators."""

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
    """The share of visible joints nearer to the truth than a part of the torso's length, of all joints of all persons.

    mmpose's own `PCKAccuracy` knows the torso of one data set alone (JHMDB's), and takes the mean of each joint first.
    A person of whom a joint of the torso is not visible is left out.

    Args:
        threshold: the part of the torso.
        torso: indices of two joints, whose distance is the torso's length.
    """

    default_prefix = "pck"

    def __init__(self, threshold: float = 0.2, torso: tuple[int, int] = (8, 3), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.threshold = threshold
        self.torso = torso

    def process(self, data_batch: Sequence[dict], data_samples: Sequence[dict]) -> None:
        """Keep the joints of a batch of persons."""
        for sample in data_samples:
            self.results.append(
                {
                    "outputs": sample["pred_instances"]["keypoints"][0],
                    "targets": sample["gt_instances"]["keypoints"][0],
                    "visible": np.asarray(sample["gt_instances"]["keypoints_visible"]).reshape(-1),
                }
            )

    def compute_metrics(self, results: list[dict[str, np.ndarray]]) -> dict[str, float]:
        """Return PCK of all persons."""
        outputs, points, visible = (
            torch.as_tensor(np.stack([result[name] for result in results])).float()
            for name in ("outputs", "targets", "visible")
        )
        first, second = self.torso
        norm = (points[:, first] - points[:, second]).norm(dim=-1)
        norm = norm.where((visible[:, first] > 0) & (visible[:, second] > 0), 0)
        targets = torch.cat([points, visible[..., None]], -1)
        return {"PCK": float(pck(outputs[None], targets[None], threshold=self.threshold, norm=norm[None]))}
