"""How well a loss ranks real checkpoints as the metric does, and what a learned curve looks like."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from reloss.learning.bank import PredictionBank
from reloss.learning.options import LearnOptions
from reloss.learning.sampling import split_items
from reloss.metrics import Metric
from reloss.ranking import kendall, spearman
from reloss.surrogates import SurrogateLoss

CHUNK = 16  # checkpoints, or items, measured at a time
FEWEST = 4  # checkpoints that can be ranked; of fewer, a correlation says nothing
SHOWN = 200  # held-out items and examples of a picture

Checkpoints = tuple[Tensor, Tensor]
"""Outputs [T, E, ...] and targets [T, E, ...] of T checkpoints of one training run on the same E examples."""


@dataclass(frozen=True)
class CheckpointRanking:
    """How minus the loss ranks checkpoints, beside the metric.

    Attributes:
        spearman_checkpoints, kendall_checkpoints: over all checkpoints of all runs. None where there are fewer than
            FEWEST, or the metric or the loss is the same for all.
        spearman_late, kendall_late: over the second half of each run's, which are closer together.
        checkpoints: how many there are.
        runs: of which they are.
    """

    spearman_checkpoints: float | None
    kendall_checkpoints: float | None
    spearman_late: float | None
    kendall_late: float | None
    checkpoints: int
    runs: int

    def summary(self) -> dict[str, float]:
        """Return the figures that there are, for a record."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def measure_checkpoints(measure: Callable[[Tensor, Tensor], Tensor], checkpoints: Checkpoints) -> Tensor:
    """Return the loss or metric of each checkpoint's predictions as one item: [T]."""
    parts = zip(*(part.split(CHUNK) for part in checkpoints), strict=True)
    with torch.no_grad():
        return torch.cat([measure(outputs, targets).float() for outputs, targets in parts])


def rank_checkpoints(
    per_item: Callable[[Tensor, Tensor], Tensor], metric: Metric, runs: Sequence[Checkpoints]
) -> CheckpointRanking:
    """Return how minus the loss `per_item` ranks the checkpoints of `runs`, all on the same examples, as `metric` does.

    Args:
        per_item: loss of N items, (outputs [N, B, ...], targets [N, B, ...]) -> [N].
        metric: higher is better.
        runs: at least one.
    """
    losses = [measure_checkpoints(per_item, run) for run in runs]
    values = [measure_checkpoints(metric, run) for run in runs]
    late = [torch.cat([part[len(part) // 2 :] for part in parts]) for parts in (losses, values)]
    every = [torch.cat(parts) for parts in (losses, values)]
    return CheckpointRanking(
        spearman_checkpoints=_defined(spearman, *every),
        kendall_checkpoints=_defined(kendall, *every),
        spearman_late=_defined(spearman, *late),
        kendall_late=_defined(kendall, *late),
        checkpoints=len(every[0]),
        runs=len(runs),
    )


def _defined(correlation: Callable[[Tensor, Tensor], Tensor], losses: Tensor, values: Tensor) -> float | None:
    """Return the correlation of minus the losses with the metric's values, None where there is none."""
    if len(values) < FEWEST or (values == values[0]).all() or (losses == losses[0]).all():
        return None
    return float(correlation(-losses, values))


def loss_curve(surrogate: SurrogateLoss, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the target's probability p, the learned loss, and its slope in the logit, at `logits` [n] of two classes.

    The slope is dL/dz = dL/dp p (1 - p); cross-entropy's is p - 1.
    """
    logits = logits.detach().requires_grad_()
    log_p = torch.nn.functional.logsigmoid(logits)
    losses = surrogate.curve_at(log_p)
    (slopes,) = torch.autograd.grad(losses.sum(), logits)
    return log_p.exp().detach(), losses.detach(), slopes


def measure_held_out(
    surrogate: SurrogateLoss, bank: PredictionBank, metric: Metric, options: LearnOptions
) -> dict[str, Tensor]:
    """Return `metric`, `ordinary` loss and `surrogate` loss of up to SHOWN held-out recorded items: [n] each."""
    held = split_items(len(bank), options, str(bank.path))[1]
    parts = []
    for indices in held[_spread(len(held))].split(CHUNK):
        item = bank.items(indices)
        with torch.no_grad():
            losses = surrogate.ordinary_loss(*item), surrogate.per_item(*item)
            parts.append(torch.stack([metric(*item).float(), *losses]))
    return dict(zip(("metric", "ordinary", "surrogate"), torch.cat(parts, -1), strict=True))


def measure_examples(surrogate: SurrogateLoss, bank: PredictionBank, options: LearnOptions) -> dict[str, Tensor]:
    """Return `ordinary` and `surrogate` loss of up to SHOWN examples of held-out items, one by one: [n] each."""
    held = split_items(len(bank), options, str(bank.path))[1]
    outputs, targets = (part.flatten(0, 1) for part in bank.items(held[_spread(len(held), CHUNK)]))
    chosen = _spread(len(outputs))
    single = outputs[chosen][:, None], targets[chosen][:, None]
    with torch.no_grad():
        return {"ordinary": surrogate.ordinary_loss(*single), "surrogate": surrogate.per_item(*single)}


def picture(
    surrogate: SurrogateLoss, bank: PredictionBank, metric: Metric, options: LearnOptions
) -> dict[str, dict[str, list[float]]]:
    """Return what there is to draw of a learned loss, to five digits.

    `items`: held-out ones, as `measure_held_out` gives them. `curve`: of a loss of the target's probability, that
    `probability`, and both losses less their value at 1. Else `examples`, as `measure_examples` gives them.
    """
    found: dict[str, Any] = {"items": measure_held_out(surrogate, bank, metric, options)}
    if surrogate.has_curve:
        p, losses, _ = loss_curve(surrogate, torch.linspace(-9, 9, SHOWN))
        found["curve"] = {"probability": p, "ordinary": -p.log(), "surrogate": losses - losses[-1]}
    else:
        found["examples"] = measure_examples(surrogate, bank, options)
    return {
        name: {key: [float(f"{value:.5g}") for value in values.tolist()] for key, values in part.items()}
        for name, part in found.items()
    }


def _spread(total: int, most: int = SHOWN) -> Tensor:
    """Return up to `most` of the indices below `total`, evenly spread."""
    return torch.linspace(0, total - 1, min(total, most)).round().long()
