"""Expected counts and expected ranks of a set of scores, and the surrogate over them.

F1, the Matthews correlation and their relatives are formulas of four counts: true and false positives and negatives.
If example i is predicted positive with probability p_i = sigmoid(score), the expectation of each count is a sum of
probabilities. Average precision and AUROC depend on the order of the scores only; there, the probability that one
example scores above another is sigmoid(difference). Ratios of counts are computed from logarithms, so features and
gradients stay finite and exact where probabilities round to 0 or 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from reloss.surrogates.checks import check_logits_or_scores, warn_of_probabilities
from reloss.surrogates.expected.base import ExpectedLoss, ExpectedMetric
from reloss.surrogates.expected.sums import log_of_sum
from reloss.surrogates.sets import SetReLoss, existing_sets, log_odds

LOG_WORST = math.log(1e-3)  # logarithm of a ratio that is 0 by definition, such as the precision without positives


class LogCounts(NamedTuple):
    """Logarithms of the expected counts of each set [...]: true and false positives, false and true negatives.

    An empty count, such as the true positives of a set without positives, is about `sums.LOG_OF_NOTHING`.
    """

    tp: Tensor
    fp: Tensor
    fn: Tensor
    tn: Tensor


def sets_of(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scores of each set, and which examples are positive.

    Args:
        outputs: [N, B] scores, or [N, B, C] logits. With logits, each class is a set: its log-odds against the rest.
            targets: [N, B] labels 0 or 1, or classes.

    Returns:
        Scores [N, G, B] and positives [N, G, B]; G is 1 for scores, C for logits.
    """
    if outputs.dim() == 2:
        return outputs[:, None], targets[:, None] == 1
    classes = torch.arange(outputs.shape[-1], device=targets.device)
    return log_odds(outputs).movedim(-1, 1), targets[:, None] == classes[:, None]


def log_expected_counts(scores: Tensor, positive: Tensor) -> LogCounts:
    """Return the logarithms of the expected counts: scores [..., B], positive [..., B] -> [...] each."""
    return _log_counts(*_log_p_and_classes(scores, positive, ~positive))


def _log_p_and_classes(scores: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    """Return log p and log(1 - p) [..., 2, B], and which examples are positive and negative [..., 2, B]."""
    return F.logsigmoid(torch.stack((scores, -scores), -2)), torch.stack((positive, negative), -2)


def _log_counts(log_p: Tensor, classes: Tensor) -> LogCounts:
    by_prediction_and_class = log_of_sum(log_p[..., :, None, :], classes[..., None, :, :])
    return LogCounts(*by_prediction_and_class.flatten(-2).unbind(-1))


def count_features(scores: Tensor, positive: Tensor, negative: Tensor | None = None) -> Tensor:
    """Return what the metrics of one threshold are made of: scores [..., B], positive [..., B] -> [..., 9].

    `negative` [..., B] are all other examples, unless some are neither positive nor negative and do not count.

    Logarithms of precision, recall, F1, specificity and negative predictive value of the expected counts; mean
    log-likelihoods of positives and of negatives; shares of positives and of negatives, which do not depend on the
    scores. A mean or a ratio over an empty class is perfect (0). There are three exceptions: without positives,
    precision and F1 are log(0.001); without negatives, the negative predictive value is log(0.001).
    """
    log_p, classes = _log_p_and_classes(scores, positive, ~positive if negative is None else negative)
    sizes = classes.sum(-1)  # [..., 2]
    tp, fp, fn, tn = _log_counts(log_p, classes)
    parts = torch.stack((tp, tp, tp + math.log(2), tn, tn), -1)
    others = torch.stack((fp, fn, torch.logaddexp(fp, fn), fp, fn), -1)
    ratios = F.logsigmoid(parts - others)  # log(part / (part + other))
    is_empty = sizes == 0
    if bool(is_empty.any()):
        worst = ratios.new_tensor([LOG_WORST, 0, LOG_WORST, 0, LOG_WORST])
        ratios = torch.where(is_empty[..., [0, 0, 0, 1, 1]], worst, ratios)
    likelihoods = (log_p * classes).sum(-1) / sizes.clamp(min=1)
    return torch.cat((ratios, likelihoods, sizes / sizes.sum(-1, keepdim=True).clamp(min=1)), -1)


def rank_features(scores: Tensor, positive: Tensor, negative: Tensor | None = None) -> Tensor:
    """Return what the metrics of a ranking are made of: scores [..., B], positive [..., B] -> [..., 3].

    For `negative`, see `count_features`.

    One score is above another with the probability sigmoid(difference): both carry Gumbel noise. The features are the
    logarithm of the expected AUROC; the mean over all pairs of a positive and a negative of the log-probability that
    the positive is above; and the logarithm of the average precision in which the number of negatives above a positive
    is replaced by its expectation. Positives are ordered exactly, by sorting: a soft order of the positives would let
    the average precision fall as a positive rises. With large differences, all equal the exact metrics.

    Without negatives, all are 0. Without positives, the average precision is log(0.001), the others are 0.
    """
    best, is_positive = _sorted(scores, positive)
    others, is_negative = _sorted(scores, ~positive if negative is None else negative)
    positives, negatives = is_positive.sum(-1), is_negative.sum(-1)
    margins = best[..., None] - others[..., None, :]
    above, log_below = torch.sigmoid(-margins), F.logsigmoid(margins)
    is_pair = is_positive[..., None] & is_negative[..., None, :]
    if not bool(is_pair.all()):  # some sets have fewer places
        above, log_below = above.mul(is_pair), log_below.masked_fill(~is_pair, 0)
    pairs = (positives * negatives).clamp(min=1)
    log_wins = log_of_sum(log_below.flatten(-2), is_pair.flatten(-2))
    places = torch.arange(1, best.shape[-1] + 1, device=scores.device)
    precisions = places / (places + above.sum(-1))
    precision = precisions.mul(is_positive).sum(-1) / positives.clamp(min=1)
    area, likelihood = (log_wins - pairs.log()).clamp(max=0), log_below.flatten(-2).sum(-1) / pairs
    none = positives == 0
    area = area.masked_fill(none | (negatives == 0), 0)
    log_precision = precision.masked_fill(none, 1).log().masked_fill(none, LOG_WORST)
    return torch.stack((area, likelihood, log_precision), -1)


def _sorted(scores: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Return the chosen scores of each set from high to low, then zeros, and which are chosen: [..., B] -> [..., most].

    There are as many places as the largest number of chosen scores of a set.
    """
    counts = chosen.sum(-1, keepdim=True)
    most = int(counts.max()) if counts.numel() else 0
    is_place = torch.arange(most, device=scores.device) < counts
    ordered = scores.masked_fill(~chosen, -math.inf).sort(-1, descending=True).values[..., :most]
    return ordered.masked_fill(~is_place, 0), is_place


FEATURES = (
    "log_precision",
    "log_recall",
    "log_f1",
    "log_specificity",
    "log_negative_value",
    "mean_log_p_positives",
    "mean_log_p_negatives",
    "share_of_positives",
    "share_of_negatives",
    "log_auroc",
    "mean_log_p_pairs",
    "log_average_precision",
)
"""Names of the features: those of `count_features`, then those of `rank_features`."""


def expected_f1(features: Tensor) -> Tensor:
    """Return the F1 of the expected counts: features [..., F] -> [...]; 0 without positives."""
    return _ratio(features, "log_f1").masked_fill(~_has(features, "positives"), 0)


def expected_f2(features: Tensor) -> Tensor:
    """Return the F2 of the expected counts, in which recall weighs four times: features [..., F] -> [...]."""
    precision, recall = (_ratio(features, name).clamp(min=1e-6) for name in ("log_precision", "log_recall"))
    return (5 / (1 / precision + 4 / recall)).masked_fill(~_has(features, "positives"), 0)


def expected_iou(features: Tensor) -> Tensor:
    """Return the intersection over union of the expected counts: features [..., F] -> [...]; 0 without positives."""
    f1 = expected_f1(features)
    return f1 / (2 - f1)


def expected_recall(features: Tensor) -> Tensor:
    """Return the expected recall; over the classes of an item, its mean is balanced accuracy: [..., F] -> [...]."""
    return _ratio(features, "log_recall")


def expected_balanced_accuracy(features: Tensor) -> Tensor:
    """Return the mean of expected recall and specificity, or the one that is defined: features [..., F] -> [...]."""
    recalls = torch.stack((_ratio(features, "log_recall"), _ratio(features, "log_specificity")), -1)
    is_defined = torch.stack((_has(features, "positives"), _has(features, "negatives")), -1)
    return (recalls * is_defined).sum(-1) / is_defined.sum(-1)


def expected_mcc(features: Tensor) -> Tensor:
    """Return the Matthews correlation of the expected counts: features [..., F] -> [...]; 0 if a class is empty."""
    names = ("log_precision", "log_recall", "log_specificity", "log_negative_value")
    right = torch.stack([_ratio(features, name) for name in names], -1)
    mcc = _geometric(right) - _geometric(1 - right)
    return mcc.masked_fill(~(_has(features, "positives") & _has(features, "negatives")), 0)


def _geometric(ratios: Tensor) -> Tensor:
    """Return the square root of the product of ratios [..., 4] -> [...]; the gradient is 0 below 1e-6."""
    return ratios.prod(-1).clamp(min=1e-12).sqrt()


def expected_kappa(features: Tensor) -> Tensor:
    """Return Cohen's kappa of the expected counts: features [..., F] -> [...]; 0 if a class is empty."""
    positives, negatives = _column(features, "share_of_positives"), _column(features, "share_of_negatives")
    tp, tn = positives * _ratio(features, "log_recall"), negatives * _ratio(features, "log_specificity")
    fn, fp = positives - tp, negatives - tn
    chance = (tp + fp) * negatives + positives * (fn + tn)
    return 2 * (tp * tn - fn * fp) / chance.clamp(min=1e-6)


def expected_auroc(features: Tensor) -> Tensor:
    """Return the expected AUROC: features [..., F] -> [...]; 0.5 if a class is empty."""
    both = _has(features, "positives") & _has(features, "negatives")
    return _ratio(features, "log_auroc").masked_fill(~both, 0.5)


def expected_average_precision(features: Tensor) -> Tensor:
    """Return the average precision of the expected ranks: features [..., F] -> [...]; 0 without positives."""
    return _ratio(features, "log_average_precision").masked_fill(~_has(features, "positives"), 0)


def _column(features: Tensor, name: str) -> Tensor:
    return features[..., FEATURES.index(name)]


def _ratio(features: Tensor, name: str) -> Tensor:
    return _column(features, name).exp()


def _has(features: Tensor, group: str) -> Tensor:
    return _column(features, f"share_of_{group}") > 0


class ExpectedSets(ExpectedLoss):
    """The surrogate for metrics of a whole set, over expected counts and expected ranks.

    Takes scores [B] and labels [B]; or logits [B, C] and classes [B], where each class that occurs is a group, compared
    with the rest by its log-odds. The counts are exact expectations; precision, F1, MCC, kappa and IoU are those of the
    expected counts, recall, specificity, balanced accuracy and AUROC are expectations themselves.

    Loss and gradient are finite for scores of any size, in items of one class and of one example. The arguments are
    those of `ExpectedLoss`.
    """

    takes_logits = True
    FEATURES: ClassVar[tuple[str, ...]] = FEATURES

    EXPECTED: ClassVar[Mapping[str, ExpectedMetric]] = {
        "binary_f1": expected_f1,
        "binary_f2": expected_f2,
        "binary_iou": expected_iou,
        "binary_balanced_accuracy": expected_balanced_accuracy,
        "binary_kappa": expected_kappa,
        "mcc": expected_mcc,
        "auroc": expected_auroc,
        "average_precision": expected_average_precision,
        "macro_f1": expected_f1,
        "balanced_accuracy": expected_recall,
    }

    def features(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the features of each set.

        Args:
            outputs: [N, B] scores, or [N, B, C] logits.
            targets: [N, B] labels 0 or 1 in any dtype, or classes from 0 to C - 1 in an integer dtype.

        Returns:
            [N, G, 12], in the order of `FEATURES`; G is 1 for scores, C for logits.

        Raises:
            ValueError: the shapes do not agree, or a target is out of range.
        """
        check_logits_or_scores(outputs, targets)
        scores, positive = sets_of(outputs, targets)
        return torch.cat((count_features(scores, positive), rank_features(scores, positive)), -1)

    def best_features(self) -> Tensor:
        """Return the largest value of each feature [12]: 0 for logarithms, 1 for shares."""
        return torch.tensor([float(name.startswith("share")) for name in self.FEATURES], dtype=self.dtype)

    def group_weights(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return which sets of an item count: those that exist; see `reloss.surrogates.sets.existing_sets`."""
        return existing_sets(outputs, targets)

    def reduce(self, losses: Tensor, group_weights: Tensor | None) -> Tensor:
        """Return the mean over the sets that count, times the scale: losses [N, G], weights [N, G] -> [N]."""
        assert group_weights is not None
        return self.scale * (losses * group_weights).sum(-1) / group_weights.sum(-1)

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise ValueError unless these are scores and labels, or logits and classes; see `features`."""
        check_logits_or_scores(outputs, targets)
        warn_of_probabilities(outputs, items=True)

    @staticmethod
    def ordinary_loss(outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the (binary) cross-entropy of each item: outputs [N, B] or [N, B, C], targets [N, B] -> [N]."""
        return SetReLoss.ordinary_loss(outputs, targets)
