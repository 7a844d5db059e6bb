"""The losses of reading comprehension: cross-entropy over positions, and learned ones."""

from __future__ import annotations

import torch
from torch import Tensor

from reloss.experiment.task import Run
from reloss.surrogates import ReadingReLoss
from reloss_tasks.accelerated import Loss, learned_loss
from reloss_tasks.mrc.config import ReadingExperiment


def make_loss(run: Run[ReadingExperiment], device: torch.device | str = "cpu") -> Loss:
    """Return the loss of a run: (logits [B, 2, T], gold spans [B, G, 2]) -> scalar.

    Args:
        run: names the loss, and holds the surrogate of a learned one.
        device: device of the surrogate.

    Raises:
        RelossError: a learned loss without a surrogate.
    """
    return cross_entropy if run.loss == "ce" else learned_loss(run, cross_entropy, device)


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of gold start and end over the positions that can be answers, as transformers does.

    Args:
        outputs: [B, 2, T] start and end logits.
        targets: [B, G, 2] gold spans.
    """
    return ReadingReLoss.ordinary_loss(outputs[None], targets[None])[0]
