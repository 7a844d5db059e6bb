"""Metrics of a ranking, given a gain for each example.

A ranking is good if examples with high gains come first. DCG weighs each gain by a discount that falls with its place;
nDCG divides by the DCG of the best possible ranking.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from reloss.metrics.shapes import check_shapes
from reloss.metrics.ties import descending
from reloss.ranking.hard import check_values


def ndcg(outputs: Tensor, targets: Tensor, k: int | None = None) -> Tensor:
    """Return the normalised discounted cumulative gain of ranking an item's B examples by score.

    Equal to scikit-learn's `ndcg_score`: gains are linear and divided by log2(place + 1) (Järvelin and Kekäläinen,
    2002). Equal scores share the mean of their gains (McSherry and Najork, ECIR 2008).

    Args:
        outputs: [N, B] finite scores.
        targets: [N, B] finite gains of at least 0.
        k: number of places that count; all if None or larger than B.

    Returns:
        [N] in [0, 1]; 0 if all gains are 0. With B = 1, which scikit-learn rejects, 1 for a positive gain.

    Raises:
        ValueError: the shapes do not agree, a value is not finite, a gain is negative, or k is less than 1.
    """
    check_shapes({"outputs [N, B]": outputs, "targets [N, B]": targets})
    check_values(outputs)
    check_values(targets)
    if (targets < 0).any():
        raise ValueError("targets must be gains of at least 0")
    if k is not None and (isinstance(k, bool) or not isinstance(k, int) or k < 1):
        raise ValueError(f"k must be a whole number of at least 1, not {k}")
    largest = _dcg(targets, targets, k)
    return (_dcg(outputs, targets, k) / largest.where(largest > 0, 1)).float()


def ndcg10(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return `ndcg` of the first ten places: outputs [N, B], targets [N, B] -> [N]."""
    return ndcg(outputs, targets, 10)


def _dcg(outputs: Tensor, targets: Tensor, k: int | None) -> Tensor:
    """Return the sum of the gains, each times the mean discount of the places of its tie, [N]."""
    order, start, end = descending(outputs)
    places = torch.arange(outputs.shape[-1], device=outputs.device)
    discounts = 1 / (places + 2).double().log2()
    if k is not None:
        discounts[k:] = 0
    cumulative = pad(discounts.cumsum(0), (1, 0))
    return (targets.gather(-1, order) * (cumulative[end] - cumulative[start]) / (end - start)).sum(-1)
