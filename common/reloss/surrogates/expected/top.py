"""Expected parts of the metrics of a ranking's top, and the surrogate over them: partial AUROC, precision at k.

Which examples are at the top changes from step to step, so a soft threshold there would let the metric fall as a
positive rises. Order statistics avoid this. The best positive is among the first k places if it is above the negative
of place k, the second best if it is above the negative of place k - 1, and so on. Places of positives and negatives,
each by themselves, come from sorting; only the comparison of a positive with a negative is soft.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from reloss.metrics.top import MAX_FPR
from reloss.surrogates.expected import sets
from reloss.surrogates.expected.base import ExpectedMetric
from reloss.surrogates.expected.sets import LOG_WORST, ExpectedSets, sets_of
from reloss.surrogates.expected.sums import log_of_sum

K = 10
TOP_FEATURES = (
    "log_partial_auroc",
    "mean_log_p_top_pairs",
    "log_precision_at_k",
    "log_recall_at_k",
    "mean_log_p_hits",
)
FEATURES = (*sets.FEATURES, *TOP_FEATURES)


def top_features(scores: Tensor, positive: Tensor, max_fpr: float = MAX_FPR, k: int = K) -> Tensor:
    """Return what the metrics of a ranking's top are made of, in the order of TOP_FEATURES.

    One score is above another with the probability sigmoid(difference). The features: logarithm of the expected area
    under the ROC curve up to `max_fpr`, relative to the largest area; mean log-probability that positives are above
    the negatives of that part; logarithms of the expected precision and recall in the first k places; mean
    log-probability of the comparisons that decide about these places. Each rises with every positive's score, and falls
    with every negative's. With large differences, all equal the exact metrics.

    Without positives, precision and recall are log(0.001) and the rest is 0; without negatives, the first two are 0.

    Args:
        scores: [..., B], finite.
        positive: [..., B], which examples are positive.
        max_fpr: the largest false positive rate that counts, above 0 and at most 1.
        k: number of places.

    Returns:
        [..., 5].
    """
    positives, negatives = positive.sum(-1, keepdim=True), (~positive).sum(-1, keepdim=True)
    best = scores.masked_fill(~positive, -math.inf).sort(-1, descending=True).values  # positives, then -inf
    worst = scores.masked_fill(positive, -math.inf).sort(-1, descending=True).values  # negatives, then -inf
    areas = _areas(best, worst, positives, negatives, max_fpr)
    return torch.stack((*areas, *_hits(best, worst, positives, k)), -1)


def _areas(best: Tensor, worst: Tensor, positives: Tensor, negatives: Tensor, max_fpr: float) -> tuple[Tensor, Tensor]:
    """Return the first two features [...]: sorted scores [..., B] of both classes, and their numbers [..., 1]."""
    places = torch.arange(best.shape[-1], device=best.device)
    counted = max_fpr * negatives.to(best.dtype)
    shares = (counted - places).clamp(0, 1)  # of each negative that counts, the highest first
    most = [int(part.max()) if part.numel() else 0 for part in (positives, negatives)]
    rows, columns = most[0], min(math.ceil(max_fpr * most[1]), best.shape[-1])
    is_pair = ((places < positives)[..., :rows, None]) & (shares > 0)[..., None, :columns]
    margins = best[..., :rows, None] - worst[..., None, :columns]
    log_wins = F.logsigmoid(margins.masked_fill(~is_pair, 0)).flatten(-2)
    weights = (shares[..., None, :columns] * is_pair).flatten(-2)
    total = (positives * counted)[..., 0]
    is_empty = total == 0
    log_weights = weights.where(weights > 0, 1).log()
    log_area = log_of_sum(log_wins + log_weights, weights > 0)
    total = total.where(~is_empty, 1)
    area = (log_area - total.log()).clamp(max=0).masked_fill(is_empty, 0)
    return area, (log_wins * weights).sum(-1) / total


def _hits(best: Tensor, worst: Tensor, positives: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the last three features [...]: sorted scores [..., B] of both classes, and numbers of positives."""
    first = min(k, best.shape[-1])
    is_place = torch.arange(first, device=best.device) < positives
    rivals = worst[..., :first].flip(-1)  # the best positive meets the negative of place k, the next that of k - 1
    decided = is_place & (rivals > -math.inf)  # where there are fewer negatives, the place is certain
    log_p = F.logsigmoid((best[..., :first] - rivals).masked_fill(~decided, 0)).masked_fill(~decided, 0)
    log_hits = log_of_sum(log_p, is_place)
    count, is_empty = positives[..., 0].clamp(min=1).to(best.dtype), positives[..., 0] == 0
    precision, recall = ((log_hits - size).clamp(max=0) for size in (math.log(first), count.log()))
    mean = log_p.sum(-1) / count.clamp(max=first)
    return precision.masked_fill(is_empty, LOG_WORST), recall.masked_fill(is_empty, LOG_WORST), mean


def expected_partial_auroc(features: Tensor) -> Tensor:
    """Return the standardised partial AUROC of the expected area: [..., F] -> [...]; 0.5 if a class is empty."""
    smallest = MAX_FPR / 2  # relative to the largest area
    both = (_column(features, "share_of_positives") > 0) & (_column(features, "share_of_negatives") > 0)
    area = _column(features, "log_partial_auroc").exp()
    return ((1 + (area - smallest) / (1 - smallest)) / 2).masked_fill(~both, 0.5)


def expected_precision_at_k(features: Tensor) -> Tensor:
    """Return the expected precision in the first K places: features [..., F] -> [...]; 0 without positives."""
    none = _column(features, "share_of_positives") == 0
    return _column(features, "log_precision_at_k").exp().masked_fill(none, 0)


def expected_recall_at_k(features: Tensor) -> Tensor:
    """Return the expected recall in the first K places: features [..., F] -> [...]; 0 without positives."""
    none = _column(features, "share_of_positives") == 0
    return _column(features, "log_recall_at_k").exp().masked_fill(none, 0)


def _column(features: Tensor, name: str) -> Tensor:
    return features[..., FEATURES.index(name)]


class ExpectedTop(ExpectedSets):
    """The surrogate for metrics of a ranking's top: that of sets, which also sees the expected parts of these metrics.

    Takes scores [B] and labels [B], or logits [B, C] and classes [B]; see `ExpectedSets`. The features are those of a
    false positive rate of at most 0.1, and of 10 places.
    """

    FEATURES: ClassVar[tuple[str, ...]] = FEATURES

    EXPECTED: ClassVar[Mapping[str, ExpectedMetric]] = {
        **ExpectedSets.EXPECTED,
        "partial_auroc": expected_partial_auroc,
        "precision_at_10": expected_precision_at_k,
        "recall_at_10": expected_recall_at_k,
    }

    def features(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the features of each set, [N, G, 17], in the order of `FEATURES`; see `ExpectedSets.features`."""
        return torch.cat((super().features(outputs, targets), top_features(*sets_of(outputs, targets))), -1)
