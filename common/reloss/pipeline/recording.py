"""The prediction bank of a run: the baseline fills it, and every fit of the same experiment reads it.

The bank states its origin: data, model and recording settings, and the record that fills it. A run with another origin
refuses it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reloss.learning import PredictionBank
from reloss.pipeline.context import Context
from reloss.runtime import distributed
from reloss.runtime.errors import UsageError
from reloss.runtime.files import remove_stale


def complete_bank(context: Context) -> PredictionBank | None:
    """Return the experiment's bank if it is complete.

    Raises:
        UsageError: it was recorded with other data, model or recording settings.
        RelossError: it is damaged.
    """
    bank = _open_existing(context.bank)
    if bank is None or not bank.meta["complete"]:
        return None
    _check_origin(context, bank)
    return bank


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
    _check_origin(context, bank)
    if bank.meta["origin"]["record"] != _origin(context)["record"]:
        raise UsageError(f"{path} is being recorded by {bank.meta['origin']['record']}; finish that run first")
    return bank


def _open_existing(path: Path) -> PredictionBank | None:
    return PredictionBank.open(path) if (path / "bank.json").exists() else None


def _shared_origin(context: Context) -> dict[str, Any]:
    """Return the part of a bank's origin that must agree with every run that uses the bank."""
    config = context.config.model_dump(mode="json")
    return {"experiment": context.config.name, **{name: config.get(name) for name in ("data", "model", "recording")}}


def _origin(context: Context) -> dict[str, Any]:
    """Return the origin of a bank that this run fills."""
    return {
        **_shared_origin(context),
        "protocol": context.config.protocol(),
        "record": str(context.record.relative_to(context.home)),
        "data_fingerprint": context.data_fingerprint,
    }


def _check_origin(context: Context, bank: PredictionBank) -> None:
    expected = _shared_origin(context)
    if {name: bank.meta["origin"].get(name) for name in expected} != expected:
        raise UsageError(
            f"{bank.path} was recorded with other data, model or recording settings; choose another --runs"
        )
