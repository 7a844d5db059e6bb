"""Figures of records and surrogates, drawn with matplotlib as PNG files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from reloss.experiment.records import RunRecord
from reloss.learning import PredictionBank
from reloss.learning.diagnostics import Checkpoints, measure_checkpoints
from reloss.learning.options import LearnOptions
from reloss.learning.picture import loss_curve, measure_held_out
from reloss.metrics import Metric
from reloss.ranking import spearman
from reloss.runtime.files import atomic
from reloss.surrogates import SurrogateLoss

COLORS = mpl.color_sequences["tab10"]


def training_curves(runs: Sequence[RunRecord], metric: str, path: Path) -> None:
    """Draw `metric` against the epoch: for each loss, the mean over the seeds and a band from lowest to highest.

    Args:
        runs: records of runs.
        metric: a metric that the runs logged, in [0, 1]; drawn in percent.
        path: PNG file to write.
    """
    curves: dict[str, list[list[dict[str, float]]]] = defaultdict(list)
    for run in runs:
        curves[run.loss].append([line for line in run.metrics() if metric in line])
    figure, axes = _figure(1)
    for color, (loss, logs) in zip(COLORS, curves.items(), strict=False):
        epochs = [line["epoch"] for line in min(logs, key=len)]
        values = 100 * np.array([[line[metric] for line in log[: len(epochs)]] for log in logs])
        axes[0].plot(epochs, values.mean(0), color=color, label=f"{loss} ({len(logs)} seeds)")
        axes[0].fill_between(epochs, values.min(0), values.max(0), color=color, alpha=0.2, linewidth=0)
    axes[0].set(xlabel="epoch", ylabel=f"{metric.replace('_', ' ')}, %")
    axes[0].legend()
    figure.set_label(f"{metric.replace('_', ' ')} against the epoch, over the seeds of each loss")
    _save(figure, path)


def loss_curves(surrogates: Mapping[str, SurrogateLoss], path: Path) -> None:
    """Draw learned losses and cross-entropy, and their slopes in the logit, against the target's probability p.

    The slope is the one for two classes, where dp/dz = p(1 - p); cross-entropy has the slope p - 1. The value at p = 1
    is subtracted from each loss, since a constant changes no ranking.

    Args:
        surrogates: learned losses by name.
        path: PNG file to write.
    """
    logits = torch.linspace(-9, 9, 400)
    p = logits.sigmoid()
    curves = {"cross-entropy": (p, -torch.nn.functional.logsigmoid(logits), p - 1)}
    curves |= {name: loss_curve(surrogate, logits) for name, surrogate in surrogates.items()}
    figure, axes = _figure(2)
    for color, (name, (p, losses, slopes)) in zip(COLORS, curves.items(), strict=False):
        axes[0].plot(p, losses - losses[-1], color=color, label=name)
        axes[1].plot(p, slopes, color=color, label=name)
    axes[0].set(xlabel="probability of the target", ylabel="loss - loss at p = 1")
    axes[1].set(xlabel="probability of the target", ylabel="slope in the target's logit (two classes)")
    axes[1].axhline(0, color="grey", linewidth=0.5)
    figure.set_label("Learned losses, and their slopes in the logit, against the target's probability")
    _legend_below(figure, axes[0])
    _save(figure, path)


def checkpoints(
    per_item: Mapping[str, Callable[[Tensor, Tensor], Tensor]],
    metric: Metric,
    runs: Mapping[str, Checkpoints],
    path: Path,
) -> None:
    """Draw each loss against the metric, over the checkpoints of training runs.

    Each loss has a panel. The colour of a point shows the loss that the run was trained with.

    Args:
        per_item: losses by name, (outputs [N, B, ...], targets [N, B, ...]) -> [N].
        metric: the metric of N items.
        runs: predictions of the checkpoints, by the name of the record, `<loss>[@<variant>]/seed<N>`.
        path: PNG file to write.
    """
    figure, axes = _figure(len(per_item))
    values = {name: measure_checkpoints(metric, run) for name, run in runs.items()}
    groups: dict[str, list[str]] = defaultdict(list)
    for name in runs:
        groups[name.partition("@")[0].partition("/")[0]].append(name)
    for axis, (loss, measure) in zip(axes, per_item.items(), strict=True):
        losses = {name: measure_checkpoints(measure, run) for name, run in runs.items()}
        for (trained_with, names), color in zip(groups.items(), COLORS, strict=False):
            x, y = (torch.cat([measured[name] for name in names]) for measured in (values, losses))
            label = f"trained with {trained_with} ({len(names)} runs)"
            axis.scatter(x, y, s=10, alpha=0.6, color=color, linewidths=0, label=label)
        correlation = float(spearman(-torch.cat(list(losses.values())), torch.cat(list(values.values()))))
        axis.set(xlabel=f"{getattr(metric, '__name__', 'metric')} of a checkpoint", ylabel=loss)
        axis.set_title(f"Spearman of minus the loss: {correlation:.3f}", fontsize=10)
    _legend_below(figure, axes[0])
    figure.set_label("Each loss against the metric, over the checkpoints of training runs")
    _save(figure, path)


def loss_against_metric(
    surrogate: SurrogateLoss, bank: PredictionBank, metric: Metric, options: LearnOptions, path: Path
) -> None:
    """Draw the ordinary and the learned loss of held-out recorded items against the metric, with rank correlations."""
    measured = measure_held_out(surrogate, bank, metric, options)
    values, losses = measured["metric"], {"ordinary loss": measured["ordinary"], "surrogate": measured["surrogate"]}
    figure, axes = _figure(2)
    for axis, color, (name, loss) in zip(axes, COLORS, losses.items(), strict=False):
        axis.scatter(values, loss, s=12, alpha=0.6, color=color, linewidths=0)
        axis.set(xlabel=getattr(metric, "__name__", "metric"), ylabel=name)
        axis.set_title(f"Spearman of minus the loss: {spearman(-loss, values):.3f}", fontsize=10)
    figure.set_label("Ordinary and learned loss of held-out recorded items against the metric")
    _save(figure, path)


def _figure(panels: int) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(5.5 * panels, 4), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def _legend_below(figure: Figure, axis: Any) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4), fontsize=8, frameon=False)


def _save(figure: Figure, path: Path) -> None:
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120, metadata={"Description": figure.get_label()})
