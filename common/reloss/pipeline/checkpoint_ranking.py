"""How well the losses of an experiment rank the recorded checkpoints of its finished runs.

A run records the predictions of its checkpoints on the same validation examples. All of them together, over runs and
epochs, are ranked by the metric and by minus each loss; a loss that agrees with the metric prefers the better models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reloss.experiment.config import FITTED_LOSSES
from reloss.experiment.predictions import read_predictions
from reloss.experiment.record import skipping_damage
from reloss.experiment.record_parts import LiveFolder
from reloss.experiment.records import read_run, read_surrogate
from reloss.experiment.status import Status
from reloss.experiment.task import find_experiment
from reloss.experiment.workspace import Workspace
from reloss.learning.diagnostics import Checkpoints, rank_checkpoints
from reloss.metrics import get_metric
from reloss.runtime.errors import UsageError
from reloss.runtime.files import write_json
from reloss.runtime.progress import progress
from reloss.surrogates import SurrogateLoss, load


def finished_runs(
    workspace: Workspace, experiment: str, gold: Callable[[Tensor], Tensor], like: Tensor | None = None
) -> dict[str, Checkpoints]:
    """Return the predictions of an experiment's finished runs on the same examples.

    Damaged records are reported and skipped.

    Args:
        workspace: where the records lie.
        experiment: name of the experiment.
        gold: returns the part of the targets that belongs to the examples, not to the predictions; it identifies them.
        like: targets [E, ...] of the examples; those of the first record by default.

    Returns:
        Predictions by the name of the record within the experiment, <loss>[@<variant>]/seed<N>.
    """
    runs: dict[str, Checkpoints] = {}
    for folder in workspace.records(experiment):
        predictions = None
        with skipping_damage():
            record = read_run(LiveFolder(workspace.name(folder), folder))
            if record is not None and record.status == Status.FINISHED:
                predictions = read_predictions(folder)
        if predictions is None:
            continue
        like = predictions[1][0] if like is None else like
        if torch.equal(gold(predictions[1][0]), gold(like)):
            runs[workspace.name(folder).removeprefix(f"{experiment}/")] = predictions
    return runs


def diagnose_loss(
    surrogate: SurrogateLoss, metric: str, runs: Sequence[Checkpoints], learned: bool = True
) -> dict[str, float]:
    """Return how well a loss ranks the checkpoints of `runs`: the surrogate or, if not `learned`, the ordinary loss.

    Runs with predictions of another form than the surrogate takes, such as those of an earlier version, are skipped.
    The result is empty if no run is left.
    """
    if learned:
        runs = [run for run in runs if _takes(surrogate, run)]
    per_item = surrogate.per_item if learned else surrogate.ordinary_loss
    return rank_checkpoints(per_item, get_metric(metric), runs).summary() if runs else {}


def _takes(surrogate: SurrogateLoss, run: Checkpoints) -> bool:
    """Return whether the surrogate can compute the loss of the run's predictions."""
    outputs, targets = run
    try:
        surrogate.check(outputs[:1], targets[:1])
    except ValueError:
        return False
    return True


def diagnose(experiment: str, workspace: Workspace) -> tuple[list[dict[str, Any]], dict[str, Checkpoints]]:
    """Rank the checkpoints of an experiment's finished runs with the ordinary loss and with every surrogate.

    Writes the correlations of each surrogate into its folder, as `diagnostics.json`. Damaged records and surrogates are
    reported and skipped.

    Returns:
        One entry per loss, and the predictions that were ranked, as `finished_runs` returns them. An entry has the name
        of the loss, the metric and the correlations; that of a surrogate also its folder and the results of its fit.

    Raises:
        UsageError: the experiment is unknown, or no finished run has recorded predictions.
    """
    task, config = find_experiment(experiment)
    fresh = task.new_surrogate(config)
    predictions = finished_runs(workspace, config.name, fresh.gold)
    if not predictions:
        raise UsageError(
            f"no finished run with recorded predictions in {workspace.experiment(config.name)}; start with `reloss run "
            f"{experiment}`, or name another folder with --runs"
        )
    runs = list(predictions.values())
    ordinary = diagnose_loss(fresh, config.metric, runs, learned=False)
    entries: list[dict[str, Any]] = [{"loss": config.ordinary_loss, "metric": config.metric, **ordinary}]
    folders = workspace.surrogates(config.name)
    with progress(len(folders), "surrogates") as advance:
        for folder in folders:
            with skipping_damage():
                entries += _diagnose_surrogate(folder, workspace, runs)
            advance()
    return entries, predictions


def _diagnose_surrogate(folder: Path, workspace: Workspace, runs: Sequence[Checkpoints]) -> list[dict[str, Any]]:
    """Return the entry of the surrogate in `folder`, and write its correlations there; empty if it is not fitted."""
    record = read_surrogate(LiveFolder(workspace.name(folder), folder))
    if record is None:
        return []
    correlations = diagnose_loss(load(folder), record.metric, runs)
    write_json(folder / "diagnostics.json", correlations)
    loss = next((name for name, fit in FITTED_LOSSES.items() if fit["objective"] == record.objective), "reloss")
    return [{"loss": loss, "folder": record.reference, "metric": record.metric, **record.fit, **correlations}]
