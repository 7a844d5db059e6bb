"""The picture of a surrogate: points that show the learned loss next to the ordinary loss and the metric.

A scatter plot of held-out items shows whether the loss ranks them as the metric does. The shape of the loss is a curve
over the target's probability where the loss is such a curve; otherwise it is shown by single examples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reloss.learning.bank import PredictionBank
from reloss.learning.options import LearnOptions
from reloss.learning.sampling import split_items
from reloss.metrics import Metric
from reloss.surrogates import SurrogateLoss

CHUNK = 16  # items measured at a time
SHOWN = 200  # most held-out items, or examples, in a picture


def loss_curve(surrogate: SurrogateLoss, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the target's probability p, the learned loss, and its slope in the logit; each [n].

    The slope is dL/dz = dL/dp p (1 - p); cross-entropy's slope is p - 1.

    Args:
        surrogate: a surrogate with `has_curve`.
        logits: [n], the target's logit z of two classes; the other logit is 0.
    """
    logits = logits.detach().requires_grad_()
    log_p = torch.nn.functional.logsigmoid(logits)
    losses = surrogate.curve_at(log_p)
    (slopes,) = torch.autograd.grad(losses.sum(), logits)
    return log_p.exp().detach(), losses.detach(), slopes


def measure_held_out(
    surrogate: SurrogateLoss, bank: PredictionBank, metric: Metric, options: LearnOptions
) -> dict[str, Tensor]:
    """Return the `metric`, `ordinary` loss and `surrogate` loss of up to SHOWN held-out recorded items: [n] each."""
    held_out = split_items(len(bank), options, str(bank.path))[1]
    parts = []
    for indices in held_out[_spread(len(held_out))].split(CHUNK):
        item = bank.items(indices)
        with torch.no_grad():
            losses = surrogate.ordinary_loss(*item), surrogate.per_item(*item)
            parts.append(torch.stack([metric(*item).float(), *losses]))
    return dict(zip(("metric", "ordinary", "surrogate"), torch.cat(parts, -1), strict=True))


def measure_examples(surrogate: SurrogateLoss, bank: PredictionBank, options: LearnOptions) -> dict[str, Tensor]:
    """Return the `ordinary` and `surrogate` loss of up to SHOWN single examples of held-out items: [n] each."""
    held_out = split_items(len(bank), options, str(bank.path))[1]
    outputs, targets = (part.flatten(0, 1) for part in bank.items(held_out[_spread(len(held_out), CHUNK)]))
    chosen = _spread(len(outputs))
    single = outputs[chosen][:, None], targets[chosen][:, None]
    with torch.no_grad():
        return {"ordinary": surrogate.ordinary_loss(*single), "surrogate": surrogate.per_item(*single)}


def measure_picture(
    surrogate: SurrogateLoss, bank: PredictionBank, metric: Metric, options: LearnOptions
) -> dict[str, dict[str, list[float]]]:
    """Return the points of a picture, rounded to five digits.

    Returns:
        `items`: the values of `measure_held_out`. For a surrogate with `has_curve`, `curve`: the target's
        `probability`, and both losses minus their value at probability 1. For other surrogates, `examples`: the values
        of `measure_examples`.
    """
    points = {"items": measure_held_out(surrogate, bank, metric, options)}
    if surrogate.has_curve:
        p, losses, _ = loss_curve(surrogate, torch.linspace(-9, 9, SHOWN))
        points["curve"] = {"probability": p, "ordinary": -p.log(), "surrogate": losses - losses[-1]}
    else:
        points["examples"] = measure_examples(surrogate, bank, options)
    return {
        part: {name: [float(f"{value:.5g}") for value in values.tolist()] for name, values in series.items()}
        for part, series in points.items()
    }


def _spread(total: int, most: int = SHOWN) -> Tensor:
    """Return up to `most` indices below `total`, evenly spread."""
    return torch.linspace(0, total - 1, min(total, most)).round().long()
