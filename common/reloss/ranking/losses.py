"""Losses that are one minus a metric of a ranking, and cross-entropy for the k best classes.

A metric of a ranking depends on the scores only through ranks, so its gradient is zero almost everywhere. With soft
ranks it becomes a loss. Each one is a function, and a module that holds its options. Losses average over rows; pass
`reduction="none"` for one number a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from reloss.ranking.correlation import soft_spearman
from reloss.ranking.hard import check_pair, check_values
from reloss.ranking.laplace import laplace_counts
from reloss.ranking.laplace_sort import laplace_log_choice
from reloss.ranking.operators import SORT_METHODS, SortMethod, soft_top_k_mask
from reloss.ranking.options import Method, as_float, prepare, standardized
from reloss.ranking.soft import soft_rank

Reduction = Literal["mean", "sum", "none"]


def spearman_loss(
    scores: Tensor, targets: Tensor, method: Method = "laplace", *, reduction: Reduction = "mean", **options: Any
) -> Tensor:
    """Return 1 - Spearman's rank correlation of soft ranks of the scores and hard ranks of the targets, in [0, 2].

    Args:
        scores: [..., n].
        targets: [..., n], any real numbers.
        method: how the scores are ranked, see `soft_rank`.
        reduction: over the rows: `mean`, `sum` or `none`.
        options: further options of `soft_spearman`. By default the scores are standardised.

    Raises:
        ValueError: as for `soft_spearman`, or the reduction is unknown.
    """
    return _reduced(1 - soft_spearman(scores, targets, method, **options), reduction)


def ndcg_loss(
    scores: Tensor,
    gains: Tensor,
    method: Method = "laplace",
    *,
    k: int | None = None,
    reduction: Reduction = "mean",
    **options: Any,
) -> Tensor:
    """Return 1 - nDCG with soft ranks, in [0, 1] up to the softness of the ranks.

    nDCG is the sum of gain / log2(place + 1), relative to the largest possible sum. Source: ApproxNDCG of Qin, Liu and
    Li, "A general approximation framework for direct optimization of information retrieval measures", Information
    Retrieval 2010.

    Args:
        scores: [..., n], higher for items that should come first.
        gains: [..., n], not negative, for example 2^relevance - 1. A row without gains has the loss 0.
        method: how the scores are ranked, see `soft_rank`.
        k: only the first k places count, by a soft mask; None counts all.
        reduction: over the rows: `mean`, `sum` or `none`.
        options: further options of `soft_rank`, except for `dim`. By default the scores are standardised.

    Raises:
        ValueError: as for `soft_rank`; shapes do not agree, a gain is negative, or k is not from 1 to n.
    """
    check_pair(scores, gains)
    check_values(gains)
    if (gains < 0).any():
        raise ValueError("gains must not be negative")
    n = scores.shape[-1]
    if k is not None and not (isinstance(k, int) and 1 <= k <= n):
        raise ValueError(f"k must be an integer from 1 to n = {n}, not {k!r}")
    scores = standardized(scores) if options.pop("standardize", True) else scores
    ranks = soft_rank(scores, method, descending=True, **options)
    gains = gains.to(ranks.dtype)
    discounts = 1 / (ranks + 2).log2()
    if k is not None:
        chooser: SortMethod = "laplace" if method == "pairwise" else method
        discounts = discounts * soft_top_k_mask(scores, k, method=chooser, **options)
    places = torch.arange(n if k is None else k, dtype=ranks.dtype, device=ranks.device)
    best = (gains.sort(dim=-1, descending=True).values[..., :k] / (places + 2).log2()).sum(-1)
    ndcg = (gains * discounts).sum(-1) / torch.where(best > 0, best, 1.0)
    return _reduced(torch.where(best > 0, 1 - ndcg, ndcg * 0), reduction)


def average_precision_loss(
    scores: Tensor,
    targets: Tensor,
    *,
    temperature: float = 0.1,
    standardize: bool = True,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return 1 - average precision with soft counts, in [0, 1], in O(n log n).

    The precision at a positive item is the number of positives that do not rank below it, relative to the number of
    all such items; average precision averages it over the positives. Source: SmoothAP of Brown, Xie, Kalogeiton and
    Zisserman, "Smooth-AP: Smoothing the path towards large-scale image retrieval", ECCV 2020, which takes sigmoids
    instead of Laplace distribution functions, in O(n^2).

    Args:
        scores: [..., n], higher for positives.
        targets: [..., n], 1 or True for positives and 0 for all others. A row without positives has the loss 0.
        temperature: softness of the counts.
        standardize: give each row of scores mean 0 and standard deviation 1 first.
        reduction: over the rows: `mean`, `sum` or `none`.

    Raises:
        ValueError: the shapes do not agree, a score is NaN or infinite, a target is neither 0 nor 1, or an option is
            invalid.
    """
    check_pair(scores, targets)
    if not ((targets == 0) | (targets == 1)).all():
        raise ValueError("targets must be 0 or 1")
    prepared = prepare(scores, "laplace", standardize=standardize, temperature=temperature)
    rows, positive = torch.broadcast_tensors(prepared.values, targets.to(prepared.values.dtype))
    if rows.numel() == 0:
        return _reduced(rows.sum(-1), reduction)
    above = torch.stack([laplace_counts(-rows, weights, temperature) for weights in (positive, torch.ones_like(rows))])
    precision = (1 + above[0]) / (1 + above[1])
    positives = positive.sum(-1)
    average = (precision * positive).sum(-1) / positives.clamp(min=1)
    return _reduced(torch.where(positives > 0, 1 - average, average * 0).to(prepared.dtype), reduction)


def top_k_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    k: int | Mapping[int, float] = 5,
    *,
    method: SortMethod = "laplace",
    reduction: Reduction = "mean",
    **options: Any,
) -> Tensor:
    """Return minus the logarithm of the target's share among the k largest logits.

    A target among the k best classes costs little, wherever it is among them; cross-entropy would still push it to the
    first place. Source: Petersen, Kuehne, Borgelt and Deussen, "Differentiable top-k classification learning", ICML
    2022; `laplace` takes the shares of Struski et al., ICML 2025, computed as logarithms, which never underflow.

    Args:
        logits: [..., C].
        targets: [...], the class of each row.
        k: the number of classes, below C, or a mixture of them such as {1: 0.5, 5: 0.5}, with weights that sum to 1.
        method: see `soft_top_k_mask`.
        reduction: over the rows: `mean`, `sum` or `none`.
        options: further options of `soft_top_k_mask`; the temperature is 1 by default, for logits.

    Raises:
        ValueError: as for `soft_top_k_mask`; a target is no class, the weights are not positive with sum 1, or k is
            not from 1 to C - 1.
    """
    weights = {k: 1.0} if isinstance(k, int) else dict(k)
    classes = logits.shape[-1]
    if not all(isinstance(size, int) and 1 <= size < classes for size in weights):
        raise ValueError(f"k must be from 1 to C - 1 = {classes - 1}, not {list(weights)}")
    if min(weights.values(), default=0) <= 0 or abs(sum(weights.values()) - 1) > 1e-6:
        raise ValueError(f"the weights of k must be positive and sum to 1, not {list(weights.values())}")
    if targets.shape != logits.shape[:-1] or ((targets < 0) | (targets >= classes)).any():
        raise ValueError(f"targets must be classes below {classes}, one for each row {list(logits.shape[:-1])}")
    index = targets.long()[..., None]
    if method == "laplace":
        options.setdefault("temperature", 1.0)
        prepared = prepare(logits, method, methods=SORT_METHODS, **options)
        terms = [laplace_log_choice(prepared.values, index, size, prepared.temperature) for size in weights]
    else:
        masks = [soft_top_k_mask(logits, size, method=method, **options) for size in weights]
        tiny = torch.finfo(masks[0].dtype).tiny
        terms = [mask.gather(-1, index).squeeze(-1).clamp(min=tiny).log() for mask in masks]
    shares = torch.tensor(list(weights.values()), dtype=terms[0].dtype, device=logits.device).log()
    losses = -torch.logsumexp(torch.stack(terms, -1) + shares, -1)
    return _reduced(losses.to(as_float(logits[..., :0]).dtype), reduction)


def _reduced(losses: Tensor, reduction: Reduction) -> Tensor:
    if reduction not in get_args(Reduction):
        raise ValueError(f"unknown reduction '{reduction}'; valid: {', '.join(get_args(Reduction))}")
    return losses if reduction == "none" else losses.mean() if reduction == "mean" else losses.sum()


class RankingLoss(nn.Module):
    """A loss of this module as a `torch.nn.Module`: the function's options are given once, to the constructor."""

    function: Callable[..., Tensor]

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of scores and targets; see the function."""
        return type(self).function(scores, targets, **self.options)

    def extra_repr(self) -> str:
        """Return the options, for `print(module)`."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


class SpearmanLoss(RankingLoss):
    """`spearman_loss` as a module."""

    function = staticmethod(spearman_loss)


class NDCGLoss(RankingLoss):
    """`ndcg_loss` as a module."""

    function = staticmethod(ndcg_loss)


class AveragePrecisionLoss(RankingLoss):
    """`average_precision_loss` as a module."""

    function = staticmethod(average_precision_loss)


class TopKCrossEntropyLoss(RankingLoss):
    """`top_k_cross_entropy` as a module."""

    function = staticmethod(top_k_cross_entropy)
