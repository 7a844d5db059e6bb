"""The stages of a run: baseline -> learn -> train -> evaluate.

The baseline trains with the ordinary loss and records its predictions in a bank; `learn` fits a surrogate on the bank;
`train` trains with the loss of the run and evaluates. Each stage skips what is finished and resumes what was
interrupted, so the same command can be run again at any time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from reloss.experiment import environment
from reloss.experiment.predictions import read_predictions
from reloss.experiment.record import Record
from reloss.experiment.run_spec import RunSpec, Stage, variant_name
from reloss.experiment.seeds import seed_everything
from reloss.experiment.status import Status
from reloss.experiment.task import Run
from reloss.experiment.tracker import Tracker
from reloss.experiment.workspace import Workspace
from reloss.learning import LearnOptions, PredictionBank
from reloss.pipeline import fitting, preflight, recording
from reloss.pipeline.checkpoint_ranking import diagnose_loss, finished_runs
from reloss.pipeline.context import Context, Resume, sole_writer
from reloss.pipeline.outcome import clean_up, recorded_outcome
from reloss.runtime import distributed
from reloss.runtime.errors import RelossError
from reloss.runtime.progress import say
from reloss.runtime.signals import terminable
from reloss.surrogates import SurrogateLoss
from reloss.surrogates.storage import is_saved
from reloss.tracking.trackers import check_track, make_tracker


def run(
    spec: RunSpec,
    workspace: Workspace,
    *,
    stage: Stage = "all",
    track: str = "wandb",
    resume: Resume = "auto",
    allow_changed_data: bool = False,
) -> Path:
    """Run one stage of a run, or all of them; what is finished is skipped.

    Args:
        spec: the run.
        workspace: where records and data lie.
        stage: the stage; `all` includes the baseline and the runs of other experiments that the run needs.
        track: where metrics are mirrored: trackers separated by commas, or `off`; see `reloss.tracking.trackers`.
        resume: `never` refuses to touch a record that exists.
        allow_changed_data: whether to continue if the data changed since the record or the bank was written.

    Returns:
        The folder of the record; for the stage `learn`, that of the surrogate.

    Raises:
        UsageError: an unknown experiment, setting or tracker, or the input of the stage is missing.
        RelossError: anything else that stops the run; once training has started, its record says `failed` and keeps
            what was recorded.
    """
    check_track(track)
    context = Context(spec, *spec.load(), workspace, stage, track, resume, allow_changed_data)
    stages = {
        "all": train_with_inputs,
        "baseline": baseline,
        "learn": learn_with_inputs,
        "train": train,
        "evaluate": evaluate,
    }
    distributed.start()
    with terminable():
        if stage in ("all", "train"):
            preflight.check_resume(context)
        if stage in ("all", "baseline"):
            run_prerequisites(context)
        return stages[stage](context)


def run_prerequisites(context: Context) -> None:
    """Run the runs of other experiments whose records this run uses, unless they are finished."""
    for required in context.config.required_runs():
        prerequisite = context.of(RunSpec.resolve(*required))
        if not preflight.is_finished(prerequisite):
            train_with_inputs(prerequisite)


def baseline(context: Context) -> Path:
    """Train with the ordinary loss and record the bank, unless the bank is complete; return the record."""
    recorded = context.of_baseline(context.config.recording.seed)
    if context.stage == "baseline":
        preflight.check_resume(recorded)
    bank = recording.complete_bank(context)
    if bank is None:
        return train(recorded)
    say(f"bank is complete: {bank.path}")
    return recorded.record


def learn_with_inputs(context: Context) -> Path:
    """Run what a second fit learns from, then fit the surrogate of the run's loss; return its folder."""
    if context.is_fitted and context.config.refit:
        train_with_inputs(context.of(context.run.first_round()))
    return learn(context)


def learn(context: Context) -> Path:
    """Fit the surrogate of the run's loss on the bank, unless it is fitted; return its folder.

    Raises:
        UsageError: the loss is not learned, or the bank is not complete.
    """
    preflight.check_is_learned(context)
    bank = recording.complete_bank(context)
    if bank is None:
        raise preflight.no_bank(context)
    bank = recording.bank_to_fit(context, bank)
    options, folder = fitting.fit_plan(context, bank)
    if is_saved(folder):
        say(f"surrogate is learned: {folder}")
        return folder
    seed_everything(options.seed)
    surrogate = context.task.new_surrogate(context.config, context.run.loss)
    with _tracked_fit(context, bank, options, folder) as tracker:
        fit = fitting.learn(surrogate, bank, context.config.metric, options, folder, on_validation=tracker.log)
        tracker.log_surrogate(context.config.name, folder)
        tracker.finish(fit, failed=False)
    return folder


@contextmanager
def _tracked_fit(context: Context, bank: PredictionBank, options: LearnOptions, folder: Path) -> Iterator[Tracker]:
    """Yield the started tracker of a fit. The block finishes it; if it does not, tracking ends as failed."""
    tracker = make_tracker(context.track if distributed.is_main() else "off")
    facts = {
        "loss": context.run.loss,
        "variant": variant_name(context.run.fit_settings),
        "learn": options.model_dump(mode="json"),
        "bank": bank.fingerprint(),
        "fitted_surrogate": {"folder": str(folder.relative_to(context.home))},
    }
    tracker.start(folder, context.config, "learn", environment.commit(), facts)
    tracker.log_bank(context.config.name, bank, used=True)
    try:
        yield tracker
    except BaseException:
        tracker.finish({}, failed=True)
        raise


def train_with_inputs(context: Context) -> Path:
    """Run the baselines that the run needs, then train; return the record."""
    if context.is_fitted:
        baseline(context)
        if context.config.refit:
            train_with_inputs(context.of(context.run.first_round()))
    if context.config.fine_tunes and not preflight.baseline_weights(context):
        train(context.of_baseline(context.run.seed))
    return train(context)


def train(context: Context) -> Path:
    """Train with the run's loss and evaluate, unless the run is finished; return the record.

    Fits the surrogate first if the loss is learned, and records the bank if the run is the recorded baseline.
    """
    records_bank = context.may_record_bank() and recording.complete_bank(context) is None
    if preflight.is_finished(context) and not records_bank:
        say(f"finished already: {context.record}")
        return context.record
    checks = preflight.check_training(context)
    with _open_run(context, checks, records_bank) as run:
        context.task.train(run)
        scores = _finish(context, run)
    _report(context, scores)
    return context.record


def evaluate(context: Context) -> Path:
    """Evaluate the weights in the run's record again; return the record."""
    checks = preflight.check_evaluation(context)
    with _open_run(context, checks) as run:
        run.record.tracker.replay(run.record.metrics.path, run.record.metrics.lines)
        scores = _finish(context, run)
    _report(context, scores)
    return context.record


@contextmanager
def _open_run(context: Context, checks: preflight.Preflight, records_bank: bool = False) -> Iterator[Run]:
    """Yield the run for its task, with locked folders; write into the record how the block ended."""
    facts, surrogate, folder = checks.facts, None, None
    if context.is_fitted:
        folder = learn(context)
        surrogate, description = fitting.load_surrogate(context, folder)
        facts = {**facts, "surrogate": description}
    from_scratch = records_bank and not recording.is_resumable(context)
    distributed.barrier()  # every process has checked what exists before the main one changes it
    with sole_writer(context.record), sole_writer(context.bank) if records_bank else nullcontext():
        if distributed.is_main():
            clean_up(context.record)
        is_new = not (context.record / "summary.json").exists()
        record = Record(context.record, context.config, facts=facts, tracker=make_tracker(context.track))
        if from_scratch:
            record.discard_checkpoint()
        with recorded_outcome(record, is_new=is_new):
            with distributed.main_first():
                bank = recording.open_bank(context, from_scratch) if records_bank else None
            if folder is not None:
                record.tracker.log_surrogate(context.config.name, folder, used=True)
            yield Run(
                context.config.model_copy(update={"train": context.config.train.shortened()}),
                context.run.loss,
                context.run.seed,
                context.workspace.data,
                record,
                bank,
                surrogate,
                checks.initial_weights,
            )


def _finish(context: Context, run: Run) -> dict[str, float]:
    """Evaluate a trained run, and complete its record and its bank; return the scores."""
    scores = _finite_scores(context.task.evaluate(run), context.config.score)
    run.flush_bank()
    bank = run.bank if distributed.is_main() else None
    if bank is not None:
        bank.merge()
        recording.record_held_out(context)
        run.record.tracker.log_bank(context.config.name, bank)
    run.record.close(Status.FINISHED, scores, diagnostics=_diagnostics(context, run.surrogate))
    if bank is not None:
        bank.finish()
    distributed.barrier()
    return scores


def _finite_scores(scores: dict[str, float], score: str) -> dict[str, float]:
    """Return the scores that are finite, and name the others.

    Raises:
        RelossError: the experiment's own score is not finite.
    """
    if not math.isfinite(scores.get(score, 0.0)):
        raise RelossError(
            f"{score} of the trained model is {scores[score]}: training diverged, or the score is undefined on these "
            "data; a smaller learning rate (train.lr) may help"
        )
    missing = [name for name, value in scores.items() if not math.isfinite(value)]
    if missing:
        say(f"note: the record lacks {', '.join(missing)}, which are not finite")
    return {name: value for name, value in scores.items() if name not in missing}


def _diagnostics(context: Context, surrogate: SurrogateLoss | None) -> dict[str, float]:
    """Return how well the run's loss ranks the checkpoints of this run and of all finished ones.

    Empty if the loss is neither learned nor the ordinary one, or if the run recorded no predictions.
    """
    predictions = read_predictions(context.record) if distributed.is_main() else None
    if predictions is None or (surrogate is None and context.run.loss != context.config.ordinary_loss):
        return {}
    loss = surrogate or context.task.new_surrogate(context.config)
    runs = finished_runs(context.workspace, context.config.name, loss.gold, predictions[1][0])
    runs[str(context.record.relative_to(context.home))] = predictions
    return diagnose_loss(loss, context.config.metric, list(runs.values()), surrogate is not None)


def _report(context: Context, scores: dict[str, float]) -> None:
    values = " ".join(f"{name} {value:.4f}" for name, value in scores.items())
    say(f"{context.config.name} {context.run.loss} seed {context.run.seed}: {values} ({context.record})")
