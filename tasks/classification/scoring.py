"""The scores of a classifier's predictions for one set of examples."""

from __future__ import annotations

import torch
from torch import Tensor

from reloss.metrics import accuracy, auroc, average_precision, binary_f1, mcc, top5_accuracy
from reloss_tasks.accelerated import check_outputs


def score_predictions(outputs: Tensor, targets: Tensor, when: str = "") -> dict[str, float]:
    """Return all scores by name, each in [0, 1].

    Args:
        outputs: [E, C] logits; with a positive class against the rest, [E].
        targets: [E] classes; with a positive class, 0 or 1.
        when: text for the error message, see `check_outputs`.

    Raises:
        RelossError: the logits are not finite.
    """
    check_outputs(outputs, when)
    metrics = (accuracy, top5_accuracy) if outputs.dim() == 2 else (average_precision, binary_f1, mcc, auroc)
    scores = {metric.__name__: float(metric(outputs[None], targets[None])) for metric in metrics}
    if outputs.dim() == 1:
        scores["accuracy"] = float(((outputs > 0) == targets).float().mean())
    return {**scores, "error": 1 - scores["accuracy"]}


def score_with_tuned_threshold(
    outputs: Tensor, targets: Tensor, validation_outputs: Tensor, validation_targets: Tensor
) -> dict[str, float]:
    """Return F1 and MCC at the thresholds that are best on validation, as `tuned_f1` and `tuned_mcc`.

    Args:
        outputs: [E] logits of a positive class against the rest.
        targets: [E] in {0, 1}.
        validation_outputs: [V] logits.
        validation_targets: [V] in {0, 1}.
    """
    scores = {}
    for name, metric in (("tuned_f1", binary_f1), ("tuned_mcc", mcc)):
        thresholds = _candidate_thresholds(validation_outputs)
        values = torch.cat(
            [
                metric(validation_outputs - chunk[:, None], validation_targets.expand(len(chunk), -1))
                for chunk in thresholds.split(256)
            ]
        )
        threshold = float(thresholds[values.argmax()])
        scores[name] = float(metric(outputs[None], targets[None], threshold=threshold))
    return scores


def _candidate_thresholds(outputs: Tensor) -> Tensor:
    """Return a threshold below all outputs [V], and one in the middle between each output and the next larger one."""
    ordered = outputs.unique()
    return torch.cat((ordered[:1] - 1, (ordered[1:] + ordered[:-1]) / 2))
