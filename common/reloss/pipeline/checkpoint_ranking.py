"""Diagnostics of an experiment's losses over the recorded predictions of its finished runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reloss.experiment.predictions import read_predictions
from reloss.experiment.record import leaving_out
from reloss.experiment.record_parts import LiveFolder
from reloss.experiment.records import SurrogateRecord, read_run, read_surrogate
from reloss.experiment.task import find_experiment
from reloss.learning import LearnOptions, PredictionBank
from reloss.learning.diagnostics import Checkpoints, rank_checkpoints
from reloss.learning.picture import measure_picture
from reloss.metrics import get_metric
from reloss.runtime.errors import RelossError, UsageError
from reloss.runtime.files import write_json, write_text
from reloss.runtime.progress import progress
from reloss.surrogates import SurrogateLoss, load

PICTURE = "picture.json"  # beside a surrogate: held-out items and the learned curve


def finished_runs(home: Path, gold: Callable[[Tensor], Tensor], like: Tensor | None = None) -> dict[str, Checkpoints]:
    """Return the predictions of the finished records in an experiment's folder, by the records' names.

    Only of those on the same examples: whose targets, as far as `SurrogateLoss.gold` says that they are the examples'
    own, equal those of `like` [E, ...], else of the first record. A damaged record is reported and skipped.
    """
    found: dict[str, Checkpoints] = {}
    for folder in sorted(home.glob("*/seed*")):
        run = None
        with leaving_out():
            record = read_run(LiveFolder("/".join(folder.resolve().parts[-4:]), folder))
            run = read_predictions(folder) if record and record.status == "finished" else None
        if run is None:
            continue
        like = run[1][0] if like is None else like
        if torch.equal(gold(run[1][0]), gold(like)):
            found[str(folder.relative_to(home))] = run
    return found


def diagnose_loss(
    surrogate: SurrogateLoss, metric: str, runs: Sequence[Checkpoints], learned: bool = True
) -> dict[str, float]:
    """Return how the surrogate, or the ordinary loss for its predictions, ranks the checkpoints of `runs`."""
    per_item = surrogate.per_item if learned else surrogate.ordinary_loss
    return rank_checkpoints(per_item, get_metric(metric), runs).summary()


def diagnose(experiment: str, runs: Path) -> tuple[list[dict[str, Any]], dict[str, Checkpoints]]:
    """Rank the checkpoints of all finished runs with the ordinary loss and with every surrogate of an experiment.

    Writes each surrogate's figures into its folder, `diagnostics.json`. Damaged records and surrogates are
    reported and skipped.

    Returns:
        One entry per loss: its name, folder (of a surrogate), metric, the figures of its fit, and of the checkpoints;
        and the predictions of the runs they come from, as `finished_runs` returns them.

    Raises:
        UsageError: an unknown experiment, or no finished run with recorded predictions.
    """
    task, config = find_experiment(experiment)
    home = runs / config.name
    fresh = task.new_surrogate(config)
    recorded = finished_runs(home, fresh.gold)
    if not recorded:
        raise UsageError(
            f"no finished run with recorded predictions in {home}; start with `reloss run {experiment}`, or pass --runs"
        )
    ranked = list(recorded.values())
    entries = [
        {"loss": config.ordinary_loss, "metric": config.metric, **diagnose_loss(fresh, config.metric, ranked, False)}
    ]
    cards = sorted(home.glob("surrogates/*/surrogate.json"))
    with progress(len(cards), "surrogates") as advance:
        for path in cards:
            with leaving_out():
                folder = path.parent.relative_to(home).as_posix()
                record = read_surrogate(LiveFolder(f"{config.name}/{folder}", path.parent))
                if record is None:
                    continue
                surrogate = type(fresh).from_pretrained(path.parent)
                figures = diagnose_loss(surrogate, record.metric, ranked)
                write_json(path.parent / "diagnostics.json", figures)
                name = "approx" if record.objective == "value" else "reloss"
                entries.append({"loss": name, "folder": folder, "metric": record.metric, **record.fit, **figures})
            advance()
    return entries, recorded


def write_picture(folder: Path, drawn: dict[str, dict[str, list[float]]]) -> None:
    """Keep what there is to draw of the surrogate in `folder`, on one line."""
    write_text(folder / PICTURE, json.dumps(drawn) + "\n")


def read_picture(surrogate: SurrogateRecord) -> dict[str, dict[str, list[float]]] | None:
    """Return what there is to draw of a surrogate: as it was kept, else measured on the bank of its experiment.

    See `reloss.learning.picture`. None where neither the picture nor weights and bank are there.

    Raises:
        RelossError: a file is damaged, or weights and bank do not fit what is known here.
    """
    kept, folder = surrogate.picture(), surrogate.folder
    if kept is not None or folder is None:
        return kept
    bank = folder.parents[1] / "bank"
    if not ((folder / "surrogate.safetensors").exists() and (bank / "bank.json").exists()):
        return None
    try:
        options = LearnOptions.model_validate(surrogate.config()["learn"])
        return measure_picture(load(folder), PredictionBank.open(bank), get_metric(surrogate.metric), options)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise RelossError(f"the surrogate in {folder} cannot be measured on {bank} ({error}); learn it anew") from error
