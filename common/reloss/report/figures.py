"""Figures of records and surrogates, as PNG files."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure

from reloss.experiment.tracking import read_metrics
from reloss.files import atomic
from reloss.learning import PredictionBank
from reloss.learning.fit import split_items
from reloss.learning.options import LearnOptions
from reloss.metrics import Metric
from reloss.ranking import spearman
from reloss.surrogates import ClassificationReLoss, SurrogateLoss

COLORS = mpl.color_sequences["tab10"]


def training_curves(records: list[tuple[str, Path]], metric: str, path: Path) -> None:
    """Draw `metric` against the epoch: a line (mean) and a band (least to largest) over the seeds of each loss.

    Args:
        records: (loss, folder of the record).
        metric: a key of `metrics.jsonl`, in [0, 1]; drawn in percent.
        path: of the PNG file.
    """
    curves: dict[str, list[list[dict[str, Any]]]] = defaultdict(list)
    for loss, folder in records:
        curves[loss].append([entry for entry in read_metrics(folder / "metrics.jsonl") if metric in entry])
    figure, axes = _figure(1)
    for color, (loss, runs) in zip(COLORS, curves.items(), strict=False):
        epochs = [entry["epoch"] for entry in min(runs, key=len)]
        values = 100 * np.array([[entry[metric] for entry in run[: len(epochs)]] for run in runs])
        axes[0].plot(epochs, values.mean(0), color=color, label=f"{loss} ({len(runs)} seeds)")
        axes[0].fill_between(epochs, values.min(0), values.max(0), color=color, alpha=0.2, linewidth=0)
    axes[0].set(xlabel="epoch", ylabel=f"{metric.replace('_', ' ')}, %")
    axes[0].legend()
    _save(figure, path)


def loss_curve(surrogate: ClassificationReLoss, path: Path) -> None:
    """Draw the learned loss, and its slope in the logit, against the target's probability, beside cross-entropy's.

    The slope is that for two classes, where dp/dz = p(1 - p) and cross-entropy's is p - 1. Both losses are shown less
    their value at p = 1, since a constant changes no ranking.
    """
    logits = torch.linspace(-9, 9, 400, requires_grad=True)
    log_p = torch.nn.functional.logsigmoid(logits)
    p = log_p.exp()
    figure, axes = _figure(2)
    learned = surrogate.curve(log_p if surrogate.input == "log_probability" else p)
    for color, (name, loss) in zip(COLORS, {"cross-entropy": -log_p, "surrogate": learned}.items(), strict=False):
        (slope,) = torch.autograd.grad(loss.sum(), logits, retain_graph=True)
        axes[0].plot(p.detach(), (loss - loss[-1]).detach(), color=color, label=name)
        axes[1].plot(p.detach(), slope, color=color, label=name)
    axes[0].set(xlabel="probability of the target", ylabel="loss, less its value at p = 1")
    axes[1].set(xlabel="probability of the target", ylabel="slope in the target's logit (two classes)")
    axes[1].axhline(0, color="grey", linewidth=0.5)
    axes[0].legend()
    _save(figure, path)


def loss_against_metric(
    surrogate: SurrogateLoss, bank: PredictionBank, metric: Metric, options: LearnOptions, path: Path
) -> None:
    """Draw ordinary and learned loss of held-out recorded items against their metric, with the rank correlations."""
    outputs, targets = bank.items(split_items(len(bank), options)[1])
    values = metric(outputs, targets)
    figure, axes = _figure(2)
    with torch.no_grad():
        losses = {
            "ordinary loss": surrogate.ordinary_loss(outputs, targets),
            "surrogate": surrogate.per_item(outputs, targets),
        }
    for axis, color, (name, loss) in zip(axes, COLORS, losses.items(), strict=False):
        axis.scatter(values, loss, s=12, alpha=0.6, color=color, linewidths=0)
        axis.set(xlabel=getattr(metric, "__name__", "metric"), ylabel=name)
        axis.set_title(f"Spearman of minus the loss: {spearman(-loss, values):.3f}", fontsize=10)
    _save(figure, path)


def _figure(panels: int) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(5.5 * panels, 4), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def _save(figure: Figure, path: Path) -> None:
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
