"""How well a loss ranks real checkpoints as the metric does, and what a learned curve looks like."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from reloss.metrics import Metric
from reloss.ranking import kendall, spearman
from reloss.surrogates import ClassificationReLoss

CHUNK = 16  # checkpoints measured at a time

Checkpoints = tuple[Tensor, Tensor]
"""Outputs [T, E, ...] and targets [T, E, ...] of T checkpoints of one training run on the same E examples."""


@dataclass(frozen=True)
class CheckpointRanking:
    """How minus the loss ranks checkpoints, beside the metric.

    Attributes:
        spearman_checkpoints, kendall_checkpoints: over all checkpoints of all runs.
        spearman_late, kendall_late: over the second half of each run's, which are closer together.
        checkpoints: how many there are.
        runs: of which they are.
    """

    spearman_checkpoints: float
    kendall_checkpoints: float
    spearman_late: float
    kendall_late: float
    checkpoints: int
    runs: int

    def summary(self) -> dict[str, float]:
        """Return the figures, for a record."""
        return asdict(self)


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
        spearman_checkpoints=float(spearman(-every[0], every[1])),
        kendall_checkpoints=float(kendall(-every[0], every[1])),
        spearman_late=float(spearman(-late[0], late[1])),
        kendall_late=float(kendall(-late[0], late[1])),
        checkpoints=len(every[0]),
        runs=len(runs),
    )


def loss_curve(surrogate: ClassificationReLoss, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the target's probability p, the learned loss, and its slope in the logit, at `logits` [n] of two classes.

    The slope is dL/dz = dL/dp p (1 - p); cross-entropy's is p - 1.
    """
    logits = logits.detach().requires_grad_()
    log_p = torch.nn.functional.logsigmoid(logits)
    losses = surrogate.curve(log_p if surrogate.input == "log_probability" else log_p.exp())
    (slopes,) = torch.autograd.grad(losses.sum(), logits)
    return log_p.exp().detach(), losses.detach(), slopes
