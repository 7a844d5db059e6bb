"""The losses of image classification: ordinary ones, ones for rare classes, and learned ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reloss.experiment.config import FITTED_LOSSES
from reloss.experiment.task import Run
from reloss.runtime.errors import UsageError
from reloss_tasks.accelerated import Loss, learned_loss
from reloss_tasks.classification.config import ClassificationExperiment


def make_loss(
    run: Run[ClassificationExperiment], device: torch.device | str = "cpu", negatives_per_positive: float | None = None
) -> Loss:
    """Return the loss of a run: (logits [B, C], targets [B]) -> scalar.

    With a positive class against the rest, logits are [B] and targets 0 or 1.

    Args:
        run: names the loss, and holds the surrogate of a learned one.
        device: device of the surrogate.
        negatives_per_positive: class ratio of the training images, with a positive class; else None.

    Raises:
        RelossError: a learned loss without a surrogate.
        UsageError: the loss is not defined for this kind of targets.
    """
    config = run.config
    if negatives_per_positive is None:
        kind, losses = "several classes", _losses_for_classes(config)
    else:
        kind, losses = "a positive class", _losses_for_positives(config, negatives_per_positive)
    if run.loss in losses:
        return losses[run.loss]
    if run.loss not in FITTED_LOSSES:
        raise UsageError(f"loss '{run.loss}' is not defined for {kind}; choose one of {', '.join(losses)}")
    return learned_loss(run, losses["ce"], device)


def _losses_for_classes(config: ClassificationExperiment) -> dict[str, Loss]:
    smoothing = config.train.label_smoothing
    return {"ce": F.cross_entropy, "label_smoothing": nn.CrossEntropyLoss(label_smoothing=smoothing)}


def _losses_for_positives(config: ClassificationExperiment, negatives_per_positive: float) -> dict[str, Loss]:
    recipe = config.train
    weight = torch.tensor(negatives_per_positive)
    return {
        "ce": lambda outputs, targets: F.binary_cross_entropy_with_logits(outputs, targets.float()),
        "weighted_ce": lambda outputs, targets: F.binary_cross_entropy_with_logits(
            outputs, targets.float(), pos_weight=weight.to(outputs.device)
        ),
        "focal": lambda outputs, targets: _focal(outputs, targets, recipe.focal_alpha, recipe.focal_gamma),
        "soft_f1": lambda outputs, targets: (
            soft_f1(outputs, targets) + F.binary_cross_entropy_with_logits(outputs, targets.float())
        ),
        "smooth_ap": lambda outputs, targets: smooth_ap(outputs, targets, recipe.ap_temperature),
    }


def _focal(outputs: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    from torchvision.ops import sigmoid_focal_loss  # importing it takes seconds

    return sigmoid_focal_loss(outputs, targets.float(), alpha=alpha, gamma=gamma, reduction="mean")


def smooth_ap(outputs: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Return 1 - average precision of one batch, with its comparisons smoothed.

    Average precision is the mean over the positives of a ratio of two ranks: the rank among the positives over the rank
    in the whole batch. A rank counts how many logits are higher; a sigmoid of the difference makes the count
    differentiable. Source: Brown et al. (2020), Smooth-AP: Smoothing the Path Towards Large-Scale Image Retrieval.

    Args:
        outputs: [B] logits.
        targets: [B] in {0, 1}.
        temperature: temperature of the sigmoids. As it goes to 0, the loss becomes 1 - AP for distinct logits.

    Returns:
        A scalar in [0, 1]; 0, with zero gradient, if the batch has no positive.
    """
    outputs, positive = outputs.float(), targets == 1
    if not positive.any():
        return outputs.sum() * 0
    higher = torch.sigmoid((outputs[None] - outputs[positive][:, None]) / temperature)  # [positives, B]
    itself = torch.eye(len(outputs), dtype=torch.bool, device=outputs.device)[positive]
    higher = higher.masked_fill(itself, 0.0)
    rank = 1 + higher.sum(-1)
    rank_among_positives = 1 + higher[:, positive].sum(-1)
    return 1 - (rank_among_positives / rank).mean()


def soft_f1(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return 1 - F1 of one batch, with probabilities in place of predictions: outputs [B], targets [B] -> scalar.

    It is 1, with zero gradient, if the batch has no positive. Source: Milletari et al. (2016), V-Net (Dice loss).
    """
    p, positive = outputs.float().sigmoid(), targets.float()
    return 1 - 2 * (p * positive).sum() / (p.sum() + positive.sum())
