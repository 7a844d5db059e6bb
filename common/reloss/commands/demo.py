"""`reloss demo`: a loss for F1 on a rare digit, next to its rivals, in a few minutes on a laptop."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import NamedTuple

from reloss.experiment.records import Records, RunRecord, read_records
from reloss.experiment.run_spec import RunSpec
from reloss.experiment.workspace import Workspace
from reloss.learning import LearnOptions, PredictionBank
from reloss.metrics import get_metric
from reloss.pipeline.stages import run
from reloss.report.figures import loss_against_metric, training_curves
from reloss.report.groups import scores_by_seed
from reloss.report.page import write_report
from reloss.report.statistics import Difference, Side, describe, paired_difference
from reloss.report.table import Cell, Table
from reloss.runtime.errors import UsageError
from reloss.runtime.files import write_text
from reloss.runtime.progress import say
from reloss.surrogates import load

EXPERIMENT = "classification/rare_digit_mlp"
SCORE = "binary_f1"
HEADERS = ("loss", "F1, %", "difference to cross-entropy")


class Rival(NamedTuple):
    """A row of the demo's table: what it is called, the loss of its runs, and the score of these runs."""

    label: str
    loss: str
    score: str = SCORE


ORDINARY, LEARNED = Rival("cross-entropy", "ce"), Rival("learned + cross-entropy", "reloss")
TUNED = Rival("cross-entropy, threshold tuned on validation", "ce", "tuned_f1")
RIVALS = (
    ORDINARY,
    TUNED,
    Rival("cross-entropy, classes weighted", "weighted_ce"),
    Rival("expected F1 + cross-entropy, not learned", "expected"),
    LEARNED,
)
NOTE = (
    "F1 of one digit in noise, one eight to 21 other digits: mean ± standard deviation over the seeds, and the paired "
    "difference with its 95 % interval. Only the second row needs a threshold to be tuned; the others cut at 1/2."
)


def demo(out: Path, seeds: int) -> None:
    """Train with the ordinary loss, fit one surrogate to F1, train with it and with its rivals, and report.

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
    for loss in dict.fromkeys(rival.loss for rival in RIVALS):
        for seed in range(seeds):
            run(RunSpec.resolve(EXPERIMENT, loss, seed), workspace, track="off")
    records = read_records(workspace.runs)
    runs = [record for record in records.runs if record.experiment == EXPERIMENT and not record.settings]
    _draw(records, runs, workspace, out / "figures")
    write_report(workspace.runs, out / "report.html")
    table = Table(HEADERS, [_row(rival, runs) for rival in RIVALS], NOTE)
    write_text(out / "table.md", table.markdown() + "\n")
    print("", table.plain(), *map(fill, (NOTE, verdict(runs))), sep="\n\n")
    say(
        f"\nThe table, figures and records are in {out} ({time.monotonic() - started:.0f} s). To see everything on one "
        f"page, open {out / 'report.html'} in a browser."
    )


def _row(rival: Rival, runs: Sequence[RunRecord]) -> list[Cell]:
    difference = "is the baseline" if rival is ORDINARY else _difference(rival, ORDINARY, runs)
    return [rival.label, describe(list(_scores(rival, runs).values())), difference]


def _scores(rival: Rival, runs: Sequence[RunRecord]) -> dict[int, float]:
    return scores_by_seed([run for run in runs if run.loss == rival.loss], rival.score)


def _difference(rival: Rival, other: Rival, runs: Sequence[RunRecord]) -> Difference:
    difference = paired_difference(_scores(rival, runs), _scores(other, runs))
    assert difference is not None  # every loss was run with every seed
    return difference


def verdict(runs: Sequence[RunRecord]) -> str:
    """Return one sentence that compares the learned loss with cross-entropy, at 1/2 and at its tuned threshold."""
    at_half, at_tuned = (_difference(LEARNED, other, runs) for other in (ORDINARY, TUNED))
    return (
        f"The learned loss {_compared(at_half)} cross-entropy ({at_half}) and {_compared(at_tuned)} cross-entropy with "
        f"a tuned threshold ({at_tuned})."
    )


def _compared(difference: Difference) -> str:
    words = {Side.ABOVE: "beats", Side.BELOW: "loses to"}
    return words.get(difference.side, "is too close to call against")


def _draw(records: Records, runs: Sequence[RunRecord], workspace: Workspace, figures: Path) -> None:
    """Draw the training curves, and loss against metric for the surrogate of the runs, into the folder `figures`."""
    name = next(run.surrogate for run in runs if run.loss == LEARNED.loss)
    record = next(surrogate for surrogate in records.surrogates_of(EXPERIMENT) if surrogate.reference == name)
    surrogate = load(workspace.experiment(EXPERIMENT) / record.reference)
    options = LearnOptions.model_validate(record.learn)
    training_curves(list(runs), f"validation_{SCORE}", figures / "training_curves.png")
    bank, metric = PredictionBank.open(workspace.bank(EXPERIMENT)), get_metric(record.metric)
    loss_against_metric(surrogate, bank, metric, options, figures / "loss_against_metric.png")
