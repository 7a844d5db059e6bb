"""Diagnostics: how well a loss ranks real checkpoints.

A loss is useful if it prefers the same models as the metric. So every checkpoint of some training runs, with its
predictions on the same examples, is treated as one item, and minus the loss is compared with the metric by rank
correlation. Late checkpoints are close together, which makes them harder to rank and more telling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from reloss.metrics import Metric
from reloss.ranking import kendall, spearman

CHUNK = 16  # checkpoints measured at a time
FEWEST = 4  # with fewer checkpoints, a correlation means nothing

Checkpoints = tuple[Tensor, Tensor]
"""Outputs [T, E, ...] and targets [T, E, ...] of T checkpoints of one training run on the same E examples."""


@dataclass(frozen=True)
class CheckpointRanking:
    """Rank correlations of minus the loss with the metric, over checkpoints.

    A correlation is None with fewer than FEWEST checkpoints, or if the metric or the loss is the same for all.

    Attributes:
        spearman_checkpoints, kendall_checkpoints: over all checkpoints of all runs.
        spearman_late, kendall_late: over the second half of each run's checkpoints.
        checkpoints: the number of checkpoints.
        runs: the number of runs.
    """

    spearman_checkpoints: float | None
    kendall_checkpoints: float | None
    spearman_late: float | None
    kendall_late: float | None
    checkpoints: int
    runs: int

    def summary(self) -> dict[str, float]:
        """Return the figures that are defined, for a record."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def measure_checkpoints(measure: Callable[[Tensor, Tensor], Tensor], checkpoints: Checkpoints) -> Tensor:
    """Return a loss or metric of each checkpoint [T]; the predictions of a checkpoint are one item."""
    parts = zip(*(part.split(CHUNK) for part in checkpoints), strict=True)
    with torch.no_grad():
        return torch.cat([measure(outputs, targets).float() for outputs, targets in parts])


def rank_checkpoints(
    per_item: Callable[[Tensor, Tensor], Tensor], metric: Metric, runs: Sequence[Checkpoints]
) -> CheckpointRanking:
    """Return how well a loss ranks the checkpoints of `runs`.

    Args:
        per_item: the loss of N items: (outputs [N, B, ...], targets [N, B, ...]) -> [N].
        metric: higher is better.
        runs: at least one run; all on the same examples.
    """
    losses = [measure_checkpoints(per_item, run) for run in runs]
    values = [measure_checkpoints(metric, run) for run in runs]
    late = [torch.cat([part[len(part) // 2 :] for part in parts]) for parts in (losses, values)]
    every = [torch.cat(parts) for parts in (losses, values)]
    return CheckpointRanking(
        spearman_checkpoints=_correlation(spearman, *every),
        kendall_checkpoints=_correlation(kendall, *every),
        spearman_late=_correlation(spearman, *late),
        kendall_late=_correlation(kendall, *late),
        checkpoints=len(every[0]),
        runs=len(runs),
    )


def _correlation(correlation: Callable[[Tensor, Tensor], Tensor], losses: Tensor, values: Tensor) -> float | None:
    """Return the correlation of minus the losses with the metric's values, or None where it is undefined."""
    if len(values) < FEWEST or (values == values[0]).all() or (losses == losses[0]).all():
        return None
    return float(correlation(-losses, values))
