"""What the surrogate minimises: minus the rank correlation, plus a penalty on its gradient."""

from typing import NamedTuple

import torch
from torch import Tensor

from reloss.learning.items import Items
from reloss.learning.options import LearnOptions
from reloss.ranking import pearson, soft_kendall, soft_spearman
from reloss.runtime.distributed import Share
from reloss.runtime.errors import RelossError
from reloss.surrogates import SurrogateLoss

ALONE = Share()


class Objective(NamedTuple):
    """The value to minimise and its parts, scalars; the parts are detached."""

    total: Tensor
    correlation: Tensor
    penalty: Tensor


def check_finite(losses: Tensor) -> None:
    """Raise RelossError if one of the losses is NaN or infinite."""
    if not torch.isfinite(losses).all():
        raise RelossError("learning the surrogate diverged: its losses are not finite; try a smaller learning_rate")


def gradient_penalty(norms: Tensor, kind: str) -> Tensor:
    """Return the mean over each item's examples of (|gradient| - 1)^2: norms [N, B] -> [N].

    Args:
        norms: of each example's gradient of its item's loss.
        kind: whose gradient is held at 1: that of the `item`'s mean loss (as released; then an example's own slope is
            driven to the number of examples in its item), that of each `example`'s own loss, or the same `one_sided`,
            only where it exceeds 1.
    """
    excess = (norms if kind == "item" else norms * norms.shape[1]) - 1
    return (excess.clamp(min=0) if kind == "one_sided" else excess).square().mean(-1)


def correlate(losses: Tensor, metric: Tensor, options: LearnOptions) -> Tensor:
    """Return the differentiable correlation of minus the losses [N] with the metric [N], a scalar."""
    if options.correlation == "pearson":
        return pearson(-losses, metric)
    if options.correlation == "kendall":
        return soft_kendall(-losses, metric, standardize=options.standardize)
    return soft_spearman(
        -losses,
        metric,
        options.method,
        standardize=options.standardize,
        ties=options.ties,
        steepness=options.steepness if options.sorts_by_network() else None,
    )


def rank_objective(
    surrogate: SurrogateLoss, items: Items, metric: Tensor, options: LearnOptions, share: Share = ALONE
) -> Objective:
    """Return -rho(-L, M) + lambda GP for N items; `metric` [N] is higher where predictions are better.

    Of several processes each computes the losses of its share of the items. The values are those of all; the gradients
    are to be summed.

    Source: the paper's objective, as the released training script computes it.

    Raises:
        RelossError: a loss is NaN or infinite.
    """
    losses, norms = surrogate.losses_and_norms(*_own(items, share))
    losses = share.gather(losses, len(metric))
    check_finite(losses)
    correlation = correlate(losses, metric, options)
    total, penalty = -correlation, torch.zeros(())
    if options.penalty != "off" and options.penalty_weight > 0:
        penalty = share.gather(gradient_penalty(norms, options.penalty), len(metric)).mean()
        total = total + options.penalty_weight * penalty
    return Objective(total, correlation.detach(), penalty.detach())


def value_objective(surrogate: SurrogateLoss, items: Items, metric: Tensor, share: Share = ALONE) -> Objective:
    """Return the mean squared difference of the losses from 1 - M, M on [0, 1]: exact recovery (`approx`).

    Of several processes each computes its share, as in `rank_objective`.

    Raises:
        RelossError: a loss is NaN or infinite.
    """
    own = _own(items, share)
    losses = share.gather(surrogate.per_item(own.outputs, own.targets), len(metric))
    check_finite(losses)
    total = (losses - (1 - metric)).square().mean()
    return Objective(total, torch.zeros(()), torch.zeros(()))


def _own(items: Items, share: Share) -> Items:
    """Return the items of which this process computes the losses."""
    return items if share.size == 1 else items.select(share.indices(len(items.targets)).to(items.targets.device))
