"""Figures of records and surrogates, as PNG files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from reloss.experiment.metrics_log import read_metrics
from reloss.learning import PredictionBank
from reloss.learning.diagnostics import Checkpoints, loss_curve, measure_checkpoints, measure_held_out
from reloss.learning.options import LearnOptions
from reloss.metrics import Metric
from reloss.ranking import spearman
from reloss.runtime.files import atomic
from reloss.surrogates import SurrogateLoss

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
    figure.set_label(f"{metric.replace('_', ' ')} against the epoch, over the seeds of each loss")
    _save(figure, path)


def loss_curves(surrogates: Mapping[str, SurrogateLoss], path: Path) -> None:
    """Draw learned losses, and their slopes in the logit, against the target's probability, beside cross-entropy's.

    The slope is that for two classes, where dp/dz = p(1 - p) and cross-entropy's is p - 1. All losses are shown less
    their value at p = 1, since a constant changes no ranking.
    """
    logits = torch.linspace(-9, 9, 400)
    p = logits.sigmoid()
    curves = {"cross-entropy": (p, -torch.nn.functional.logsigmoid(logits), p - 1)}
    curves |= {name: loss_curve(surrogate, logits) for name, surrogate in surrogates.items()}
    figure, axes = _figure(2)
    for color, (name, (p, losses, slopes)) in zip(COLORS, curves.items(), strict=False):
        axes[0].plot(p, losses - losses[-1], color=color, label=name)
        axes[1].plot(p, slopes, color=color, label=name)
    axes[0].set(xlabel="probability of the target", ylabel="loss, less its value at p = 1")
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
    """Draw each loss of the checkpoints of training runs against their metric, a panel a loss, a colour a kind of run.

    Args:
        per_item: losses of N items, by name.
        metric: of N items.
        runs: predictions of the checkpoints, by the record's name `<loss>[@<variant>]/seed<N>`.
        path: of the PNG file.
    """
    figure, axes = _figure(len(per_item))
    values = {name: measure_checkpoints(metric, run) for name, run in runs.items()}
    kinds = list(dict.fromkeys(name.partition("@")[0].partition("/")[0] for name in runs))
    for axis, (loss, measure) in zip(axes, per_item.items(), strict=True):
        for kind, color in zip(kinds, COLORS, strict=False):
            mine = [name for name in runs if name.partition("@")[0].partition("/")[0] == kind]
            losses = torch.cat([measure_checkpoints(measure, runs[name]) for name in mine])
            axis.scatter(
                torch.cat([values[name] for name in mine]), losses, s=10, alpha=0.6, color=color, linewidths=0,
                label=f"trained with {kind} ({len(mine)} runs)",
            )  # fmt: skip
        every = torch.cat([measure_checkpoints(measure, run) for run in runs.values()])
        correlation = float(spearman(-every, torch.cat(list(values.values()))))
        axis.set(xlabel=f"{getattr(metric, '__name__', 'metric')} of a checkpoint", ylabel=loss)
        axis.set_title(f"Spearman of minus the loss: {correlation:.3f}", fontsize=10)
    _legend_below(figure, axes[0])
    figure.set_label("Each loss of the checkpoints of training runs against their metric")
    _save(figure, path)


def loss_against_metric(
    surrogate: SurrogateLoss, bank: PredictionBank, metric: Metric, options: LearnOptions, path: Path
) -> None:
    """Draw ordinary and learned loss of held-out recorded items against their metric, with the rank correlations."""
    found = measure_held_out(surrogate, bank, metric, options)
    values, losses = found["metric"], {"ordinary loss": found["ordinary"], "surrogate": found["surrogate"]}
    figure, axes = _figure(2)
    for axis, color, (name, loss) in zip(axes, COLORS, losses.items(), strict=False):
        axis.scatter(values, loss, s=12, alpha=0.6, color=color, linewidths=0)
        axis.set(xlabel=getattr(metric, "__name__", "metric"), ylabel=name)
        axis.set_title(f"Spearman of minus the loss: {spearman(-loss, values):.3f}", fontsize=10)
    figure.set_label("Ordinary and learned loss of held-out recorded items against their metric")
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
