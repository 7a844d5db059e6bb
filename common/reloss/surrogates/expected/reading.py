"""Expected parts of reading metrics: what F1 and exact match are under the reader's own distribution over spans.

Decoding picks the best span from all spans up to a limit, and no answer. So the distribution is taken over just these
spans: p(s, e) is proportional to exp(start logit of s + end logit of e). Cross-entropy treats start and end as
independent and never sees a pair. Exact match in expectation is the probability of the gold span, and F1 in expectation
is the mean of F1 over all spans. Logarithms are computed as differences of log-sum-exp, so that they keep
their gradient where the probability itself is 0 in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from reloss.metrics.masks import MASKED, is_open
from reloss.metrics.text import NO_ANSWER, SPAN_PADDING
from reloss.surrogates.checks import check_sizes, check_spans
from reloss.surrogates.expected.base import ExpectedLoss, ExpectedMetric
from reloss.surrogates.expected.sums import log_of_sum
from reloss.surrogates.reading import ReadingReLoss

LOWEST = -70.0  # replaces the logarithm of a probability that no logit can raise, such as of a masked gold position
TINY = 1e-30  # expectations below count as 0
NEGLIGIBLE = -80.0  # lower logits, relative to the largest, have no probability; exp is slow where it underflows
NEVER = -1e9  # logit of a pair of positions that is no span
CHUNK = 1 << 18  # spans that are computed at a time


class ExpectedReading(ExpectedLoss):
    """A loss over what F1 and exact match of a reader's spans are in expectation, for each example.

    Takes start and end logits [B, 2, T], where position 0 stands for no answer and closed positions hold `MASKED`, and
    gold spans [B, G, 2] of positions, inclusive; -1 is no answer, -2 padding.

    Args:
        limit: longest span in positions that decoding considers.
        metric: None for a network to be fitted, or `reading_f1` or `reading_exact_match` for its expectation.
        width: units of the hidden layers.
        scale: see `SurrogateLoss`.

    Raises:
        ValueError: there is no formula for the metric, or a limit, width or scale is not positive.
    """

    decomposes = True
    FEATURES = ("log_exact_match", "log_f1", "log_start", "log_end")
    EXPECTED: ClassVar[Mapping[str, ExpectedMetric]] = {
        "reading_exact_match": lambda features: features[..., 0].exp(),
        "reading_f1": lambda features: features[..., 1].exp(),
    }

    def __init__(self, limit: int = 30, metric: str | None = None, width: int = 16, scale: float = 1.0) -> None:
        super().__init__(metric, width, scale)
        check_sizes(limit=limit)
        self.limit = limit

    @classmethod
    def expected_arguments(cls, shape: Sequence[int]) -> dict[str, Any]:
        """Return no arguments; the shape has to be start and end logits [2, T].

        Raises:
            ValueError: one example's outputs are not a pair of rows of logits.
        """
        if len(shape) != 2 or shape[0] != 2:
            raise ValueError(f"expected start and end logits [2, T] of an example, not {list(shape)}")
        return {}

    def features(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the features of each example: logits [N, B, 2, T], gold spans [N, B, G, 2] -> [N, B, 4].

        Raises:
            ValueError: the shapes do not agree, or a gold position is not below T.
        """
        self.check(outputs, targets)
        return reading_features(outputs, targets, self.limit)

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise ValueError unless these are logits [N, B, 2, T] and gold spans [N, B, G, 2] of positions below T."""
        check_spans(outputs, targets)

    @staticmethod
    def ordinary_loss(outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy of each item; see `ReadingReLoss.ordinary_loss`."""
        return ReadingReLoss.ordinary_loss(outputs, targets)


def span_logits(outputs: Tensor, limit: int = 30) -> Tensor:
    """Return the logit of every span: the sum of its start's and its end's.

    Args:
        outputs: [..., 2, T] start and end logits. Position 0 stands for no answer; other spans start after it.
        limit: L, the longest span in positions.

    Returns:
        [..., T, L]; entry (s, d) belongs to the span from s to s + d. Pairs that are no span hold about `NEVER`.
    """
    start, end = outputs.unbind(-2)
    logits = start[..., None] + F.pad(end, (0, limit - 1), value=NEVER).unfold(-1, limit, 1)
    longer_than_no_answer = torch.zeros(logits.shape[-2:], dtype=logits.dtype, device=logits.device)
    longer_than_no_answer[0, 1:] = NEVER
    return logits + longer_than_no_answer


def span_scores(targets: Tensor, length: int, limit: int = 30) -> Tensor:
    """Return the F1 of every span with its best gold span.

    Args:
        targets: [..., G, 2] gold spans as in `reloss.metrics.span_f1`: -1 no answer, -2 padding.
        length: T, the number of positions.
        limit: L, the longest span in positions.

    Returns:
        [..., T, L] in float32, in [0, 1]; entry (s, d) belongs to the span from s to s + d, entry (0, 0) to no answer.
    """
    first = torch.arange(length, dtype=torch.float32, device=targets.device)[:, None]
    size = torch.arange(1, limit + 1, dtype=torch.float32, device=targets.device)
    best = torch.zeros(1, device=targets.device)
    for gold in _positions(targets).float()[..., None, None].unbind(-4):
        gold_first, gold_last = gold.unbind(-3)
        overlap = torch.minimum(first + size, gold_last + 1) - torch.maximum(first, gold_first)
        scores = overlap.clamp_(min=0).mul_(2 / (size + (gold_last - gold_first + 1)))
        best = torch.maximum(best, scores)
    return best


def reading_features(outputs: Tensor, targets: Tensor, limit: int = 30) -> Tensor:
    """Return four logarithms for each example, in the order of `ExpectedReading.FEATURES`.

    With several gold spans, an outcome is as good as its best gold span: exact match is the probability of any gold
    span, F1 the expectation of the best F1, start and end the probability of any gold start and of any gold end.

    Args:
        outputs: [..., 2, T] start and end logits in float32 or float64; -inf counts as `MASKED`.
        targets: [..., G, 2] gold spans: -1 no answer, -2 padding.
        limit: the longest span in positions. Longer spans have no probability.

    Returns:
        [..., 4], at most 0. A logarithm is `LOWEST`, without a gradient, if no logit can raise it: if all of its gold
        positions are masked or padding or, for exact match, if all gold spans are longer than the limit.
    """
    shape, limit = outputs.shape[:-2], min(limit, outputs.shape[-1])
    outputs, gold = outputs.clamp(min=MASKED).flatten(0, -3), _positions(targets).flatten(0, -3)
    size = max(CHUNK // (outputs.shape[-1] * limit), 1)
    parts = zip(outputs.split(size), gold.split(size), strict=True)
    spans = torch.cat([_span_features(*part, limit) for part in parts])
    return torch.cat((spans, _point_features(outputs, gold)), -1).view(*shape, 4)


def _span_features(outputs: Tensor, gold: Tensor, limit: int) -> Tensor:
    """Return the logarithms of expected exact match and F1: logits [M, 2, T], gold positions [M, G, 2] -> [M, 2].

    Expected F1 is a sum of probabilities. Where it underflows, the probability of the gold spans, whose logarithm does
    not, stands for it: it is the part of the sum whose F1 is 1.
    """
    logits = span_logits(outputs, limit).flatten(1)
    largest = logits.detach().amax(-1, keepdim=True)
    weights = (logits - largest).clamp(min=NEGLIGIBLE).exp()
    total = weights.sum(-1)
    f1 = (weights * span_scores(gold, outputs.shape[-1], limit).flatten(1)).sum(-1) / total

    positions = gold.clamp(min=0).mT
    reachable = (gold[..., 0] >= 0) & (gold[..., 1] - gold[..., 0] < limit)
    reachable &= _is_open(outputs).gather(-1, positions).all(1)
    repeated = (gold[:, :, None] == gold[:, None]).all(-1).tril(-1).any(-1)
    gold_logits = outputs.gather(-1, positions).sum(1).where(reachable & ~repeated, NEVER)
    log_exact = gold_logits.logsumexp(-1) - total.log() - largest[:, 0]
    log_exact = log_exact.where(reachable.any(-1), LOWEST)
    return torch.stack((log_exact, f1.clamp(min=TINY).log().where(f1 > TINY, log_exact)), -1)


def _point_features(outputs: Tensor, gold: Tensor) -> Tensor:
    """Return the log-probability of any gold start and of any gold end: [M, 2, T], [M, G, 2] -> [M, 2]."""
    is_gold = (gold[..., None] == torch.arange(outputs.shape[-1], device=gold.device)).any(1) & _is_open(outputs)
    return (log_of_sum(outputs, is_gold) - log_of_sum(outputs)).where(is_gold.any(-1), LOWEST)


def _is_open(outputs: Tensor) -> Tensor:
    """Return which positions are not masked. NaN counts as open, so that it shows in the loss."""
    return is_open(outputs) | outputs.isnan()


def _positions(targets: Tensor) -> Tensor:
    """Return gold spans [..., G, 2] as positions: no answer becomes (0, 0), padding is negative."""
    targets = targets.long()  # an unsigned dtype holds neither negative number
    start = targets[..., :1]
    return targets.where(start != NO_ANSWER, 0).where(start > SPAN_PADDING, SPAN_PADDING)
