"""The objective of a fit: minus the rank correlation of loss and metric, plus a penalty on the loss's gradient.

A surrogate does not have to predict the metric's value. It only has to order items as the metric does, so the fit
maximises a differentiable rank correlation. Rank alone leaves the shape of the loss free: a step function ranks as well
as a smooth curve, but has no slope to train with. So the gradient penalty holds the norm of each example's gradient
near 1.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from reloss.learning.items import Items
from reloss.learning.options import LearnOptions
from reloss.ranking import pearson, soft_kendall, soft_spearman
from reloss.runtime.distributed import SINGLE_PROCESS, Share
from reloss.runtime.errors import RelossError
from reloss.surrogates import SurrogateLoss


class Objective(NamedTuple):
    """The scalar to minimise, and its parts for the history, which carry no gradient."""

    total: Tensor
    correlation: Tensor
    penalty: Tensor


def check_finite(losses: Tensor) -> None:
    """Raise RelossError if a loss is NaN or infinite."""
    if not torch.isfinite(losses).all():
        raise RelossError("learning the surrogate diverged: its losses are not finite; try a smaller learning_rate")


def gradient_penalty(norms: Tensor, kind: str) -> Tensor:
    """Return the mean over each item's examples of (norm - 1)^2: norms [N, B] -> [N].

    Args:
        norms: the norm of the gradient of each item's loss in each of its examples.
        kind: whose gradient is held at 1. `item`: the gradient of the item's mean loss, as in the release; the slope of
            an example's own loss is then driven to the number of examples in the item. `example`: the gradient of each
            example's own loss. `one_sided`: the same, but only norms above 1 are penalised.
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
        fidelity=options.fidelity if options.sorts_by_network() else None,
    )


def rank_objective(
    surrogate: SurrogateLoss, items: Items, metric: Tensor, options: LearnOptions, share: Share = SINGLE_PROCESS
) -> Objective:
    """Return -rho(-L, M) + lambda GP for N items.

    With several processes, each one computes the losses of its share of the items. All return the value over all items;
    their gradients have to be summed.

    Source: the paper's objective, as the released training script computes it.

    Args:
        surrogate: computes the losses L.
        items: N items.
        metric: M [N], higher where predictions are better.
        options: the correlation rho, the penalty GP and its weight lambda; gradients are only computed for a penalty.
        share: the share of this process.

    Raises:
        RelossError: a loss is NaN or infinite.
    """
    selected = _select(items, share)
    penalised = options.penalty != "off" and options.penalty_weight > 0
    if penalised:
        losses, norms = surrogate.losses_and_norms(*selected)
    else:
        losses = surrogate.per_item(selected.outputs, selected.targets)
    losses = share.gather(losses, len(metric))
    check_finite(losses)
    correlation = correlate(losses, metric, options)
    total, penalty = -correlation, torch.zeros(())
    if penalised:
        penalty = share.gather(gradient_penalty(norms, options.penalty), len(metric)).mean()
        total = total + options.penalty_weight * penalty
    return Objective(total, correlation.detach(), penalty.detach())


def value_objective(surrogate: SurrogateLoss, items: Items, metric: Tensor, share: Share = SINGLE_PROCESS) -> Objective:
    """Return the mean squared difference of the losses from 1 - M: exact recovery of the metric (loss `approx`).

    With several processes, each one computes its share, as in `rank_objective`.

    Args:
        surrogate: computes the losses.
        items: N items.
        metric: M [N], on [0, 1], higher where predictions are better.
        share: the share of this process.

    Raises:
        RelossError: a loss is NaN or infinite.
    """
    selected = _select(items, share)
    losses = share.gather(surrogate.per_item(selected.outputs, selected.targets), len(metric))
    check_finite(losses)
    total = (losses - (1 - metric)).square().mean()
    return Objective(total, torch.zeros(()), torch.zeros(()))


def _select(items: Items, share: Share) -> Items:
    """Return the items whose losses this process computes."""
    return items if share.size == 1 else items.select(share.indices(len(items.targets)).to(items.targets.device))
