"""results/field.svg: how far each loss is from cross-entropy in each metric of the field, with 95 % intervals."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from tools.field_records import COMPARED, COST, LONGER, ORDINARY, OWN, READY, RECIPES, TUNED, Results

TITLES = {
    "auroc": "AUROC",
    "average_precision": "average precision",
    "partial_auroc": "partial AUROC",
    "f1": "F1",
    "mcc": "MCC",
    "balanced_accuracy": "balanced accuracy",
    COST: "minus cost (a miss: 10)",
}
ROWS: Mapping[str, tuple[str, ...]] = {
    "zoo + cross-entropy": (READY,),
    "zoo alone": ("zoo", LONGER),
    "zoo + weighted cross-entropy": RECIPES,
    "fitted on the set itself": (OWN, "fitted on the set"),
    "expected metric + cross-entropy": ("expected + cross-entropy",),
    "soft F1 + cross-entropy": ("soft F1 + cross-entropy",),
    "weighted cross-entropy": ("weighted cross-entropy", "cross-entropy, a miss weighs ten"),
    "logit-adjusted cross-entropy": ("logit-adjusted",),
    "cross-entropy, tuned threshold": (TUNED,),
    "LibAUC": ("LibAUC AUCM", "LibAUC AP", "LibAUC partial AUC"),
    "imbalanced-losses": ("imbalanced-losses AP", "imbalanced-losses partial AUC"),
}
"""Rows of the chart: the label, and its methods. The one with the highest mean is drawn."""

OURS, OTHERS, BEST = "#1f77b4", "#7f7f7f", "#d62728"
COUNT_OF_OURS = 5  # the first rows


def field_chart(results: Results) -> str:
    """Return the chart as SVG; the same text for the same records."""
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    axes = figure.subplots(2, 4, sharey=True).flatten()
    for axis, metric in zip(axes, COMPARED, strict=False):
        _panel(axis, results, metric)
    axes[0].set_yticks(range(len(ROWS)), list(ROWS))
    axes[0].invert_yaxis()
    _explain(axes[-1])
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "reloss", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def _panel(axis: Any, results: Results, metric: str) -> None:
    """Draw the differences to cross-entropy in one metric: a dot and a line for each row that was measured."""
    drawn = [(row, _best(results, metric, methods)) for row, methods in enumerate(ROWS.values())]
    measured = [(row, method) for row, method in drawn if method is not None]
    highest = max(results.mean(method, metric) for _, method in measured)
    for row, method in measured:
        difference = results.difference(method, metric)
        is_best = results.mean(method, metric) == highest
        colour = BEST if is_best else OURS if row < COUNT_OF_OURS else OTHERS
        axis.plot([difference.low, difference.high], [row, row], color=colour, linewidth=1.5, alpha=0.6)
        axis.plot(difference.mean, row, "o", color=colour, markersize=5)
    axis.axvline(0, color="black", linewidth=0.6)
    axis.set_title(TITLES[metric], fontsize=10)
    axis.tick_params(labelsize=8.5)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="x", linewidth=0.3)


def _best(results: Results, metric: str, methods: Sequence[str]) -> str | None:
    """Return the method with the highest mean among those that were measured; None if none was."""
    measured = [method for method in methods if results.complete(method, metric)]
    return max(measured, key=lambda method: results.mean(method, metric), default=None)


def _explain(axis: Any) -> None:
    """Write the legend into the last, empty panel."""
    axis.set_axis_off()
    lines = (
        (BEST, "highest mean of the panel"),
        (OURS, "reloss"),
        (OTHERS, "other losses"),
    )
    for number, (colour, text) in enumerate(lines):
        axis.text(0.02, 0.9 - 0.1 * number, f"● {text}", color=colour, fontsize=9.5, transform=axis.transAxes)
    notes = (
        f"Difference to {ORDINARY}, mean of 12 data",
        "sets with its paired 95 % interval;",
        "right of the line is better.",
        "Rows of several methods show the best.",
    )
    axis.text(0.02, 0.5, "\n".join(notes), fontsize=8.5, va="top", transform=axis.transAxes)
