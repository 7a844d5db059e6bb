"""The losses of image classification: the task's ordinary ones, those for rare classes, and learned ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from reloss.experiment.task import Run
from reloss.runtime.errors import RelossError, UsageError
from reloss_tasks.classification.config import ClassificationExperiment

Criterion = Callable[[Tensor, Tensor], Tensor]


def make_criterion(
    run: Run, device: torch.device | str = "cpu", negatives_per_positive: float | None = None
) -> Criterion:
    """Return the loss of a run: (logits [B, C], targets [B]) -> scalar; of a positive class, (logits [B], targets [B]).

    Args:
        run: names the loss.
        device: of the surrogate.
        negatives_per_positive: in the training images, of a positive class.

    Raises:
        RelossError: a learned loss without its surrogate.
        UsageError: a loss for a positive class on several classes, or the other way round.
    """
    config: ClassificationExperiment = run.config
    losses = _of_classes(config) if negatives_per_positive is None else _of_scores(config, negatives_per_positive)
    if run.loss in losses:
        return losses[run.loss]
    if run.loss not in ("reloss", "approx"):
        kind = "a positive class" if negatives_per_positive is not None else "several classes"
        raise UsageError(f"loss '{run.loss}' is not defined for {kind}; choose one of {', '.join(losses)}")
    if run.surrogate is None:
        raise RelossError(f"loss '{run.loss}' needs a learned surrogate")
    surrogate, ordinary, weight = run.surrogate.to(device), losses["ce"], config.train.ordinary_weight
    if weight == 0:
        return surrogate
    return lambda outputs, targets: surrogate(outputs, targets) + weight * ordinary(outputs, targets)


def _of_classes(config: ClassificationExperiment) -> dict[str, Criterion]:
    smoothing = config.train.label_smoothing
    return {"ce": F.cross_entropy, "label_smoothing": nn.CrossEntropyLoss(label_smoothing=smoothing)}


def _of_scores(config: ClassificationExperiment, negatives_per_positive: float) -> dict[str, Criterion]:
    recipe = config.train
    weight = torch.tensor(negatives_per_positive)
    return {
        "ce": lambda outputs, targets: F.binary_cross_entropy_with_logits(outputs, targets.float()),
        "weighted_ce": lambda outputs, targets: F.binary_cross_entropy_with_logits(
            outputs, targets.float(), pos_weight=weight.to(outputs.device)
        ),
        "focal": lambda outputs, targets: sigmoid_focal_loss(
            outputs, targets.float(), alpha=recipe.focal_alpha, gamma=recipe.focal_gamma, reduction="mean"
        ),
        "smooth_ap": lambda outputs, targets: smooth_ap(outputs, targets, recipe.ap_temperature),
    }


def smooth_ap(outputs: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Return 1 - average precision of one batch with sigmoids for its comparisons (Brown et al., Smooth-AP, 2020).

    Args:
        outputs: [B] logits.
        targets: [B] in {0, 1}.
        temperature: of the sigmoids; the loss becomes 1 - AP for distinct logits as it goes to 0.

    Returns:
        A scalar in [0, 1]; 0, with zero gradient, where the batch has no positive.
    """
    outputs, positive = outputs.float(), targets == 1
    if not positive.any():
        return outputs.sum() * 0
    above = torch.sigmoid((outputs[None] - outputs[positive][:, None]) / temperature)  # [positives, B]
    own = torch.eye(len(outputs), dtype=torch.bool, device=outputs.device)[positive]
    above = above.masked_fill(own, 0.0)
    rank = 1 + above.sum(-1)
    rank_among_positives = 1 + above[:, positive].sum(-1)
    return 1 - (rank_among_positives / rank).mean()
