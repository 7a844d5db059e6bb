"""`reloss demo`: the whole path on scikit-learn's digits, in a few minutes on a laptop."""

from __future__ import annotations

import time
from pathlib import Path

from reloss.experiment.records import read_runs
from reloss.experiment.task import find_experiment
from reloss.learning import LearnOptions, PredictionBank
from reloss.metrics import get_metric
from reloss.pipeline.stages import Request, run
from reloss.report.figures import loss_against_metric, loss_curves, training_curves
from reloss.report.page import write_report
from reloss.report.table import Table
from reloss.report.task_table import task_rows, task_table
from reloss.runtime.files import read_json, write_text
from reloss.runtime.progress import say
from reloss.surrogates import ClassificationReLoss

EXPERIMENT = "classification/digits_cnn"
PRINTED = ("loss", "ours, %", "error, %", "difference to baseline", "Spearman", "n")
"""The columns that fit a terminal."""


def demo(out: Path, seeds: int) -> None:
    """Train with cross-entropy and record predictions, fit one surrogate, train with it, and report the results.

    Args:
        out: folder for the records (`runs/`), `table.md`, `figures/` and `report.html`.
        seeds: number of seeds of each loss.
    """
    started = time.monotonic()
    runs = out / "runs"
    losses = (find_experiment(EXPERIMENT)[1].ordinary_loss, "reloss")
    records = [
        (loss, run(Request(EXPERIMENT, loss, seed, runs=runs, track="off"))) for loss in losses for seed in range(seeds)
    ]
    _draw(records, runs, out / "figures")
    write_report(runs, out / "report.html")
    table = _results(runs)
    write_text(out / "table.md", table.markdown() + "\n")
    print(f"\n{table.select(PRINTED).plain()}\n\n{table.note}")
    say(
        f"\nThe table, figures and records are in {out} ({time.monotonic() - started:.0f} s). To see everything on one "
        f"page, open {out / 'report.html'} in a browser."
    )


def _results(runs: Path) -> Table:
    """Return the results table of the experiment, without the losses that did not run."""
    task = find_experiment(EXPERIMENT)[0]
    return task_table([row for row in task_rows(task, read_runs(runs)) if row.experiment == EXPERIMENT and row.records])


def _draw(records: list[tuple[str, Path]], runs: Path, figures: Path) -> None:
    """Draw the training curves, and the surrogate of the last run, into the folder `figures`."""
    name = read_json(records[-1][1] / "summary.json")["surrogate"]["folder"]
    folder = runs / EXPERIMENT / name
    surrogate = ClassificationReLoss.from_pretrained(folder)
    card = read_json(folder / "surrogate.json")
    options = LearnOptions.model_validate(card["learn"])
    training_curves(records, "validation_accuracy", figures / "training_curves.png")
    loss_curves({"surrogate": surrogate}, figures / "loss_curve.png")
    bank = PredictionBank.open(runs / EXPERIMENT / "bank")
    loss_against_metric(surrogate, bank, get_metric(card["metric"]), options, figures / "loss_against_metric.png")
