"""Evaluation metrics, vectorised over items: (outputs [N, B, ...], targets [N, B, ...]) -> [N], higher is better."""

from collections.abc import Callable

from torch import Tensor

from reloss.errors import unknown
from reloss.metrics.classification import accuracy, top5_accuracy, topk_accuracy

Metric = Callable[[Tensor, Tensor], Tensor]
METRICS: dict[str, Metric] = {metric.__name__: metric for metric in (accuracy, top5_accuracy)}


def get_metric(name: str) -> Metric:
    """Return the metric called `name`.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in METRICS:
        raise unknown("metric", name, METRICS)
    return METRICS[name]


__all__ = ["METRICS", "Metric", "accuracy", "get_metric", "top5_accuracy", "topk_accuracy"]
