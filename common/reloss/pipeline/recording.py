"""The prediction bank of a run: the baseline fills it, and every fit of the same experiment reads it.

The bank states its origin: the protocol, the recording settings, and the record that fills it. Runs with another
protocol use another bank (see `reloss.experiment.banks`).

A model that has learned a small training set by heart predicts it without errors. Then nearly all recorded items have
the same metric, and there is nothing to rank. So the predictions for validation examples, which every epoch keeps in
the record, fill a second bank, and a fit uses it where the first one is saturated.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import torch

from reloss.experiment.config import Recording
from reloss.experiment.predictions import read_predictions
from reloss.learning import PredictionBank
from reloss.learning.diagnostics import Checkpoints
from reloss.learning.items import Items
from reloss.learning.measure import Measure
from reloss.metrics import get_metric
from reloss.pipeline.context import Context, sole_writer
from reloss.pipeline.preflight import is_finished
from reloss.runtime import distributed
from reloss.runtime.errors import UsageError
from reloss.runtime.files import remove_stale, short_hash
from reloss.runtime.progress import say

SATURATED = 0.75  # a bank with a larger share of items at the best value of the metric is not learned from
SAMPLE = 256  # items that show whether a bank is saturated
HELD_OUT_ITEMS = 512  # items that the bank of validation examples has at least


def complete_bank(context: Context) -> PredictionBank | None:
    """Return the experiment's bank if it is complete.

    Raises:
        RelossError: it is damaged.
    """
    bank = _open_existing(context.bank)
    return bank if bank is not None and bank.meta["complete"] else None


def is_resumable(context: Context) -> bool:
    """Return whether there is a bank to resume; an empty bank that another run left is not."""
    bank = _open_existing(context.bank)
    return bank is not None and (len(bank) > 0 or bank.meta["origin"] == _origin(context))


def open_bank(context: Context, from_scratch: bool) -> PredictionBank:
    """Return the bank that this process fills: the one of an interrupted run, or an empty one.

    Raises:
        UsageError: another run is recording it.
    """
    path, recording = context.bank, context.config.recording
    if distributed.is_main():
        remove_stale(path)
        if from_scratch:
            (path / "bank.json").unlink(missing_ok=True)
    if not (path / "bank.json").exists():
        PredictionBank.create(
            path,
            item_size=recording.item_size,
            max_bytes=recording.max_bytes,
            seed=recording.seed,
            origin=_origin(context),
        )
    bank = PredictionBank.open(path, writer=distributed.rank(), writers=distributed.processes())
    if (recorder := bank.meta["origin"].get("record")) != _origin(context)["record"]:
        raise UsageError(f"{path} is being recorded by {recorder}; finish that run first")
    return bank


def record_held_out(context: Context) -> None:
    """Fill the bank of predictions for validation examples from the record, in which every epoch left them.

    The items of an epoch are random groups of its examples. Several groupings are taken where the examples are few.
    Does nothing if the record has fewer examples than an item.
    """
    predictions, recording = read_predictions(context.record), context.config.recording
    if predictions is None or len(predictions[0][0]) < recording.item_size:
        return
    _fill(context.workspace.held_out_bank(context.bank), predictions, recording, _origin(context))


def _fill(path: Path, predictions: Checkpoints, recording: Recording, origin: dict[str, Any]) -> PredictionBank:
    """Return a new bank in the folder `path` of groups of the same examples, at all epochs."""
    for part in path.glob("[!.]*"):  # all but the lock
        shutil.rmtree(part) if part.is_dir() else part.unlink()
    bank = PredictionBank.create(
        path, item_size=recording.item_size, max_bytes=recording.max_bytes, seed=recording.seed, origin=origin
    )
    generator = torch.Generator().manual_seed(recording.seed)
    examples = len(predictions[0][0])
    whole = examples // recording.item_size * recording.item_size
    items = len(predictions[0]) * whole // recording.item_size
    for step, (outputs, targets) in enumerate(zip(*predictions, strict=True)):
        for _ in range(-(-HELD_OUT_ITEMS // items)):
            group = torch.randperm(examples, generator=generator)[:whole]
            bank.append(outputs[group], targets[group], step=step)
    bank.finish()
    return bank


def refit_bank(context: Context) -> PredictionBank:
    """Return the bank of a second fit: the predictions for validation examples of the baseline and of the first round.

    The first round is the run without `refit` and with the seed of the bank. The bank is filled from both records, and
    again if their predictions changed.

    Raises:
        UsageError: the first round is not finished, or it recorded too few predictions.
        RelossError: a record is damaged.
    """
    first, recording = context.of(context.run.first_round()), context.config.recording
    if not is_finished(first):
        raise UsageError(f"a second fit needs the finished run {first.run.label()}; run --stage all")
    sources = [read_predictions(each.record) for each in (context.of_baseline(recording.seed), first)]
    parts = [source for source in sources if source is not None]
    if len(parts) < len(sources) or len(parts[0][0][0]) < recording.item_size:
        raise UsageError(
            f"the records of {first.run.label()} and of its baseline hold too few validation predictions for a second "
            f"fit; choose recording.item_size of at most {recording.examples}, and record again"
        )
    predictions = torch.cat([outputs for outputs, _ in parts]), torch.cat([targets for _, targets in parts])
    digest = short_hash([hashlib.sha256(tensor.contiguous().numpy().data).hexdigest() for tensor in predictions])
    origin = {**_origin(first), "predictions": digest}
    path = context.workspace.bank(context.config.name, f"refit_{short_hash([first.run.command(), origin])}")
    with distributed.main_first(), sole_writer(path):
        bank = _open_existing(path)
        return bank if bank is not None and bank.meta["complete"] else _fill(path, predictions, recording, origin)


def bank_to_fit(context: Context, bank: PredictionBank) -> PredictionBank:
    """Return the bank to learn from: the one of validation examples if the metric is saturated in the other.

    If all validation items have the same metric too, only a fit with shifted items, which vary, learns from them. With
    `refit`, it is the bank of `refit_bank`.
    """
    if context.config.refit:
        return refit_bank(context)
    held_out = _open_existing(context.workspace.held_out_bank(bank.path))
    if held_out is None or held_out.meta["origin"] != bank.meta["origin"]:
        return bank
    share = _best_share(bank, context.config.metric)
    if share <= SATURATED:
        return bank
    if "shifted" not in context.config.learn.shares() and _best_share(held_out, context.config.metric) == 1:
        return bank
    say(
        f"{share:.0%} of the recorded training predictions have the best {context.config.metric}, so they cannot be "
        f"ranked; learning from the predictions for validation examples in {held_out.path}"
    )
    return held_out


def _best_share(bank: PredictionBank, metric: str) -> float:
    """Return the share of a sample of items that has the best value of the metric in the sample."""
    indices = torch.linspace(0, len(bank) - 1, min(SAMPLE, len(bank))).long()
    measure = Measure(get_metric(metric), True, bank.path / "metrics")
    try:
        values = measure(Items(*bank.items(indices)))
    finally:
        measure.close()
    return float((values == values.max()).float().mean())


def _open_existing(path: Path) -> PredictionBank | None:
    return PredictionBank.open(path) if (path / "bank.json").exists() else None


def _origin(context: Context) -> dict[str, Any]:
    """Return the origin of a bank that this run fills."""
    config = context.config.model_dump(mode="json")
    return {
        "experiment": context.config.name,
        **{name: config[name] for name in ("data", "model", "recording")},
        "protocol": context.config.protocol(),
        "record": str(context.record.relative_to(context.home)),
        "data_fingerprint": context.data_fingerprint,
    }
