"""The surrogate for metrics of a whole set of examples, such as average precision and F1.

Such a metric is not a mean over examples: what one example is worth depends on all others. So the network sees the
whole set. It embeds the scores of positives and of negatives, averages each group, and judges both means together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reloss.surrogates.base import SurrogateLoss
from reloss.surrogates.checks import check_choices, check_logits_or_scores, check_sizes, warn_of_probabilities, widen
from reloss.surrogates.network import rising
from reloss.surrogates.options import Features, Input, Output

LARGEST = 1e6  # bounds the size of scores: layers are not finite for an infinite one


class SetReLoss(SurrogateLoss):
    """ReLoss of a set: positives and negatives are embedded one by one, averaged separately, and judged together.

    Takes scores [B] (logits of the positive class) and labels [B]; or logits [B, C] and classes [B], where each class
    that occurs is compared with the rest by its log-odds, and the loss is the mean over these classes.

    A score s becomes softplus units of -s for a positive and of s for a negative. The means over the positives and
    over the negatives, and three numbers about the counts (the share of positives; whether there are none; whether
    there are only positives), pass one more layer of softplus units to one number. So the order of the examples does
    not matter, and the gradient of one example depends on all others. The binary cross-entropy of each class is one of
    the units. Source: deep sets (Zaheer et al., 2017).

    An item without positives has zeros instead of their mean, and a weight of its own that marks this; the same holds
    without negatives. Loss and gradient stay finite, and the loss still falls as the existing scores get better.

    Scores are clamped to +-1e6, so that a logit of -inf can mask a class, and are not standardised. Average precision
    does not depend on their scale, and scores relative to the other class's mean, divided by the item's deviation, rank
    items a little better. But they train worse: the gradient is largest where all scores are alike, at the start. Units
    that may also bend the other way have the same drawback.

    Where positives are few, fit with penalty `one_sided`. The default holds each example's slope at 1, so a positive
    pulls no harder than one of the many negatives, and predicting no positives can cost less than being right.

    Args:
        output: `monotone` uses the absolute values of the weights, except those of the counts. By construction, the
            loss falls as a positive's score rises, rises as a negative's does, and is convex in the scores: an example
            that is right fades, one that is wrong pulls with a bounded force. `identity` uses the weights as they are;
            `absolute` also takes the absolute value of the output.
        width: units of a class's embedding, and of the layer after the means.
        scale: see `SurrogateLoss`.

    Raises:
        ValueError: an unknown output, or a width or scale that is not positive.
    """

    penalty = "one_sided"
    takes_logits = True

    def __init__(self, output: Output = "monotone", width: int = 32, scale: float = 1.0) -> None:
        super().__init__(scale)
        check_choices(output=(output, Output))
        check_sizes(width=width)
        self.output: Output = output
        self.width = width
        self.positive = nn.Linear(1, width)
        self.negative = nn.Linear(1, width)
        self.pooled = nn.Linear(2 * width, width)
        self.counts = nn.Linear(3, width, bias=False)
        self.loss = nn.Linear(width, 1)

    @classmethod
    def arguments(cls, shape: Sequence[int], *, features: Features, input: Input, output: Output) -> dict[str, Any]:
        """Return the constructor's arguments: the output. Both scores and class logits will do."""
        return {"output": output}

    def features(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the scores of each set, and which of them are positive.

        Args:
            outputs: [N, B] scores, or [N, B, C] logits.
            targets: [N, B] labels 0 or 1 in any dtype, or classes from 0 to C - 1 in an integer dtype.

        Returns:
            [M, B, 2]: score, and 1 for a positive, else 0. The M sets are in the order of `group_weights`:
            one per item of scores, one per class that occurs in an item of logits.

        Raises:
            ValueError: the shapes do not agree, or a target is out of range.
        """
        check_logits_or_scores(outputs, targets)
        outputs = outputs.clamp(-LARGEST, LARGEST)
        if outputs.dim() == 2:
            return torch.stack((outputs, (targets == 1).to(outputs.dtype)), -1)
        items, classes = self.group_weights(outputs, targets).nonzero().unbind(-1)
        scores = log_odds(outputs).movedim(-1, 1)[items, classes]
        return torch.stack((scores, (targets[items] == classes[:, None]).to(scores.dtype)), -1)

    def group_weights(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return which sets each item has; see `existing_sets`."""
        return existing_sets(outputs, targets)

    def network(self, features: Tensor) -> Tensor:
        """Return the loss of each of M sets: features [M, B, 2] -> [M]."""
        monotone = self.output == "monotone"
        scores, positive = features[..., :1], features[..., 1] > 0
        units = F.softplus(
            torch.where(
                positive[..., None],
                F.linear(-scores, *rising(self.positive, monotone=monotone)),
                F.linear(scores, *rising(self.negative, monotone=monotone)),
            )
        )
        members = torch.stack((positive, ~positive), 1).to(features.dtype)  # [M, 2, B]
        count = members.sum(-1)  # [M, 2]
        means = members @ units / count.clamp(min=1)[..., None]
        counts = torch.cat((count[:, :1] / members.shape[-1], (count == 0).to(count.dtype)), -1)
        hidden = F.linear(means.flatten(1), *rising(self.pooled, monotone=monotone)) + self.counts(counts)
        losses = F.linear(F.softplus(hidden), *rising(self.loss, monotone=monotone)).squeeze(-1)
        return losses.abs() if self.output == "absolute" else losses

    def reduce(self, losses: Tensor, group_weights: Tensor | None) -> Tensor:
        """Return the mean over the sets of each item, times the scale: losses [M], sets of items [N, C] -> [N]."""
        assert group_weights is not None
        items = group_weights.nonzero()[:, 0]
        sums = losses.new_zeros(len(group_weights)).index_add(0, items, self.scale * losses)
        return sums / group_weights.sum(-1)

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise ValueError unless these are scores and labels, or logits and classes; see `features`."""
        check_logits_or_scores(outputs, targets)
        warn_of_probabilities(outputs, items=True)

    @staticmethod
    def ordinary_loss(outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the (binary) cross-entropy of each item: outputs [N, B] or [N, B, C], targets [N, B] -> [N]."""
        check_logits_or_scores(outputs, targets)
        outputs = widen(outputs)
        if outputs.dim() == 2:
            losses = F.binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype), reduction="none")
        else:
            losses = F.cross_entropy(outputs.movedim(-1, 1), targets.long(), reduction="none")
        return losses.mean(-1)


def existing_sets(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return which sets each item has: [N, 1] for scores, [N, C] for logits, true for each class that occurs.

    Args:
        outputs: [N, B] scores, or [N, B, C] logits.
        targets: [N, B] labels, or classes.
    """
    if outputs.dim() == 2:
        return torch.ones(len(outputs), 1, dtype=torch.bool, device=outputs.device)
    absent = torch.zeros(len(outputs), outputs.shape[-1], dtype=torch.bool, device=outputs.device)
    return absent.scatter(1, targets.long(), True)


def log_odds(outputs: Tensor) -> Tensor:
    """Return log p - log(1 - p) for the probability p of each class: logits [..., C], C >= 2 -> [..., C].

    Exact even where p rounds to 1: log(1 - p) of the largest logit is computed from the other logits. For the rest,
    p <= 1/2.
    """
    top = torch.zeros_like(outputs, dtype=torch.bool).scatter(-1, outputs.argmax(-1, keepdim=True), True)
    total = outputs.logsumexp(-1, keepdim=True)
    log_rest = torch.log1p(-(outputs - total).masked_fill(top, -torch.inf).exp()) + total
    log_rest_of_top = outputs.masked_fill(top, -torch.inf).logsumexp(-1, keepdim=True)
    return outputs - torch.where(top, log_rest_of_top, log_rest)
