"""The scores of a classifier's predictions for one set of images."""

from __future__ import annotations

from torch import Tensor

from reloss.metrics import accuracy, auroc, average_precision, binary_f1, top5_accuracy
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
    metrics = (accuracy, top5_accuracy) if outputs.dim() == 2 else (average_precision, binary_f1, auroc)
    scores = {metric.__name__: float(metric(outputs[None], targets[None])) for metric in metrics}
    if outputs.dim() == 1:
        scores["accuracy"] = float(((outputs > 0) == targets).float().mean())
    return {**scores, "error": 1 - scores["accuracy"]}
