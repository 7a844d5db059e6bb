"""Evaluation metrics, vectorised over items: (outputs [N, B, ...], targets [N, B, ...]) -> [N], higher is better."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from reloss.errors import unknown
from reloss.metrics.binary import auroc, average_precision, binary_f1
from reloss.metrics.classification import accuracy, balanced_accuracy, macro_f1, top5_accuracy, topk_accuracy
from reloss.metrics.keypoints import COCO_SIGMAS, decode_heatmaps, heatmap_pck, oks, pck
from reloss.metrics.ranking import ndcg, ndcg10
from reloss.metrics.text import (
    NO_ANSWER,
    SPAN_PADDING,
    bleu,
    span_exact_match,
    span_f1,
    token_exact_match,
    token_f1,
)

Metric = Callable[[Any, Any], Tensor]  # of two tensors; bleu alone takes lists of strings
METRICS: dict[str, Metric] = {
    metric.__name__: metric
    for metric in (
        *(accuracy, top5_accuracy, balanced_accuracy, macro_f1),
        *(binary_f1, average_precision, auroc),
        *(ndcg, ndcg10),
        heatmap_pck,
        *(span_f1, span_exact_match, token_f1, token_exact_match, bleu),
    )
}


def get_metric(name: str) -> Metric:
    """Return the metric called `name`.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in METRICS:
        raise unknown("metric", name, METRICS)
    return METRICS[name]


__all__ = [
    "COCO_SIGMAS",
    "METRICS",
    "NO_ANSWER",
    "SPAN_PADDING",
    "Metric",
    "accuracy",
    "auroc",
    "average_precision",
    "balanced_accuracy",
    "binary_f1",
    "bleu",
    "decode_heatmaps",
    "get_metric",
    "heatmap_pck",
    "macro_f1",
    "ndcg",
    "ndcg10",
    "oks",
    "pck",
    "span_exact_match",
    "span_f1",
    "token_exact_match",
    "token_f1",
    "top5_accuracy",
    "topk_accuracy",
]
