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

    Scores are bounded by 1e6, so that a logit of -inf can mask a class, and are not standardised. Average precision
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
        if outputs.dim() == 2:
            return torch.stack((outputs, (targets == 1).to(outputs.dtype)), -1)
        items, classes = self.group_weights(outputs, targets).nonzero().unbind(-1)
        scores = log_odds_of(outputs, items, classes)
        return torch.stack((scores, (targets[items] == classes[:, None]).to(scores.dtype)), -1)

    def group_weights(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return which sets each item has; see `existing_sets`."""
        return existing_sets(outputs, targets)

    def network(self, features: Tensor) -> Tensor:
        """Return the loss of each of M sets: features [M, B, 2] -> [M]."""
        monotone = self.output == "monotone"
        scores, positive = features[..., 0], features[..., 1] > 0
        sets = positive.nonzero()[:, 0]  # of each positive
        units = _units(-scores[positive], self.positive, monotone)
        sums = units.new_zeros(len(features), self.width).index_add(0, sets, units)
        negative = (~positive).to(features.dtype)[:, None]  # [M, 1, B]
        # With many classes, nearly all examples are negatives. Their units take most of the time, so they are computed
        # once for all examples, and the product skips the positives.
        sums = torch.stack((sums, (negative @ _units(scores, self.negative, monotone)).squeeze(1)), 1)
        negatives = negative.sum(-1)
        count = torch.cat((positive.shape[-1] - negatives, negatives), -1)  # [M, 2]
        means = sums / count.clamp(min=1)[..., None]
        counts = torch.cat((count[:, :1] / positive.shape[-1], (count == 0).to(count.dtype)), -1)
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
            losses = F.cross_entropy(outputs.flatten(0, 1), targets.long().flatten(), reduction="none")
            losses = losses.view(targets.shape)
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
    p <= 1/2. With two classes it is the difference of the logits.
    """
    if outputs.shape[-1] == 2:
        return outputs - outputs.flip(-1)
    top, log_total, log_others = _log_sums(outputs)
    is_top = torch.arange(outputs.shape[-1], device=outputs.device) == top[..., None]
    return _log_odds(outputs, is_top, log_total[..., None], log_others[..., None])


def log_odds_of(outputs: Tensor, items: Tensor, classes: Tensor) -> Tensor:
    """Return the log-odds of M pairs of an item and a class: logits [N, B, C], both [M] -> [M, B]; see `log_odds`."""
    top, log_total, log_others = _log_sums(outputs)
    logits = outputs.mT.flatten(0, 1).index_select(0, items * outputs.shape[-1] + classes)
    return _log_odds(logits, top[items] == classes[:, None], log_total[items], log_others[items])


def _log_sums(outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the largest logit's class, and log of the sum of exp of all logits and of the others: [..., C] -> [...].

    `logsumexp` of a pair has finite second derivatives for logits that are far apart, unlike `logaddexp`.
    """
    top = outputs.argmax(-1, keepdim=True)
    log_others = outputs.scatter(-1, top, -torch.inf).logsumexp(-1)
    log_total = torch.stack((outputs.gather(-1, top).squeeze(-1), log_others), -1).logsumexp(-1)
    return top.squeeze(-1), log_total, log_others


def _log_odds(logits: Tensor, is_top: Tensor, log_total: Tensor, log_others: Tensor) -> Tensor:
    rest = torch.log1p(-(logits - log_total).masked_fill(is_top, -torch.inf).exp()) + log_total
    return logits - torch.where(is_top, log_others, rest)


def _units(scores: Tensor, layer: nn.Linear, monotone: bool) -> Tensor:
    """Return the softplus units of each score: [...] -> [..., width]."""
    return F.softplus(F.linear(scores[..., None], *rising(layer, monotone=monotone)))
