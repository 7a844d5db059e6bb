"""What metrics of ranked lists are made of, softened: gains at the places that documents are expected to take.

nDCG and the reciprocal rank depend on the order of the scores only, which passes no gradient. If the scores carry
noise, the number of less relevant documents above a document has an expectation, which is smooth. The cross-entropy of
a list asks all relevant documents to lead by the same margin; these parts know that the first places count most.

Grades are taken apart: with linear gains, nDCG is a sum over the grades. Each grade divides the documents into two
groups, those of at least this grade and the rest. Within the upper group, documents are ordered exactly, by sorting. So
every part rises when documents of a grade and above rise: a soft order of equally relevant documents would not do that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from reloss.metrics.lists import check_list_shapes, check_lists
from reloss.surrogates.checks import widen
from reloss.surrogates.expected.base import ExpectedLoss, ExpectedMetric
from reloss.surrogates.expected.sums import log_of_sum

LARGEST = 1e4  # bounds the size of scores
LAST = -4 * LARGEST  # score that puts a place below all documents
SMALLEST = 1e-3  # bounds the share of ordered pairs from below
GRADES = 8  # more different grades are rounded to as many equal steps
CUTOFFS = (1, 5, 10)
CHUNK = 1 << 16  # pairs in the cache at a time
TAIL = 0.02  # share of the nDCG of the whole list in the features at a cutoff, for a gradient below the cutoff
FEATURES = (
    *(f"log_ndcg_{k}" for k in CUTOFFS),
    "log_ndcg",
    "log_reciprocal_rank",
    "log_ordered_pairs",
    "mean_log_p_above",
)


class Graded(NamedTuple):
    """M lists of D documents by grade: for each of L grades, the documents of at least this grade, and the others.

    P is the largest number of relevant documents of a list.
    """

    scores: Tensor
    """[M, D]; LAST where there is no document."""
    lower: Tensor
    """1 for a document below the grade, else 0: [M, L, D]."""
    best: Tensor
    """Scores of the relevant documents in descending order, LAST beyond their number: [M, P]."""
    upper: Tensor
    """1 for a relevant document of at least the grade, else 0, in the order of `best`: [M, L, P]."""
    steps: Tensor
    """How much a gain rises from one grade to the next: [L]."""


def graded(outputs: Tensor, targets: Tensor) -> Graded:
    """Return lists by grade: scores [M, D], relevance [M, D]; negative where there is no document."""
    real = targets >= 0
    gains = targets.clamp(min=0).to(outputs.dtype)
    levels = gains.unique()
    if len(levels) > GRADES + 1:
        gains = (gains / levels[-1] * GRADES).ceil() * levels[-1] / GRADES
        levels = gains.unique()
    levels = F.pad(levels[levels > 0], (1, 0))
    scores = outputs.clamp(-LARGEST, LARGEST).masked_fill(~real, LAST)
    relevant = gains > 0
    best, order = scores.masked_fill(~relevant, 2 * LAST).sort(-1, descending=True)
    best, order = (values[:, : int(relevant.sum(-1).max())] for values in (best, order))
    above = gains[:, None] >= levels[1:, None]
    lower = (real[:, None] & ~above).to(outputs.dtype)
    upper = gains.gather(-1, order)[:, None] >= levels[1:, None]
    return Graded(scores, lower, best.clamp(min=LAST), upper.to(outputs.dtype), levels.diff())


class _LowerAbove(torch.autograd.Function):
    """The expected number of lower documents above each relevant one, for lists as in `Graded`: [M, L, P].

    One score is above another with the probability sigmoid(difference). Lists are computed in chunks, which stay in the
    cache, with a gradient in closed form; memory does not grow with the number of pairs.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, best: Tensor, lower: Tensor) -> Tensor:
        ctx.save_for_backward(scores, best, lower)
        return torch.cat([_lower_above(*rows) for rows in _chunks(scores, best, lower)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        scores, best, lower = ctx.saved_tensors
        if torch.is_grad_enabled():  # for second derivatives: let autograd differentiate the sums
            above = _lower_above(scores, best, lower)
            to_scores, to_best = torch.autograd.grad(above, (scores, best), gradient, create_graph=True)
            return to_scores, to_best, None
        parts = []
        for x, top, mask, rows in _chunks(scores, best, lower, gradient):
            p = (x[:, :, None] - top[:, None, :]).sigmoid_()
            slopes = (mask.mT @ rows).mul_(p).mul_(p.neg_().add_(1))  # [m, D, P]
            parts.append((slopes.sum(2), -slopes.sum(1)))
        to_scores, to_best = (torch.cat(slopes) for slopes in zip(*parts, strict=True))
        return to_scores, to_best, None


def _lower_above(scores: Tensor, best: Tensor, lower: Tensor) -> Tensor:
    return lower @ (scores[:, :, None] - best[:, None, :]).sigmoid()


def _chunks(scores: Tensor, best: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield a few lists of each tensor at a time."""
    rows = max(1, CHUNK // max(scores.shape[-1] * best.shape[-1], 1))
    return zip(*(tensor.split(rows) for tensor in (scores, best, *others)), strict=True)


def list_features(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return seven features of each list: scores [M, D], relevance [M, D] -> [M, 7], in the order of `FEATURES`.

    All are at most 0, and 0 for a list without a relevant document. They do not fall when all documents of a grade and
    above rise together, or when a document without relevance falls.
    """
    if not bool((targets > 0).any()):
        return 0 * outputs.clamp(-1, 1).sum(-1, keepdim=True).expand(-1, len(FEATURES))
    lists = graded(outputs, targets)
    above: Tensor = _LowerAbove.apply(lists.scores, lists.best, lists.lower)
    places = (lists.upper.cumsum(-1) + above).clamp(min=1)  # from 1; the best document of a list is its first
    ranks = (-places[:, 0, :1].log()).where(lists.upper[:, 0, :1] > 0, 0)
    return torch.cat((_log_ndcg(lists, places), ranks, _log_pairs(lists, above)), -1)


def _log_ndcg(lists: Graded, places: Tensor) -> Tensor:
    """Return the logarithm of the nDCG at each of CUTOFFS and of the whole list: [M, 4].

    Between two places, the share of a gain that counts at a cutoff falls linearly.
    """
    count = lists.scores.shape[-1]
    discounts = F.pad(1 / (torch.arange(count, device=places.device) + 2).to(places.dtype).log2(), (1, 0)).cumsum(0)
    size = lists.upper.sum(-1).long()  # [M, L]
    gains = (lists.upper * lists.steps[:, None] / (1 + places).log2()).flatten(1)
    cutoffs = torch.tensor((*CUTOFFS, count), device=places.device)[:, None, None]
    counted = (1 + cutoffs - places.flatten(1)).clamp(0, 1)  # [4, M, L P]
    ideal = discounts[torch.minimum(size, cutoffs)] @ lists.steps  # [4, M]
    scores = torch.linalg.vecdot(counted, gains) / ideal.where(ideal > 0, 1)
    scores = torch.cat(((1 - TAIL) * scores[:-1] + TAIL * scores[-1:], scores[-1:]))
    return scores.where(ideal > 0, 1).clamp(max=1).log().mT


def _log_pairs(lists: Graded, above: Tensor) -> Tensor:
    """Return two means over the grades of each list: [M, 2].

    The logarithm of the expected share of pairs, of a document of at least this grade and a lower one, in the right
    order. And the mean over the documents of at least this grade of the log-probability to be drawn before all lower
    ones: a cross-entropy of the list that, unlike ListNet's, never asks a relevant document to fall.
    """
    size, lower = lists.upper.sum(-1), lists.lower.sum(-1)
    pairs = size * lower
    weights = lists.steps * (pairs > 0)
    weights = weights / weights.sum(-1, keepdim=True).where((pairs > 0).any(-1, keepdim=True), 1)
    wrong = torch.linalg.vecdot(above, lists.upper)
    ordered = (1 - wrong / pairs.clamp(min=1)).clamp(SMALLEST, 1).log()
    rivals = log_of_sum(lists.scores[:, None], lists.lower > 0)[..., None]
    log_p = torch.linalg.vecdot(F.logsigmoid(lists.best[:, None] - rivals), lists.upper) / size.clamp(min=1)
    return torch.linalg.vecdot(torch.stack((ordered, log_p), 1), weights[:, None])


def expected_ndcg10(features: Tensor) -> Tensor:
    """Return the nDCG of the first ten places for the expected places: features [..., F] -> [...]."""
    whole = _column(features, "log_ndcg").exp()
    return (_column(features, "log_ndcg_10").exp() - TAIL * whole) / (1 - TAIL)


def _column(features: Tensor, name: str) -> Tensor:
    return features[..., FEATURES.index(name)]


class ExpectedLists(ExpectedLoss):
    """The surrogate for metrics of ranked lists, over gains at expected places.

    Takes scores [Q, D] of D documents for each of Q queries, and their relevance [Q, D]: numbers of at least 0, in any
    dtype, and -1 where there is no document, as in shorter lists. The groups are the queries. A query without a
    relevant document is skipped, as the metrics do; an item of such queries has loss 0. With more than eight different
    grades, relevance is rounded up to eighths of the largest.

    Loss and gradient are finite for scores of any size: they are clamped to +-1e4. The arguments are those of
    `ExpectedLoss`.
    """

    FEATURES: ClassVar[tuple[str, ...]] = FEATURES

    EXPECTED: ClassVar[Mapping[str, ExpectedMetric]] = {
        "list_ndcg": lambda features: _column(features, "log_ndcg").exp(),
        "list_ndcg10": expected_ndcg10,
        "mrr": lambda features: _column(features, "log_reciprocal_rank").exp(),
    }

    @classmethod
    def expected_arguments(cls, shape: Sequence[int]) -> dict[str, Any]:
        """Return no arguments: the shape [D] of one query's scores decides nothing.

        Raises:
            ValueError: the outputs have another number of axes.
        """
        if len(shape) != 1:
            raise ValueError(f"expected the scores [D] of a query's documents, not {list(shape)}")
        return {}

    def features(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the features of each query: scores and relevance [N, Q, D] -> [N, Q, 7], in the order of `FEATURES`.

        Raises:
            ValueError: the shapes do not agree.
        """
        check_list_shapes(outputs, targets)
        return list_features(outputs.flatten(0, 1), targets.flatten(0, 1)).view(*outputs.shape[:2], -1)

    def group_weights(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return which queries have a relevant document: [N, Q]."""
        return (targets > 0).any(-1)

    def reduce(self, losses: Tensor, group_weights: Tensor | None) -> Tensor:
        """Return the mean over the queries that count, times the scale: losses [N, Q], weights [N, Q] -> [N]."""
        assert group_weights is not None
        return self.scale * (losses * group_weights).sum(-1) / group_weights.sum(-1).clamp(min=1)

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise ValueError unless these are scores and relevance [N, Q, D], finite where there is a document."""
        check_lists(outputs, targets)

    @staticmethod
    def ordinary_loss(outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the list-wise cross-entropy of each item: outputs and targets [N, Q, D] -> [N].

        The mean over the queries with a relevant document of the cross-entropy between the softmax of the scores and
        the relevance divided by its sum. Source: ListNet (Cao et al., 2007), with the target distribution of Bruch et
        al., "An Analysis of the Softmax Cross Entropy Loss for Learning-to-Rank with Binary Relevance", ICTIR 2019.
        """
        check_list_shapes(outputs, targets)
        gains = targets.clamp(min=0).to(widen(outputs).dtype)
        log_p = widen(outputs).clamp(-LARGEST, LARGEST).masked_fill(targets < 0, LAST).log_softmax(-1)
        total = gains.sum(-1)
        losses = -(log_p * gains).sum(-1) / total.where(total > 0, 1)
        return losses.sum(-1) / (total > 0).sum(-1).clamp(min=1)
