"""The report of `reloss diagnose`: a table, and figures of curves and checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reloss.experiment.task import find_experiment
from reloss.metrics import get_metric
from reloss.pipeline.checkpoint_ranking import diagnose
from reloss.report.figures import checkpoints, loss_curves
from reloss.report.tables import markdown
from reloss.runtime.files import write_json
from reloss.surrogates import load

COLUMNS = {
    "loss": "loss",
    "folder": "surrogate",
    "metric": "metric",
    "spearman_synthetic": "Spearman, synthetic items",
    "spearman": "Spearman, recorded items",
    "spearman_checkpoints": "Spearman, checkpoints",
    "kendall_checkpoints": "Kendall, checkpoints",
    "spearman_late": "Spearman, late ones",
    "kendall_late": "Kendall, late ones",
}
SHOWN = 3  # learned losses in a figure: those that rank checkpoints best


def write(experiment: str, runs: Path, out: Path) -> tuple[str, list[dict[str, Any]]]:
    """Diagnose an experiment; write diagnostics.json and the figures into `out`; return the table and its entries.

    Raises:
        UsageError: an unknown experiment, or no finished run with recorded predictions.
    """
    entries, recorded = diagnose(experiment, runs)
    task, config = find_experiment(experiment)
    fresh = task.new_surrogate(config)
    best = sorted(
        (entry for entry in entries if "folder" in entry), key=lambda entry: -entry.get("spearman_checkpoints", -1)
    )[:SHOWN]
    surrogates = {
        f"{entry['loss']} {entry['folder'].removeprefix('surrogates/')}": load(runs / config.name / entry["folder"])
        for entry in best
    }
    write_json(out / "diagnostics.json", entries)
    losses = {config.ordinary_loss: fresh.ordinary_loss, **{name: s.per_item for name, s in surrogates.items()}}
    checkpoints(losses, get_metric(config.metric), recorded, out / "checkpoints.png")
    curves = {name: surrogate for name, surrogate in surrogates.items() if surrogate.has_curve}
    if curves:
        loss_curves(curves, out / "curves.png")
    note = (
        f"{entries[0]['checkpoints']} checkpoints of {entries[0]['runs']} runs, on the same validation examples; late: "
        f"the second half of each run's. Figures: {out}."
    )
    return markdown(list(COLUMNS.values()), [_cells(entry) for entry in entries], note), entries


def _cells(entry: dict[str, Any]) -> list[str]:
    values = [entry.get(name, "none") for name in COLUMNS]
    return [f"{value:.3f}" if isinstance(value, float) else str(value) for value in values]
