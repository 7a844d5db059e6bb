"""`reloss demo`: the whole line on scikit-learn's digits, in a few minutes on a laptop."""

import time
from pathlib import Path

from reloss.experiment.task import find_experiment
from reloss.learning import LearnOptions, PredictionBank
from reloss.metrics import get_metric
from reloss.pipeline.stages import Request, run
from reloss.report.figures import loss_against_metric, loss_curves, training_curves
from reloss.report.page import write_report
from reloss.report.tables import render, table
from reloss.runtime.files import read_json, write_text
from reloss.runtime.progress import say
from reloss.surrogates import ClassificationReLoss

EXPERIMENT = "classification/digits_cnn"


def demo(out: Path, seeds: int) -> None:
    """Train with cross-entropy while recording, learn one surrogate, train with it; then print the table, draw figures.

    Args:
        out: folder for records (`runs/`), `table.md`, `figures/` and `report.html`.
        seeds: of each loss.
    """
    began = time.monotonic()
    runs = out / "runs"
    losses = (find_experiment(EXPERIMENT)[1].ordinary_loss, "reloss")
    records = [
        (loss, run(Request(EXPERIMENT, loss, seed, runs=runs, track="off"))) for loss in losses for seed in range(seeds)
    ]
    _draw(records, runs, out / "figures")
    write_report(runs, out / "report.html")
    rows = [row for row in table("classification", runs) if row.experiment == EXPERIMENT and row.records]
    text = render(rows, "md")
    write_text(out / "table.md", text + "\n")
    _print(text)
    say(
        f"\ntable, figures and records are in {out} ({time.monotonic() - began:.0f} s); all of it on one page, to open "
        f"in a browser: {out / 'report.html'}"
    )


def _draw(records: list[tuple[str, Path]], runs: Path, figures: Path) -> None:
    reference = read_json(records[-1][1] / "summary.json")["surrogate"]
    folder = runs / EXPERIMENT / reference["folder"]
    surrogate = ClassificationReLoss.from_pretrained(folder)
    card = read_json(folder / "surrogate.json")
    options = LearnOptions.model_validate(card["learn"])
    training_curves(records, "validation_accuracy", figures / "training_curves.png")
    loss_curves({"surrogate": surrogate}, figures / "loss_curve.png")
    bank = PredictionBank.open(runs / EXPERIMENT / "bank")
    loss_against_metric(surrogate, bank, get_metric(card["metric"]), options, figures / "loss_against_metric.png")


def _print(markdown: str) -> None:
    """Print the table without the long columns of provenance, aligned."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines() if "|" in line]
    rows = [[row[1], *row[4:9]] for row in lines if not row[0].startswith("---")]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    print(
        "\n" + "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    )
    print("\n" + markdown.splitlines()[-1])
