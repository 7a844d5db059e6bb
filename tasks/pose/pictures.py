"""A figure of validation persons: the truth, what the baseline finds, and what this run finds, side by side."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import DataLoader

from reloss.experiment.record import leaving_out, read_summary
from reloss.experiment.task import Run
from reloss.metrics import decode_heatmaps
from reloss.pipeline.checkpoint_ranking import read_predictions
from reloss.runtime.files import atomic

PERSONS = 6


def draw_persons(run: Run, loader: DataLoader, metainfo: dict[str, Any]) -> None:
    """Draw the first persons whose heatmaps the record holds, with those of the finished baseline of the same seed.

    Args:
        run: whose record holds predictions of at least one validation; of others nothing is drawn.
        loader: of the same persons, in their order.
        metainfo: of mmpose's data set: the colours of joints and limbs.
    """
    own = read_predictions(run.record.path)
    if own is None:
        return
    truth = own[1][-1, :PERSONS]
    columns = {"truth": truth}
    ordinary = run.config.ordinary_loss
    if run.loss != ordinary:
        for folder in sorted(run.record.path.parents[1].glob(f"{ordinary}*/seed{run.seed}")):
            with leaving_out():
                summary = read_summary(folder)
                found = read_predictions(folder) if summary.get("status") == "finished" else None
                if found is not None and summary["protocol"] == run.config.protocol():
                    columns[ordinary] = found[0][-1, :PERSONS]
                    break
    columns[run.loss] = own[0][-1, :PERSONS]
    images = _images(loader, len(truth))
    run.record.save_figure("persons", lambda path: _draw(images, columns, truth.amax((-2, -1)) > 0, metainfo, path))


def _images(loader: DataLoader, count: int) -> Tensor:
    batches = islice(loader, -(-count // (loader.batch_size or 1)))
    return torch.cat([torch.stack(list(batch["inputs"])) for batch in batches])[:count]


def _draw(images: Tensor, columns: dict[str, Tensor], visible: Tensor, metainfo: dict[str, Any], path: Path) -> None:
    """Draw persons in rows: images [P, 3, h, w] in BGR, heatmaps [P, K, H, W] of each column, visible [P, K]."""
    figure = Figure(figsize=(2 * len(columns), 2.4 * len(images)), layout="constrained")
    grid = figure.subplots(len(images), len(columns), squeeze=False)
    joint_colors, limb_colors = (metainfo[name] / 255 for name in ("keypoint_colors", "skeleton_link_colors"))
    for column, (name, heatmaps) in enumerate(columns.items()):
        points = decode_heatmaps(heatmaps) * (images.shape[-1] / heatmaps.shape[-1])
        grid[0, column].set_title(name)
        for row, image in enumerate(images):
            axes, shown = grid[row, column], visible[row]
            axes.imshow(image.flip(0).permute(1, 2, 0))
            axes.set_axis_off()
            for (first, second), color in zip(metainfo["skeleton_links"], limb_colors, strict=True):
                if shown[first] and shown[second]:
                    axes.plot(*points[row, [first, second]].T, color=color, linewidth=1)
            axes.scatter(*points[row, shown].T, c=joint_colors[shown.numpy()], s=8)
    with atomic(path) as temporary:
        description = f"Validation persons with their joints: {', '.join(columns)}"
        figure.savefig(temporary, format="png", dpi=100, metadata={"Description": description})
