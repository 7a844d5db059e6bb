"""Evaluation metrics, vectorised over items: (outputs [N, B, ...], targets [N, B, ...]) -> [N], higher is better.

An item is a batch of B examples that gets one metric value. Learning a surrogate measures thousands of items, so every
metric here computes all N at once. A metric that exists only as a function of one item becomes one by `PerItem`. Each
metric equals a well-known implementation, which its docstring names and its tests compare with.
"""

import importlib
import os
import sys
from typing import Any

from reloss.metrics.binary import (
    auroc,
    average_precision,
    binary_accuracy,
    binary_balanced_accuracy,
    binary_f1,
    binary_f2,
    binary_iou,
    binary_kappa,
    mcc,
)
from reloss.metrics.classification import accuracy, balanced_accuracy, macro_f1, top5_accuracy, topk_accuracy
from reloss.metrics.keypoints import COCO_SIGMAS, decode_heatmaps, heatmap_ap, heatmap_oks, heatmap_pck, oks, pck
from reloss.metrics.lists import list_ndcg, list_ndcg10, mrr
from reloss.metrics.masks import MASKED, is_open
from reloss.metrics.multilabel import (
    label_macro_f1,
    label_mean_average_precision,
    label_micro_f1,
    label_ranking_average_precision,
)
from reloss.metrics.per_item import Metric, PerItem, as_metric
from reloss.metrics.ranking import ndcg, ndcg10
from reloss.metrics.reading import decode_spans, reading_exact_match, reading_f1
from reloss.metrics.regression import concordance, r2, regression_spearman, share_within
from reloss.metrics.segmentation import dice, mask_iou, mean_iou
from reloss.metrics.text import (
    NO_ANSWER,
    SPAN_PADDING,
    bleu,
    span_exact_match,
    span_f1,
    token_bleu,
    token_exact_match,
    token_f1,
)
from reloss.metrics.top import partial_auroc, precision_at_10, precision_at_k, recall_at_10, recall_at_k
from reloss.runtime.errors import UsageError, unknown

METRICS: dict[str, Metric] = {
    metric.__name__: metric
    for metric in (
        *(accuracy, top5_accuracy, balanced_accuracy, macro_f1),
        *(binary_f1, binary_f2, binary_iou, binary_accuracy, binary_balanced_accuracy, binary_kappa, mcc),
        *(average_precision, auroc, partial_auroc, precision_at_10, recall_at_10),
        *(ndcg, ndcg10),
        *(list_ndcg, list_ndcg10, mrr),
        *(label_macro_f1, label_micro_f1, label_mean_average_precision, label_ranking_average_precision),
        *(dice, mask_iou, mean_iou),
        *(r2, concordance, regression_spearman, share_within),
        *(heatmap_pck, heatmap_oks, heatmap_ap),
        *(span_f1, span_exact_match, token_f1, token_exact_match, bleu, token_bleu),
        *(reading_f1, reading_exact_match),
    )
}


def get_metric(name: str) -> Metric:
    """Return the metric called `name`, or the one at an import path such as "my_metrics:kappa".

    Modules are also searched in the current folder, as `python -m` does.

    Raises:
        UsageError: there is no metric of that name, the module cannot be imported, or the object is not a metric.
    """
    if ":" in name:
        return as_metric(_import(*name.split(":", 1)))
    if name not in METRICS:
        module, _, attribute = name.rpartition(".")
        path = f"{module or name}:{attribute if module else 'NAME'}"
        raise UsageError(f"{unknown('metric', name, METRICS)}; name your own metric with its module, such as {path}")
    return METRICS[name]


def _import(module: str, attribute: str) -> Any:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    importlib.invalidate_caches()  # the file may be newer than the cached listing of its folder
    try:
        imported = importlib.import_module(module)
    except Exception as error:
        raise UsageError(
            f"module '{module}' of metric '{module}:{attribute}' cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not hasattr(imported, attribute):
        functions = (name for name, value in vars(imported).items() if callable(value))
        raise unknown(f"metric of {module}", attribute, functions)
    return getattr(imported, attribute)


__all__ = [
    "COCO_SIGMAS",
    "MASKED",
    "METRICS",
    "NO_ANSWER",
    "SPAN_PADDING",
    "Metric",
    "PerItem",
    "accuracy",
    "as_metric",
    "auroc",
    "average_precision",
    "balanced_accuracy",
    "binary_accuracy",
    "binary_balanced_accuracy",
    "binary_f1",
    "binary_f2",
    "binary_iou",
    "binary_kappa",
    "bleu",
    "concordance",
    "decode_heatmaps",
    "decode_spans",
    "dice",
    "get_metric",
    "heatmap_ap",
    "heatmap_oks",
    "heatmap_pck",
    "is_open",
    "label_macro_f1",
    "label_mean_average_precision",
    "label_micro_f1",
    "label_ranking_average_precision",
    "list_ndcg",
    "list_ndcg10",
    "macro_f1",
    "mask_iou",
    "mcc",
    "mean_iou",
    "mrr",
    "ndcg",
    "ndcg10",
    "oks",
    "partial_auroc",
    "pck",
    "precision_at_10",
    "precision_at_k",
    "r2",
    "reading_exact_match",
    "reading_f1",
    "recall_at_10",
    "recall_at_k",
    "regression_spearman",
    "share_within",
    "span_exact_match",
    "span_f1",
    "token_bleu",
    "token_exact_match",
    "token_f1",
    "top5_accuracy",
    "topk_accuracy",
]
