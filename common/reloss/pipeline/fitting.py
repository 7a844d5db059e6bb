"""Fitting a surrogate in a folder: resumable, written once, then shared by every run with the same options.

The folder is named by a hash of the options of the fit and the surrogate, the fingerprint of the bank and the name of
the metric; for a metric of the user's own, also its code. So a second run with the same options finds the surrogate,
and a change of any of them makes another one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from reloss.experiment.config import FITTED_LOSSES
from reloss.experiment.record_parts import LiveFolder
from reloss.experiment.records import read_surrogate
from reloss.experiment.run_spec import RunSpec
from reloss.experiment.workspace import Workspace
from reloss.learning import FitResult, LearnOptions, PredictionBank, fit_surrogate
from reloss.learning.picture import measure_picture
from reloss.metrics import METRICS, PerItem, get_metric
from reloss.metrics.identity import identity
from reloss.pipeline.context import Context, sole_writer
from reloss.pipeline.pictures import write_picture
from reloss.pipeline.recording import bank_to_fit, complete_bank
from reloss.runtime import distributed
from reloss.runtime.checkpoint import remove_checkpoint
from reloss.runtime.errors import RelossError
from reloss.runtime.files import remove_stale, short_hash, write_text
from reloss.runtime.progress import say
from reloss.runtime.signals import terminable
from reloss.runtime.text import finite
from reloss.surrogates import SurrogateLoss, load


def learn(
    surrogate: SurrogateLoss,
    bank: PredictionBank,
    metric: str,
    options: LearnOptions,
    folder: Path,
    higher_is_better: bool = True,
    on_validation: Callable[[dict[str, float]], None] | None = None,
) -> dict[str, float]:
    """Fit `surrogate` on `bank`, resuming an interrupted fit, and save it in `folder`; return the fit's results.

    The processes of a distributed run fit it together, and the main one writes.

    Args:
        surrogate: an unfitted surrogate, which the fit changes.
        bank: the recorded predictions.
        metric: name of the metric whose ranking the surrogate learns.
        options: options of the fit.
        folder: folder for the surrogate, its card and the history of the fit.
        higher_is_better: whether a larger value of the metric is a better prediction.
        on_validation: called with the results of each validation.

    Raises:
        RelossError: the bank or the checkpoint of an interrupted fit is damaged, or the folder cannot be written.
        UsageError: another process writes to the folder.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    code = metric_code(metric)  # before the metric is called, which may change what it refers to
    with terminable(), sole_writer(folder):
        if distributed.is_main():
            remove_stale(folder)
        result = fit_surrogate(
            surrogate,
            bank,
            get_metric(metric),
            higher_is_better=higher_is_better,
            options=options,
            device=device,
            checkpoint=folder / "fit.pt",
            on_validation=on_validation,
            distributed=distributed.processes() > 1,
        )
        if distributed.is_main():
            facts = {"metric": metric, **code, "higher_is_better": higher_is_better}
            _save(result, bank, options, folder, facts)
    distributed.barrier()  # the other processes load it next
    summary: dict[str, float] = finite(result.summary())
    return summary


def _save(result: FitResult, bank: PredictionBank, options: LearnOptions, folder: Path, facts: dict[str, Any]) -> None:
    """Write the surrogate, its card with the `facts` about the metric, its picture and the history of the fit."""
    write_text(folder / "history.jsonl", "".join(json.dumps(finite(entry)) + "\n" for entry in result.history))
    metric, fit = facts["metric"], finite(result.summary())
    card = {
        **facts,
        "features": result.surrogate.sees,
        "learn": options.model_dump(),
        "bank": bank.fingerprint(),
        "fit": fit,
        "fit_hash": short_hash(fit),
    }
    write_picture(folder, measure_picture(result.surrogate.cpu(), bank, get_metric(metric), options))
    result.surrogate.save_pretrained(folder, card)
    remove_checkpoint(folder / "fit.pt")
    say(
        f"surrogate in {folder}: Spearman correlation with {metric} on {result.validation_items} held-out recorded "
        f"items {result.spearman:.4f} (the ordinary loss: {result.spearman_ordinary:.4f})"
    )


def metric_code(metric: str) -> dict[str, str]:
    """Return what a card holds of a metric besides its name: a hash of its code if it is not one of reloss's own."""
    if metric in METRICS:
        return {}
    function = get_metric(metric)
    return {"metric_code": identity(function.function if isinstance(function, PerItem) else function)}


def fit_plan(context: Context, bank: PredictionBank) -> tuple[LearnOptions, Path]:
    """Return the options of the fit for this run's loss, and the folder that is named after them."""
    options = LearnOptions.model_validate(
        {**context.config.learn.model_dump(exclude_unset=True), **FITTED_LOSSES[context.run.loss]}
    )
    surrogate = context.task.new_surrogate(context.config, context.run.loss)
    resolved = options.for_surrogate(surrogate.penalty).model_dump(exclude={"patience"})
    if options.patience is not None:
        resolved["patience"] = options.patience
    metric = context.config.metric
    name = short_hash([resolved, surrogate.options(), bank.fingerprint(), metric, *metric_code(metric).values()])
    return options, context.workspace.surrogate(context.config.name, name)


def surrogate_folder(run: RunSpec, workspace: Workspace) -> Path | None:
    """Return the folder in which a run's surrogate is or will be, or None if its bank is not complete.

    Raises:
        RelossError: the bank is damaged.
    """
    context = Context(run, *run.load(), workspace)
    bank = complete_bank(context)
    return fit_plan(context, bank_to_fit(context, bank))[1] if bank is not None else None


def load_surrogate(context: Context, folder: Path) -> tuple[SurrogateLoss, dict[str, Any]]:
    """Return the surrogate in a folder, and the facts about it for the summary of a run.

    Raises:
        RelossError: the surrogate is damaged.
    """
    try:
        surrogate = load(folder)
        record = read_surrogate(LiveFolder(context.workspace.name(folder), folder))
    except RelossError as error:
        raise RelossError(f"{error}; remove {folder} to fit the surrogate on the bank again") from error
    return surrogate, {"folder": str(folder.relative_to(context.home)), **(record.fit if record else {})}
