"""One colour per loss, the same in every chart of the page, so that a reader learns it once."""

from __future__ import annotations

from functools import cache

from reloss.experiment.config import FITTED_LOSSES, Experiment
from reloss.experiment.task import tasks

ROLES = ("ordinary", *FITTED_LOSSES)
"""The first colours: the ordinary loss of the experiment, and the losses that every task has."""
RIVALS = 5
"""Colours of the other losses of a task, which follow."""


def loss_colour(config: Experiment, loss: str) -> int:
    """Return the number of the colour of a loss in the charts of an experiment; `report.css` defines the colours."""
    role = "ordinary" if loss == config.ordinary_loss else loss
    if role in ROLES:
        return ROLES.index(role)
    rivals = _rivals(config.name.partition("/")[0])
    return len(ROLES) + (rivals.index(loss) if loss in rivals else 0) % RIVALS


@cache
def _rivals(task: str) -> tuple[str, ...]:
    """Return the losses of all experiments of a task that are neither fitted nor the ordinary loss there."""
    configs = [make() for make in tasks()[task].experiments.values()]
    losses = [loss for config in configs for loss in config.losses if loss != config.ordinary_loss]
    return tuple(loss for loss in dict.fromkeys(losses) if loss not in FITTED_LOSSES)
