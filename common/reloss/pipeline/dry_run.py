"""The steps that a run would do, and what it lacks: the stages of `reloss.pipeline.stages`, without starting one.

Reads records, banks and surrogates, looks for packages and data, and writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from reloss.experiment.record import read_summary
from reloss.experiment.run_spec import RunSpec
from reloss.experiment.status import Status
from reloss.learning import PredictionBank
from reloss.pipeline import fitting, preflight, recording
from reloss.pipeline.context import Context
from reloss.runtime.errors import RelossError
from reloss.runtime.lock import is_locked
from reloss.surrogates.storage import is_saved

FINISHED = "finished, skipped"
RESUMES = "resumes"
PENDING = "to do"
RUNNING = "running in another process"


@dataclass(frozen=True)
class Step:
    """One step of a run.

    Attributes:
        name: what is done, such as `train reloss seed 0`.
        state: whether it is finished or what happens, such as `to do`.
        folder: where its results go.
    """

    name: str
    state: str
    folder: Path


def steps(context: Context) -> list[Step]:
    """Return the steps of a run in their order, those of other runs that it needs included.

    Raises:
        RelossError: a record, a bank or a surrogate is damaged, or the input of the stage is missing.
    """
    return list(dict.fromkeys(_steps(context)))


def _steps(context: Context) -> Iterator[Step]:
    stage, config = context.stage, context.config
    everything = stage == "all"
    if everything or stage == "baseline":
        for required in config.required_runs():
            yield from _steps(context.of(RunSpec.resolve(*required)))
    if stage == "baseline" or (everything and context.is_fitted):
        yield _bank_step(context)
    if (everything or stage == "learn") and context.is_fitted and config.refit:
        yield from _steps(context.of(context.run.first_round()))
    is_recorded = context.is_fitted and context.run.seed == config.recording.seed  # the step of the bank trains it
    if everything and config.fine_tunes and not (is_recorded or preflight.baseline_weights(context)):
        yield _training_step(context.of_baseline(context.run.seed))
    if stage == "learn":
        yield _fit_step(context)
    if stage in ("all", "train"):
        training = _training_step(context)
        if training.state != FINISHED:
            if stage == "train":
                preflight.initial_weights(context)
            if context.is_fitted:
                yield _fit_step(context)
        yield training
    if stage == "evaluate":
        preflight.check_record(context)
        yield Step(f"evaluate {_label(context.run)}", PENDING, context.record)


def _bank_step(context: Context) -> Step:
    recorded = context.of_baseline(context.config.recording.seed)
    name = f"record the prediction bank: train {_label(recorded.run)}"
    if recording.complete_bank(context) is not None:
        return Step(name, FINISHED, context.bank)
    if is_locked(context.bank):
        return Step(name, RUNNING, context.bank)
    return Step(name, RESUMES if recording.is_resumable(recorded) else PENDING, context.bank)


def _fit_step(context: Context) -> Step:
    """Return the step of the fit; the name of the surrogate's folder is known once the bank is complete."""
    preflight.check_is_learned(context)
    again = ", again with validation predictions" if context.config.refit else ""
    name = f"fit {context.run.loss} to {context.config.metric}{again}"
    bank = recording.complete_bank(context)
    if bank is None and context.stage != "all":
        raise preflight.no_bank(context)
    folders = [fitting.fit_plan(context, each)[1] for each in _possible_banks(context, bank)]
    for folder in folders:
        if is_saved(folder):
            return Step(name, FINISHED, folder)
        if is_locked(folder):
            return Step(name, RUNNING, folder)
    resumed = [folder for folder in folders if (folder / "fit.pt").exists()]
    folder = (resumed or folders or [context.workspace.surrogate(context.config.name, "<hash>")])[0]
    return Step(name, RESUMES if resumed else PENDING, folder)


def _possible_banks(context: Context, bank: PredictionBank | None) -> Iterator[PredictionBank]:
    """Yield the banks that the fit may learn from. Which one it is follows from measured metrics; see `bank_to_fit`."""
    if bank is None or context.config.refit:
        return
    yield bank
    held_out = context.workspace.held_out_bank(bank.path)
    if (held_out / "bank.json").exists():
        yield PredictionBank.open(held_out)


def _training_step(context: Context) -> Step:
    name, status = f"train {_label(context.run)}", read_summary(context.record).get("status")
    records_bank = context.may_record_bank() and recording.complete_bank(context) is None
    if preflight.is_finished(context):
        return Step(name, "again, to record the bank" if records_bank else FINISHED, context.record)
    if is_locked(context.record):
        return Step(name, RUNNING, context.record)
    if status == Status.FAILED:
        return Step(name, "failed, tried again", context.record)
    return Step(name, RESUMES if status else PENDING, context.record)


def _label(run: RunSpec) -> str:
    return f"{run.loss_with_variant} seed {run.seed}"


def obstacles(context: Context) -> list[str]:
    """Return why the run cannot start: missing packages, data or input, or a record that it must not touch."""
    checks: tuple[Callable[[], object], ...] = (
        context.task.check_packages,
        lambda: context.task.check_data(context.config, context.workspace.data),
        lambda: preflight.check_resume(context),
        lambda: steps(context),
    )
    reasons = []
    for check in checks:
        try:
            check()
        except RelossError as error:
            reasons.append(str(error))
    return list(dict.fromkeys(reasons))
