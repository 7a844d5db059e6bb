"""Metrics of ranked lists: one ranking of documents for each query, with graded relevance.

A ranking is good if relevant documents come first. Lists of different lengths are padded. A query without a relevant
document says nothing about a ranking, so it is skipped.
"""

import torch
from torch import Tensor

from reloss.metrics.ranking import ndcg
from reloss.metrics.shapes import ShapeError, check_shapes

PADDING = -1  # relevance of a place without a document


def list_ndcg(outputs: Tensor, targets: Tensor, k: int | None = None) -> Tensor:
    """Return the mean nDCG over the queries that have a relevant document.

    Equal to scikit-learn's `ndcg_score` of each query: gains are linear, as in `reloss.metrics.ndcg`. For exponential
    gains, pass targets of 2^relevance - 1.

    Args:
        outputs: [N, Q, D] scores of the documents of each query, finite; any value where there is no document.
        targets: [N, Q, D] relevance of at least 0, which is the gain; -1 where there is no document.
        k: number of places that count; all if None.

    Returns:
        [N] in [0, 1]; 0 for an item without a relevant document.

    Raises:
        ValueError: the shapes do not agree, a score is not finite, a target is negative but not -1, or k is less than
            1.
    """
    scores, gains = _lists(outputs, targets)
    # Sums over D documents are the same if there are more of them, with gain 0, at the end.
    values = ndcg(scores.flatten(0, 1), gains.flatten(0, 1), k).view(gains.shape[:2])
    return _mean(values, gains)


def list_ndcg10(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return `list_ndcg` of the first ten places: outputs [N, Q, D], targets [N, Q, D] -> [N]."""
    return list_ndcg(outputs, targets, 10)


def mrr(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean reciprocal rank: 1 / place of the first relevant document, averaged over the queries.

    A document is relevant if its relevance is above 0. Where relevant and other documents have the same score, the
    place is the one expected if their order is random. Arguments, result and errors: see `list_ndcg`.
    """
    scores, gains = _lists(outputs, targets)
    relevant = gains > 0
    best = scores.where(relevant, -torch.inf).amax(-1, keepdim=True)
    tied = scores == best
    ahead = (scores > best).sum(-1) + (tied & ~relevant).sum(-1) / ((tied & relevant).sum(-1) + 1)
    return _mean(1 / (1 + ahead.double()), gains)


def check_lists(outputs: Tensor, targets: Tensor) -> None:
    """Raise ValueError unless these are lists as `list_ndcg` takes them; reads all values.

    The message names the remedy.
    """
    check_list_shapes(outputs, targets)
    if not bool(torch.isfinite(outputs.where(targets != PADDING, 0)).all()):
        raise ValueError("scores must be finite where there is a document; mark places without one with relevance -1")
    wrong = ~((targets >= 0) | (targets == PADDING)) | targets.isinf()
    if wrong.any():
        raise ValueError(
            f"relevance must be at least 0, or -1 where there is no document, not {targets[wrong][0].item():g}; shift "
            "your grades: targets - targets.min()"
        )


def check_list_shapes(outputs: Tensor, targets: Tensor) -> None:
    """Raise ValueError unless outputs and targets are [N, Q, D]; reads no values."""
    try:
        check_shapes({"outputs [N, Q, D]": outputs, "targets [N, Q, D]": targets})
    except ShapeError as error:
        remedy = ""
        if outputs.dim() == 4 and outputs.shape[-1] == 1:
            remedy = "; remove the last axis: outputs.squeeze(-1)"
        elif outputs.shape == targets.shape and outputs.dim() == 2:
            remedy = "; a single ranking is a list of one query: outputs[None], targets[None]"
        elif outputs.dim() == 3 and targets.shape == outputs.shape[:2]:
            remedy = "; for the index of one relevant document, pass one_hot(targets, D)"
        raise error.with_remedy(remedy) from None


def _lists(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return checked scores and gains [N, Q, D] in float64; places without a document come last, with gain 0."""
    check_lists(outputs, targets)
    outputs, gains = outputs.detach().double(), targets.double().clamp(min=0)
    padding = targets == PADDING
    last = outputs.masked_fill(padding, torch.inf).amin(-1, keepdim=True).nan_to_num(posinf=0) - 1
    return outputs.where(~padding, last), gains


def _mean(values: Tensor, gains: Tensor) -> Tensor:
    """Return the mean over the queries with a relevant document: [N, Q] -> [N] in float32; 0 if there is none."""
    counts = (gains > 0).any(-1)
    return ((values * counts).sum(-1) / counts.sum(-1).clamp(min=1)).float()
