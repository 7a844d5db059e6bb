"""The surrogate for metrics of a whole set of examples, such as average precision and F1: a network over sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reloss.surrogates.base import SurrogateLoss, check_sizes
from reloss.surrogates.checks import check_classes, check_logits, check_scores
from reloss.surrogates.options import Fidelity, Input, Output


class SetReLoss(SurrogateLoss):
    """ReLoss of a set: positives and negatives are embedded one by one, averaged apart, and judged together.

    A score s becomes softplus units of -s for a positive and of s for a negative (deep sets: Zaheer et al., 2017). The
    means over the positives and over the negatives, and what there is of either (the share of positives; whether there
    are none; whether there are only they), pass one more layer of softplus units to one number. So the order of the
    examples is of no account, and an example's pull depends on all the others. The binary cross-entropy of each class
    is one of its units.

    An item without positives has zeros in place of their mean, and a weight of its own that says so; one without
    negatives likewise. Its loss and gradient are finite, and it still falls as the scores that are there get better.

    Scores are taken as they are. Taken from the other class's mean and divided by the item's deviation, they rank items
    by average precision a little better (which no such change alters), but train worse: the gradient is then largest
    where the scores are all alike, at the start. So do units that may also bend the other way.

    Where positives are few, learn it with penalty `one_sided`: the default holds each example's slope at 1, so that a
    positive pulls no harder than one of the many negatives, and predicting none of them can cost less than being right.

    Args:
        output: `monotone` uses the absolute values of the weights, but for those of the counts, so that the loss falls
            as a positive's score rises, rises as a negative's does, and is convex in the scores, by construction: an
            example that is right fades, one that is wrong pulls with a bounded force. `identity` leaves the weights
            alone; `absolute` takes the absolute value of that.
        width: units of a class's embedding, and of the layer after the means.
        scale: see `SurrogateLoss`.

    Raises:
        ValueError: an unknown output, or a width or scale that is not positive.
    """

    def __init__(self, output: Output = "monotone", width: int = 32, scale: float = 1.0) -> None:
        super().__init__(scale)
        if output not in get_args(Output):
            raise ValueError(f"output is one of {get_args(Output)}, not {output}")
        check_sizes(width=width)
        self.output: Output = output
        self.width = width
        self.positive = nn.Linear(1, width)
        self.negative = nn.Linear(1, width)
        self.pooled = nn.Linear(2 * width, width)
        self.counts = nn.Linear(3, width, bias=False)
        self.loss = nn.Linear(width, 1)

    @classmethod
    def arguments(cls, shape: Sequence[int], *, fidelity: Fidelity, input: Input, output: Output) -> dict[str, Any]:
        """Return the constructor's arguments: the output as chosen; scores and class logits will do."""
        return {"output": output}

    def options(self) -> dict[str, Any]:
        """Return the constructor's arguments that make a surrogate of this shape."""
        return {"output": self.output, "width": self.width, "scale": self.scale}

    def per_item(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each item, in float32 also under autocast (float64 where outputs and weights are).

        Args:
            outputs: [N, B] logits of the positive class; or [N, B, C] logits of C >= 2 classes, of which each is set
                against the rest by its log-odds, and the loss is the mean over the classes that occur in the item.
            targets: [N, B] in {0, 1} of any dtype, bool too; or classes from 0 to C - 1, of no floating one.

        Returns:
            [N].

        Raises:
            ValueError: the shapes do not agree, or a target is out of range.
        """
        _check(outputs, targets)
        with torch.autocast(outputs.device.type, enabled=False):
            outputs = outputs.to(self.loss.weight.dtype)
            if outputs.dim() == 2:
                return self._sets(outputs, targets == 1)
            occurs = torch.zeros(len(outputs), outputs.shape[-1], dtype=torch.bool, device=outputs.device)
            items, classes = occurs.scatter(1, targets.long(), True).nonzero().unbind(-1)
            losses = self._sets(log_odds(outputs).movedim(-1, 1)[items, classes], targets[items] == classes[:, None])
            return losses.new_zeros(len(outputs)).index_add(0, items, losses) / items.bincount(minlength=len(outputs))

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise ValueError unless it can learn from such predictions: see `per_item`."""
        _check(outputs, targets)

    def _sets(self, scores: Tensor, positive: Tensor) -> Tensor:
        """Return the loss of each of M sets of scores [M, B], of which some are positive [M, B] -> [M]."""
        units = F.softplus(
            torch.where(
                positive[..., None],
                F.linear(-scores[..., None], *self._parameters_of(self.positive)),
                F.linear(scores[..., None], *self._parameters_of(self.negative)),
            )
        )
        members = torch.stack((positive, ~positive), 1).to(scores.dtype)  # [M, 2, B]
        count = members.sum(-1)  # [M, 2]
        means = members @ units / count.clamp(min=1)[..., None]
        counts = torch.cat((count[:, :1] / scores.shape[-1], (count == 0).to(count.dtype)), -1)
        hidden = F.linear(means.flatten(1), *self._parameters_of(self.pooled)) + self.counts(counts)
        losses = F.linear(F.softplus(hidden), *self._parameters_of(self.loss)).squeeze(-1)
        return self.scale * (losses.abs() if self.output == "absolute" else losses)

    def _parameters_of(self, layer: nn.Linear) -> tuple[Tensor, Tensor]:
        return layer.weight.abs() if self.output == "monotone" else layer.weight, layer.bias

    @staticmethod
    def ordinary_loss(outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the (binary) cross-entropy of each item: outputs [N, B] or [N, B, C], targets [N, B] -> [N]."""
        _check(outputs, targets)
        if outputs.dim() == 2:
            losses = F.binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype), reduction="none")
        else:
            losses = F.cross_entropy(outputs.movedim(-1, 1), targets.long(), reduction="none")
        return losses.mean(-1)


def log_odds(outputs: Tensor) -> Tensor:
    """Return log p - log(1 - p) of each class's probability: logits [..., C], C >= 2 -> [..., C].

    Exact where p rounds to 1 too: of the largest logit, log(1 - p) is taken from the others; of the rest, p <= 1/2.
    """
    top = torch.zeros_like(outputs, dtype=torch.bool).scatter(-1, outputs.argmax(-1, keepdim=True), True)
    total = outputs.logsumexp(-1, keepdim=True)
    log_rest = torch.log1p(-(outputs - total).masked_fill(top, -torch.inf).exp()) + total
    log_rest_of_top = outputs.masked_fill(top, -torch.inf).logsumexp(-1, keepdim=True)
    return outputs - torch.where(top, log_rest_of_top, log_rest)


def _check(outputs: Tensor, targets: Tensor) -> None:
    (check_logits if outputs.dim() == 3 else check_scores)(outputs, targets)
    check_classes(targets, outputs.shape[-1] if outputs.dim() == 3 else 2)
