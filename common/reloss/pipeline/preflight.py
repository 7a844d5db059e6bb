"""Everything that is checked before a run's record is created.

A run that cannot succeed should fail in its first seconds and leave nothing behind. So its inputs, the data and the
records of other runs are checked here, and only then does a stage write to disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from reloss.experiment.config import FITTED_LOSSES
from reloss.experiment.record import read_summary, skipping_damage, weights_file
from reloss.experiment.settings import current_config, differing, flat
from reloss.experiment.status import Status
from reloss.experiment.task import comparable
from reloss.learning import PredictionBank
from reloss.pipeline.context import Context
from reloss.runtime.errors import UsageError
from reloss.runtime.files import read_object
from reloss.runtime.progress import say


@dataclass(frozen=True)
class Preflight:
    """The results of the checks.

    Attributes:
        facts: what identifies the run in its summary.
        initial_weights: the weights of a finished baseline, if the run fine-tunes them.
    """

    facts: dict[str, Any]
    initial_weights: Path | None = None


def is_finished(context: Context) -> bool:
    """Return whether the run is finished.

    Raises:
        RelossError: its record is damaged.
        UsageError: its folder holds a run with other settings, whose names differ only in slashes and spaces.
    """
    if read_summary(context.record).get("status") != Status.FINISHED:
        return False
    recorded = flat(current_config(read_object(context.record / "config.yaml")))
    today = flat(context.config.model_dump(mode="json"))
    keys = {setting.partition("=")[0] for setting in context.run.settings}
    if other := differing(recorded, {name: value for name, value in today.items() if name in keys}):
        raise UsageError(f"{context.record} holds a run with {', '.join(other)}; choose another --runs")
    return True


def check_training(context: Context) -> Preflight:
    """Check that a run can be trained.

    Raises:
        UsageError: the record may not be touched, the data changed, or there are no weights to fine-tune.
        RelossError: the data or a package are missing, or a record or the bank is damaged.
    """
    check_resume(context)
    facts = _facts(context)
    context.task.check_packages()
    weights = initial_weights(context)
    if context.config.train.precision == "bf16" and _emulates_bfloat16():
        say(
            "note: this processor computes bfloat16 in software, tens of times as slowly as float32; consider --set "
            "train.precision=no, which is another protocol"
        )
    return Preflight(facts, weights)


def _emulates_bfloat16() -> bool:
    """Return whether training runs on a processor without instructions for bfloat16."""
    capability = torch.backends.cpu.get_cpu_capability()
    return not torch.cuda.is_available() and capability in ("NO AVX", "DEFAULT", "AVX2")


def check_evaluation(context: Context) -> Preflight:
    """Check that a run has a record whose weights can be evaluated.

    Raises:
        UsageError: there is no record, it may not be touched, or the data changed.
        RelossError: the data are missing, or a record or the bank is damaged.
    """
    check_resume(context)
    check_record(context)
    return Preflight(_facts(context))


def check_record(context: Context) -> None:
    """Raise UsageError if there is no record to evaluate."""
    if not read_summary(context.record):
        raise UsageError(f"no record to evaluate in {context.record}; run --stage train (or all) first")


def check_is_learned(context: Context) -> None:
    """Raise UsageError if the run's loss has no surrogate."""
    if not context.is_fitted:
        raise UsageError(f"'{context.run.loss}' is not learned; --stage learn needs {' or '.join(FITTED_LOSSES)}")


def no_bank(context: Context) -> UsageError:
    """Return the error of a fit whose bank is not complete."""
    return UsageError(f"no complete bank in {context.bank}; run --stage baseline (or all) first")


def check_resume(context: Context) -> None:
    """Raise UsageError if the record exists, with or without a summary, and the run must not touch it."""
    if context.resume == "never" and any(context.record.glob("*")):
        raise UsageError(
            f"{context.record} holds a record, and --resume never does not touch it: move it away, or change --runs"
        )


def _facts(context: Context) -> dict[str, Any]:
    """Return what identifies the run in its summary, after checking that the data are the same as before."""
    run, config = context.run, context.config
    facts: dict[str, Any] = {
        "experiment": config.name,
        "loss": run.loss,
        "variant": run.variant,
        "settings": list(run.settings),
        "seed": run.seed,
        "protocol": config.protocol(),
        "score": config.score,
        "data": context.data_fingerprint,
    }
    if previous := _previous_data(context):
        facts["data_before"] = ", ".join(previous)
    return facts


def _previous_data(context: Context) -> list[str]:
    """Return the fingerprints of other data that the record or the bank comes from, if that is allowed.

    Raises:
        UsageError: the data changed, and the command does not allow that.
    """
    summary = read_summary(context.record)
    recorded = [(context.record, summary.get("data"))]
    if context.is_fitted and (context.bank / "bank.json").exists():
        origin = PredictionBank.open(context.bank).meta["origin"]
        recorded.append((context.bank, origin.get("data_fingerprint")))
    previous = [summary["data_before"]] if "data_before" in summary else []
    current = context.data_fingerprint
    for path, fingerprint in recorded:
        if fingerprint in (None, current):
            continue
        if not comparable(fingerprint, current):
            say(f"note: {path} has a data fingerprint of an earlier kind; whether the data changed is unknown")
            continue
        change = f"the data changed since {path} was recorded: their fingerprint was {fingerprint}, now {current}"
        if not context.allow_changed_data:
            raise UsageError(f"{change}; restore them, choose another --runs, or add --allow-changed-data")
        say(f"warning: {change}")
        previous.append(fingerprint)
    return list(dict.fromkeys(previous))


def initial_weights(context: Context) -> Path | None:
    """Return the weights that a fine-tuning run starts from: those of the finished baseline with its seed.

    Raises:
        UsageError: there are none.
    """
    if not context.config.fine_tunes:
        return None
    weights = baseline_weights(context)
    if not weights:
        raise UsageError(
            f"to fine-tune, first run --loss {context.config.ordinary_loss} --seed {context.run.seed} with the same "
            f"data, model and recipe: no finished one in {context.home}"
        )
    return weights[0]


def baseline_weights(context: Context) -> list[Path]:
    """Return the weights of finished baselines with the same seed and protocol, those with the fewest settings first.

    Damaged records are reported and skipped.
    """
    config, seed = context.config, context.run.seed
    required = {"status": Status.FINISHED, "loss": config.ordinary_loss, "protocol": config.protocol()}
    matches = []
    for folder in context.home.glob(f"{config.ordinary_loss}*/seed{seed}"):
        with skipping_damage():
            summary = read_summary(folder)
            if required.items() <= summary.items() and weights_file(folder).exists():
                matches.append((len(summary["settings"]), weights_file(folder)))
    return [weights for _, weights in sorted(matches)]
