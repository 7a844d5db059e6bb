"""What the surrogate minimises: minus the rank correlation, plus a penalty on its gradient."""

from typing import NamedTuple

import torch
from torch import Tensor

from reloss.errors import RelossError
from reloss.learning.options import LearnOptions
from reloss.ranking import soft_spearman
from reloss.surrogates import SurrogateLoss


class Objective(NamedTuple):
    """The value to minimise and its parts, scalars; the parts are detached."""

    total: Tensor
    correlation: Tensor
    penalty: Tensor


def finite_losses(surrogate: SurrogateLoss, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the losses of N items, [N].

    Raises:
        RelossError: one is NaN or infinite.
    """
    losses = surrogate.per_item(outputs, targets)
    if not torch.isfinite(losses).all():
        raise RelossError("learning the surrogate diverged: its losses are not finite; try a smaller learning_rate")
    return losses


def gradient_norms(losses: Tensor, outputs: Tensor, create_graph: bool = False) -> Tensor:
    """Return the norm of each example's gradient of its item's loss: losses [N], outputs [N, B, ...] -> [N, B]."""
    (gradients,) = torch.autograd.grad(losses.sum(), outputs, create_graph=create_graph)
    return torch.linalg.vector_norm(gradients.flatten(2), dim=-1)


def gradient_penalty(losses: Tensor, outputs: Tensor, slope: str) -> Tensor:
    """Return the mean over each item's examples of (|gradient| - 1)^2: losses [N], outputs [N, B, ...] -> [N].

    `slope` says whose gradient is held at 1: that of the `item`'s mean loss (as released; then an example's own slope
    is driven to the number of examples in its item) or that of each `example`'s own loss.
    """
    norms = gradient_norms(losses, outputs, create_graph=True)
    if slope == "example":
        norms = norms * outputs.shape[1]
    return (norms - 1).square().mean(-1)


def rank_objective(
    surrogate: SurrogateLoss, outputs: Tensor, targets: Tensor, metric: Tensor, options: LearnOptions
) -> Objective:
    """Return -rho(-L, M) + lambda GP for N items; `metric` [N] is higher where predictions are better.

    Source: the paper's objective, as the released training script computes it.
    """
    outputs = outputs.detach().requires_grad_()
    losses = finite_losses(surrogate, outputs, targets)
    correlation = soft_spearman(
        -losses,
        metric,
        options.method,
        standardize=options.standardize,
        ties=options.ties,
        steepness=options.steepness,
    )
    total, penalty = -correlation, torch.zeros(())
    if options.penalty_weight > 0:
        penalty = gradient_penalty(losses, outputs, options.penalty_slope).mean()
        total = total + options.penalty_weight * penalty
    return Objective(total, correlation.detach(), penalty.detach())


def value_objective(surrogate: SurrogateLoss, outputs: Tensor, targets: Tensor, metric: Tensor) -> Objective:
    """Return the mean squared difference of the losses from 1 - M, M on [0, 1]: exact recovery (`approx`)."""
    losses = finite_losses(surrogate, outputs, targets)
    total = (losses - (1 - metric)).square().mean()
    return Objective(total, torch.zeros(()), torch.zeros(()))
