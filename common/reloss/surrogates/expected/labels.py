"""Expected counts and ranks of multi-label predictions: those of each label's examples, and of all labels together.

Each label is a set of scores with positives and negatives, so the parts of `reloss.surrogates.expected.sets` apply to
it. Macro averages are made of these. Micro averages pool the decisions of all labels, where frequent labels weigh more;
they need the same parts of the pooled scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from reloss.metrics.multilabel import check_label_shapes, check_labels
from reloss.ranking import soft_rank
from reloss.surrogates.checks import warn_of_probabilities, widen
from reloss.surrogates.expected import sets
from reloss.surrogates.expected.base import ExpectedLoss, ExpectedMetric
from reloss.surrogates.expected.sets import count_features, rank_features

LARGEST = 1e4  # bounds the size of scores
LAST = -4 * LARGEST  # score that ranks below all that count
COUNT_FEATURES = sets.FEATURES[: sets.FEATURES.index("share_of_negatives") + 1]
RANK_FEATURES = ("log_auroc", "log_average_precision")
FEATURES = (*sets.FEATURES, *(f"pooled_{name}" for name in (*COUNT_FEATURES, *RANK_FEATURES)))


def pooled_rank_features(scores: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Return what the metrics of one ranking of all decisions are made of: [..., B] each -> [..., 2].

    The logarithms of the expected AUROC and of the average precision of the expected ranks, as in `rank_features`. But
    one score is above another with the probability that Laplace noise gives: soft ranks take time in proportion to the
    number of scores, not of pairs. Bounded below by log(0.001). Positives are ordered exactly.
    """
    # In a second ranking, negatives are moved to the end. The ranks that a positive gains by this are the negatives
    # that were above it.
    rows = torch.stack((scores.where(positive | negative, LAST), scores.where(positive, LAST)), -2)
    ranks = soft_rank(rows, "laplace", temperature=1.0)
    above = (ranks[..., 1, :] - ranks[..., 0, :]).clamp(min=0)
    order = scores.detach().where(positive, LAST).argsort(-1, descending=True)
    above, is_place = above.gather(-1, order), positive.gather(-1, order)
    places = torch.arange(1, scores.shape[-1] + 1, device=scores.device)
    positives, negatives = positive.sum(-1), negative.sum(-1)
    pairs = positives * negatives
    auroc = 1 - above.where(is_place, 0).sum(-1) / pairs.clamp(min=1)
    precision = (places / (places + above)).where(is_place, 0).sum(-1) / positives.clamp(min=1)
    smallest = math.exp(sets.LOG_WORST)
    log_auroc = auroc.clamp(smallest, 1).log().where(pairs > 0, 0)
    log_precision = precision.where(positives > 0, smallest).clamp(smallest, 1).log()
    return torch.stack((log_auroc, log_precision), -1)


def _pooled(formula: ExpectedMetric) -> ExpectedMetric:
    """Return the formula for the features of all labels together, which are the same for each label."""
    unused = len(sets.FEATURES) - len(COUNT_FEATURES)

    def pooled(features: Tensor) -> Tensor:
        counts = features[..., len(sets.FEATURES) :][..., : len(COUNT_FEATURES)]
        return formula(F.pad(counts, (0, unused)))

    return pooled


class ExpectedLabels(ExpectedLoss):
    """The surrogate for metrics of multi-label predictions, over expected counts and ranks.

    Takes scores [B, L], above 0 for a predicted label, and targets [B, L] of 0 and 1 in any dtype; -1 does not count.
    The groups are the L labels; a label for which no example counts is skipped. Each sees the parts of its own set, as
    `ExpectedSets` does, and those of all labels together.

    Loss and gradient are finite for scores of any size, which are clamped to +-1e4, and for labels without positives or
    negatives; an item in which nothing counts has loss 0. The arguments are those of `ExpectedLoss`.
    """

    takes_logits = True
    FEATURES: ClassVar[tuple[str, ...]] = FEATURES

    EXPECTED: ClassVar[Mapping[str, ExpectedMetric]] = {
        "label_macro_f1": sets.expected_f1,
        "label_micro_f1": _pooled(sets.expected_f1),
        "label_mean_average_precision": sets.expected_average_precision,
    }

    @classmethod
    def expected_arguments(cls, shape: Sequence[int]) -> dict[str, Any]:
        """Return no arguments: the shape [L] of one example's outputs decides nothing.

        Raises:
            ValueError: the outputs have another number of axes.
        """
        if len(shape) != 1:
            raise ValueError(f"expected the scores [L] of an example's labels, not {list(shape)}")
        return {}

    def features(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the features of each label: scores and targets [N, B, L] -> [N, L, F], in the order of `FEATURES`.

        Raises:
            ValueError: the shapes do not agree.
        """
        check_label_shapes(outputs, targets)
        scores = outputs.clamp(-LARGEST, LARGEST)
        columns = (scores.mT, (targets == 1).mT, (targets == 0).mT)
        pooled = tuple(values.flatten(1) for values in columns)
        together = torch.cat((count_features(*pooled), pooled_rank_features(*pooled)), -1)
        each = (count_features(*columns), rank_features(*columns))
        return torch.cat((*each, together[:, None].expand(-1, outputs.shape[2], -1)), -1)

    def best_features(self) -> Tensor:
        """Return the largest value of each feature [F]: 0 for logarithms, 1 for shares."""
        return torch.tensor([float("share_of" in name) for name in self.FEATURES], dtype=self.dtype)

    def group_weights(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return which labels of an item have an example that counts: [N, L]."""
        return ((targets == 0) | (targets == 1)).any(1)

    def reduce(self, losses: Tensor, group_weights: Tensor | None) -> Tensor:
        """Return the mean over the labels that count, times the scale: losses [N, L], weights [N, L] -> [N]."""
        assert group_weights is not None
        return self.scale * (losses * group_weights).sum(-1) / group_weights.sum(-1).clamp(min=1)

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise ValueError unless these are scores [N, B, L] and targets of 0, 1 and -1."""
        check_labels(outputs, targets)
        warn_of_probabilities(outputs.flatten())

    @staticmethod
    def ordinary_loss(outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the binary cross-entropy of each item, the mean over what counts: [N, B, L] twice -> [N]."""
        check_label_shapes(outputs, targets)
        counts = (targets == 0) | (targets == 1)
        outputs = widen(outputs)
        labels = targets.to(outputs.dtype).where(counts, 0)
        losses = F.binary_cross_entropy_with_logits(outputs, labels, reduction="none").where(counts, 0)
        return losses.flatten(1).sum(-1) / counts.flatten(1).sum(-1).clamp(min=1)
