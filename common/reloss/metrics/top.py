"""Metrics of the top of a ranking, for two classes: what counts is who comes first, not who comes last.

A search page shows ten results, and a screening test may only raise few false alarms. Precision and recall at k look at
the k examples with the highest scores; the partial AUROC looks at the highest negatives only.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from reloss.metrics.binary import positive_targets
from reloss.metrics.ties import descending

MAX_FPR = 0.1  # of `partial_auroc`, and of its expectation


def partial_auroc(outputs: Tensor, targets: Tensor, *, max_fpr: float = MAX_FPR) -> Tensor:
    """Return the area under the ROC curve up to a false positive rate, standardised: chance is 0.5, perfect is 1.

    Equal to scikit-learn's `roc_auc_score(max_fpr=max_fpr)`. Source: McClish (1989), Analyzing a Portion of the ROC
    Curve.

    Args:
        outputs: [N, B] finite scores; equal ones form one threshold.
        targets: [N, B] in {0, 1}.
        max_fpr: the largest false positive rate that counts, above 0 and at most 1.

    Returns:
        [N] in [0, 1]; 0.5 for an item with one class only.

    Raises:
        ValueError: the shapes do not agree, an output is not finite, a target is neither 0 nor 1, or max_fpr is out of
            range.
    """
    if not 0 < max_fpr <= 1:
        raise ValueError(f"max_fpr must be above 0 and at most 1, not {max_fpr}")
    positive = positive_targets(outputs, targets)
    positives, negatives = positive.sum(-1), (~positive).sum(-1)
    order, start, end = descending(outputs)
    positive = positive.gather(-1, order)
    before = pad(positive.cumsum(-1), (1, 0))  # positives before each place
    above, tied = before.gather(-1, start), before.gather(-1, end) - before.gather(-1, start)
    place = (~positive).cumsum(-1) - 1  # of a negative, among the negatives
    share = (max_fpr * negatives.double()[:, None] - place).clamp(0, 1) * ~positive  # of each negative that counts
    # Within a tie, the curve is a straight line: positives and negatives rise together.
    progress = (place + share / 2 - (start - above)) / (end - start - tied).clamp(min=1)
    area = (share * (above + tied * progress)).sum(-1) / (positives * negatives).clamp(min=1)
    smallest, largest = max_fpr**2 / 2, max_fpr
    standardised = (1 + (area - smallest) / (largest - smallest)) / 2
    return standardised.where((positives > 0) & (negatives > 0), 0.5).float()


def precision_at_k(outputs: Tensor, targets: Tensor, k: int) -> Tensor:
    """Return the share of positives among the k examples with the highest scores, or among all if there are fewer.

    Examples with the score of place k share the remaining places.

    Args:
        outputs: [N, B] finite scores.
        targets: [N, B] in {0, 1}.
        k: number of places, at least 1.

    Returns:
        [N] in [0, 1].

    Raises:
        ValueError: the shapes do not agree, an output is not finite, a target is neither 0 nor 1, or k is less than 1.
    """
    return (_hits(outputs, targets, k) / min(k, outputs.shape[-1])).float()


def recall_at_k(outputs: Tensor, targets: Tensor, k: int) -> Tensor:
    """Return the share of the positives that are among the k examples with the highest scores: [N] in [0, 1].

    It is 0 for an item without positives, and at most k divided by the number of positives. Arguments and errors: see
    `precision_at_k`.
    """
    return (_hits(outputs, targets, k) / (targets == 1).sum(-1).clamp(min=1)).float()


def precision_at_10(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return `precision_at_k` of the first ten places: outputs [N, B], targets [N, B] -> [N]."""
    return precision_at_k(outputs, targets, 10)


def recall_at_10(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return `recall_at_k` of the first ten places: outputs [N, B], targets [N, B] -> [N]."""
    return recall_at_k(outputs, targets, 10)


def _hits(outputs: Tensor, targets: Tensor, k: int) -> Tensor:
    """Return the number of positives in the first k places, [N] in float64."""
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"k must be a whole number of at least 1, not {k}")
    positive = positive_targets(outputs, targets)
    order, start, end = descending(outputs)
    size = (end - start).double()
    share = torch.minimum((k - start).clamp(min=0), size) / size  # of each place that is among the first k
    return (positive.gather(-1, order) * share).sum(-1)
