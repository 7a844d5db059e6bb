"""`reloss demo`: the whole path on scikit-learn's digits, in a few minutes on a laptop."""

from __future__ import annotations

import time
from pathlib import Path

from reloss.experiment.records import Records, read_records
from reloss.experiment.run_spec import RunSpec
from reloss.experiment.task import find_experiment
from reloss.experiment.workspace import Workspace
from reloss.learning import LearnOptions, PredictionBank
from reloss.metrics import get_metric
from reloss.pipeline.stages import run
from reloss.report.figures import loss_against_metric, loss_curves, training_curves
from reloss.report.page import write_report
from reloss.report.task_table import task_rows, task_table
from reloss.runtime.errors import UsageError
from reloss.runtime.files import write_text
from reloss.runtime.progress import say
from reloss.surrogates import load

EXPERIMENT = "classification/digits_cnn"
PRINTED = ("loss", "ours, %", "error, %", "difference to baseline", "Spearman", "n")
"""The columns that fit a terminal."""


def demo(out: Path, seeds: int) -> None:
    """Train with cross-entropy and record predictions, fit one surrogate, train with it, and report the results.

    Args:
        out: folder for the records (`runs/`), `table.md`, `figures/` and `report.html`.
        seeds: number of seeds of each loss.

    Raises:
        UsageError: there are no seeds.
    """
    if seeds < 1:
        raise UsageError("--seeds must be at least 1")
    started = time.monotonic()
    workspace = Workspace(out / "runs")
    task, config = find_experiment(EXPERIMENT)
    for loss in (config.ordinary_loss, "reloss"):
        for seed in range(seeds):
            run(RunSpec.resolve(EXPERIMENT, loss, seed), workspace, track="off")
    records = read_records(workspace.runs)
    _draw(records, workspace, out / "figures")
    write_report(workspace.runs, out / "report.html")
    table = task_table([row for row in task_rows(task, records.runs) if row.experiment == EXPERIMENT and row.records])
    write_text(out / "table.md", table.markdown() + "\n")
    print(f"\n{table.select(PRINTED).plain()}\n\n{table.note}")
    say(
        f"\nThe table, figures and records are in {out} ({time.monotonic() - started:.0f} s). To see everything on one "
        f"page, open {out / 'report.html'} in a browser."
    )


def _draw(records: Records, workspace: Workspace, figures: Path) -> None:
    """Draw the training curves, and the surrogate that the last run trained with, into the folder `figures`."""
    runs = [run for run in records.runs if run.experiment == EXPERIMENT]
    name = next(run.surrogate for run in reversed(runs) if run.surrogate)
    record = next(surrogate for surrogate in records.surrogates_of(EXPERIMENT) if surrogate.reference == name)
    surrogate = load(workspace.experiment(EXPERIMENT) / record.reference)
    options = LearnOptions.model_validate(record.learn)
    training_curves(runs, "validation_accuracy", figures / "training_curves.png")
    loss_curves({"surrogate": surrogate}, figures / "loss_curve.png")
    bank, metric = PredictionBank.open(workspace.bank(EXPERIMENT)), get_metric(record.metric)
    loss_against_metric(surrogate, bank, metric, options, figures / "loss_against_metric.png")
