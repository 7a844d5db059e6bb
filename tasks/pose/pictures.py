"""A figure of validation persons: true joints, the baseline's and this run's, side by side."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import DataLoader

from reloss.experiment.predictions import read_predictions
from reloss.experiment.record import read_summary, skipping_damage
from reloss.experiment.task import Run
from reloss.metrics import decode_heatmaps
from reloss.runtime.files import atomic
from reloss_tasks.pose.config import PoseExperiment

PERSONS = 6


def draw_persons(run: Run[PoseExperiment], loader: DataLoader, metainfo: dict[str, Any]) -> None:
    """Draw the first recorded persons, with the predictions of the finished baseline of the same seed if there is one.

    Args:
        run: the run. Nothing is drawn if its record has no predictions.
        loader: the same persons, in the same order.
        metainfo: metadata of mmpose's data set, with the colours of joints and limbs.
    """
    predictions = read_predictions(run.record.path)
    if predictions is None:
        return
    outputs, targets = predictions
    truth = targets[-1, :PERSONS]
    columns = {"truth": truth}
    if run.loss != run.config.ordinary_loss and (baseline := _baseline_heatmaps(run)) is not None:
        columns[run.config.ordinary_loss] = baseline[:PERSONS]
    columns[run.loss] = outputs[-1, :PERSONS]
    images = _images(loader, len(truth))
    run.record.save_figure("persons", lambda path: _draw(images, columns, truth.amax((-2, -1)) > 0, metainfo, path))


def _baseline_heatmaps(run: Run[PoseExperiment]) -> Tensor | None:
    """Return the last recorded heatmaps [E, K, H, W] of the finished baseline with seed and protocol of `run`."""
    for folder in sorted(run.record.path.parents[1].glob(f"{run.config.ordinary_loss}*/seed{run.seed}")):
        with skipping_damage():
            summary = read_summary(folder)
            predictions = read_predictions(folder) if summary.get("status") == "finished" else None
            if predictions is not None and summary["protocol"] == run.config.protocol():
                return predictions[0][-1]
    return None


def _images(loader: DataLoader, count: int) -> Tensor:
    batches = islice(loader, -(-count // (loader.batch_size or 1)))
    return torch.cat([torch.stack(list(batch["inputs"])) for batch in batches])[:count]


def _draw(images: Tensor, columns: dict[str, Tensor], visible: Tensor, metainfo: dict[str, Any], path: Path) -> None:
    """Draw one person per row: images [P, 3, h, w] in BGR, heatmaps [P, K, H, W] for each column, visible [P, K]."""
    figure = Figure(figsize=(2 * len(columns), 2.4 * len(images)), layout="constrained")
    grid = figure.subplots(len(images), len(columns), squeeze=False)
    joint_colors, limb_colors = (metainfo[name] / 255 for name in ("keypoint_colors", "skeleton_link_colors"))
    for column, (name, heatmaps) in enumerate(columns.items()):
        points = decode_heatmaps(heatmaps) * (images.shape[-1] / heatmaps.shape[-1])
        grid[0, column].set_title(name)
        for row, image in enumerate(images):
            axes, joints = grid[row, column], visible[row]
            axes.imshow(image.flip(0).permute(1, 2, 0))
            axes.set_axis_off()
            for (first, second), color in zip(metainfo["skeleton_links"], limb_colors, strict=True):
                if joints[first] and joints[second]:
                    axes.plot(*points[row, [first, second]].T, color=color, linewidth=1)
            axes.scatter(*points[row, joints].T, c=joint_colors[joints.numpy()], s=8)
    with atomic(path) as temporary:
        description = f"Validation persons with their joints: {', '.join(columns)}"
        figure.savefig(temporary, format="png", dpi=100, metadata={"Description": description})
