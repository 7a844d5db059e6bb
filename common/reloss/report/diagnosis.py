"""What `reloss diagnose` reports: a table of how well each loss ranks the checkpoints, and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reloss.experiment.task import find_experiment
from reloss.experiment.workspace import Workspace
from reloss.metrics import get_metric
from reloss.pipeline.checkpoint_ranking import diagnose
from reloss.report.figures import checkpoints, loss_curves
from reloss.report.table import Missing, Table
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
"""The keys of an entry that the table shows, with their headers."""

MAX_LEARNED = 3
"""Number of learned losses in a figure; the ones that rank checkpoints best are drawn."""


def write_diagnosis(experiment: str, runs: Path, out: Path) -> Table:
    """Rank the checkpoints of an experiment's runs with each loss; write diagnostics.json and figures into `out`.

    Raises:
        UsageError: an unknown experiment, or no finished run with recorded predictions.
    """
    entries, recorded = diagnose(experiment, Workspace(runs))
    task, config = find_experiment(experiment)
    fresh = task.new_surrogate(config)
    learned = [entry for entry in entries if "folder" in entry]
    best = sorted(learned, key=lambda entry: -entry.get("spearman_checkpoints", -1))[:MAX_LEARNED]
    surrogates = {
        f"{entry['loss']} {entry['folder'].removeprefix('surrogates/')}": load(runs / config.name / entry["folder"])
        for entry in best
    }
    write_json(out / "diagnostics.json", entries)
    losses = {config.ordinary_loss: fresh.ordinary_loss}
    losses |= {name: surrogate.per_item for name, surrogate in surrogates.items()}
    checkpoints(losses, get_metric(config.metric), recorded, out / "checkpoints.png")
    curves = {name: loss for name, loss in surrogates.items() if loss.has_curve}
    if curves:
        loss_curves(curves, out / "curves.png")
    return diagnosis_table(entries, out)


def diagnosis_table(entries: Sequence[Mapping[str, Any]], out: Path) -> Table:
    """Return the table of the entries of `diagnose`; the note names the folder `out` of the figures."""
    rows = [[entry.get(name, Missing("none")) for name in COLUMNS] for entry in entries]
    note = (
        f"{entries[0]['checkpoints']} checkpoints of {entries[0]['runs']} runs, on the same validation examples; late "
        f"ones are the second half of each run. Figures: {out}."
    )
    return Table(list(COLUMNS.values()), rows, note, objects=entries)
