"""Plain metrics: how a function that somebody else wrote is called with a batch of predictions.

Metrics disagree on the order of their arguments, on tensors or arrays, and on what a prediction is: scikit-learn's F1
takes (true labels, predicted labels), its AUROC takes (true labels, scores), torchmetrics takes (logits, labels). The
names of the arguments tell most of this. Where they do not, the function is called with a few batches in each form, and
the first form that gives different numbers for different batches is used.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from reloss.metric_loss.kinds import Batch, Kind, unchanged_outputs
from reloss.metrics import METRICS, Metric, PerItem, as_metric, get_metric
from reloss.metrics.per_item import is_torchmetrics
from reloss.runtime.errors import UsageError, unknown

Predictions = Literal["outputs", "labels", "scores", "probabilities"]
"""What a metric takes as predictions. `outputs`: the model's, for example logits. `labels`: the predicted classes.
`scores` and `probabilities`: the outputs after sigmoid or softmax."""

TRUE_NAMES = {"y_true", "true", "truth", "target", "targets", "label", "labels", "gold", "reference", "references", "y"}
PREDICTION_NAMES: dict[str, Predictions] = {
    **dict.fromkeys(("y_pred", "pred_labels", "predicted_labels"), "labels"),
    **dict.fromkeys(("y_score", "y_scores", "score", "scores"), "scores"),
    **dict.fromkeys(("y_prob", "y_proba", "probs", "probabilities"), "probabilities"),
    **dict.fromkeys(("logits", "outputs"), "outputs"),
}
LOWER_IS_BETTER = ("_error", "_loss")  # scikit-learn's convention for names

ALIASES: dict[str, dict[str, str]] = {
    "accuracy": {"binary": "binary_accuracy"},
    "f1": {"binary": "binary_f1", "classes": "macro_f1", "tokens": "macro_f1", "labels": "label_macro_f1"}
    | {"spans": "reading_f1"},
    "exact_match": {"spans": "reading_exact_match"},
    "iou": {"binary": "binary_iou", "masks": "mean_iou"},
    "balanced_accuracy": {"binary": "binary_balanced_accuracy"},
    "kappa": {"binary": "binary_kappa"},
    "ndcg": {"lists": "list_ndcg"},
    "ndcg10": {"lists": "list_ndcg10"},
    "spearman": {"regression": "regression_spearman"},
}
"""Short names of metrics, by the kind of predictions. Other names are those of `reloss.metrics`."""

SCIKIT_LEARN: dict[str, dict[str, str]] = {
    "f1_score": {"binary": "binary_f1"},
    "jaccard_score": {"binary": "binary_iou"},
    "matthews_corrcoef": {"binary": "mcc"},
    "cohen_kappa_score": {"binary": "binary_kappa"},
    "balanced_accuracy_score": {"binary": "binary_balanced_accuracy", "classes": "balanced_accuracy"},
    "accuracy_score": {"binary": "binary_accuracy", "classes": "accuracy", "tokens": "accuracy"},
    "average_precision_score": {"binary": "average_precision"},
    "roc_auc_score": {"binary": "auroc"},
    "r2_score": {"regression": "r2"},
    "ndcg_score": {"lists": "list_ndcg"},
}
"""scikit-learn's functions, and the vectorised metric that equals each, by the kind of predictions."""

TRIED_ITEMS = 8  # batches that a form of call is tried with


class MetricForItems(NamedTuple):
    """A metric as the fit takes it.

    Attributes:
        metric: (outputs [N, B, ...], targets [N, B, ...]) -> [N].
        name: its name.
        higher_is_better: its direction.
        vectorised: its name among the vectorised metrics of this package; None if it is none of them.
        plain: how a plain function is called; None for a vectorised metric.
    """

    metric: Metric
    name: str
    higher_is_better: bool
    vectorised: str | None
    plain: PlainMetric | None

    def call(self) -> str:
        """Return how a plain function is called, such as ` (called with targets, then labels)`; else nothing."""
        if self.plain is None:
            return ""
        order = ("targets", self.plain.takes) if self.plain.truth_first else (self.plain.takes, "targets")
        return f" (called with {order[0]}, then {order[1]})"

    def __str__(self) -> str:
        takes = f" of {self.plain.takes}" if self.plain is not None else ""
        return f"{self.name}{takes}{'' if self.higher_is_better else ', lower is better'}"


class PlainMetric:
    """A metric of one batch, called with the arguments that its function expects.

    Args:
        function: the metric.
        kind: kind of the predictions.
        takes: what it takes as predictions.
        as_arrays: whether it takes NumPy arrays instead of tensors.
        truth_first: whether the targets are its first argument.
    """

    def __init__(
        self, function: Callable[..., Any], kind: Kind, takes: Predictions, *, as_arrays: bool, truth_first: bool
    ) -> None:
        self.__name__ = name_of(function)
        self.function, self.takes = function, takes
        self.as_arrays, self.truth_first = as_arrays, truth_first
        converters = {"labels": kind.labels, "outputs": unchanged_outputs}
        self.convert = converters.get(takes, kind.probabilities or unchanged_outputs)

    def __call__(self, outputs: Tensor, targets: Tensor) -> float:
        """Return the metric of one batch: prepared outputs [B, ...] and targets [B, ...] -> a number."""
        # In float64, probabilities near 1 stay apart.
        predictions = self.convert(outputs if self.takes == "outputs" else outputs.double())
        arguments = (targets, predictions) if self.truth_first else (predictions, targets)
        with warnings.catch_warnings():  # about single batches, such as one without a predicted positive
            warnings.simplefilter("ignore")
            return float(self.function(*(part.numpy() for part in arguments) if self.as_arrays else arguments))


def resolve_metric(
    metric: Any, kind: Kind, items: Batch, predictions: Predictions | None, higher_is_better: bool | None
) -> MetricForItems:
    """Return the metric as the fit takes it.

    Args:
        metric: a name, a torchmetrics object, a function of `reloss.metrics`, or a plain function of one batch.
        kind: kind of the predictions.
        items: a few recorded items, outputs [N, B, ...] and targets [N, B, ...].
        predictions: what a plain function takes; None to recognise it.
        higher_is_better: the direction; None for what the metric declares, or higher.

    Raises:
        UsageError: the metric is unknown, is not a metric, or cannot be called with such predictions.
    """
    if predictions is not None and predictions not in get_args(Predictions):
        raise unknown("form of predictions", predictions, get_args(Predictions))
    if isinstance(metric, str):
        metric = _named(metric, kind)
    name = name_of(metric)
    if higher_is_better is None:
        declared = getattr(metric, "higher_is_better", None)
        higher_is_better = declared if isinstance(declared, bool) else not name.endswith(LOWER_IS_BETTER)
    equal = (
        _by_kind(SCIKIT_LEARN, name, kind) if str(getattr(metric, "__module__", "")).startswith("sklearn.") else None
    )
    if name in METRICS and metric is METRICS[name]:
        equal = name
    if equal is not None and predictions is None:
        return MetricForItems(METRICS[equal], name, higher_is_better, equal, None)
    if isinstance(metric, PerItem) or is_torchmetrics(metric):
        return MetricForItems(as_metric(metric), name, higher_is_better, None, None)
    plain = _recognise(metric, kind, items, predictions)
    return MetricForItems(PerItem(plain), name, higher_is_better, None, plain)


def _named(name: str, kind: Kind) -> Metric:
    """Return the metric with this name, or short name, for a kind of predictions.

    Raises:
        UsageError: there is none; the message names the nearest ones, or the kinds that a short name is for.
    """
    full = _by_kind(ALIASES, name, kind)
    if full is None and name in ALIASES and name not in METRICS:
        kinds = ", ".join(ALIASES[name])
        raise UsageError(
            f"metric '{name}' is for predictions of kind {kinds}, and these are {kind.title} (kind={kind.name}); pass "
            "the right kind, or another metric"
        )
    if full is None and name not in METRICS and not set(":.") & set(name):
        short = [alias for alias in ALIASES if _by_kind(ALIASES, alias, kind)]
        raise UsageError(f"{unknown('metric', name, [*METRICS, *short])}; or pass a function of (outputs, targets)")
    return get_metric(full or name)


def name_of(metric: Any) -> str:
    """Return the name of a metric, for messages."""
    return str(getattr(metric, "__name__", type(metric).__name__))


def _by_kind(names: Mapping[str, Mapping[str, str]], name: str, kind: Kind) -> str | None:
    """Return the metric of this package that a name stands for, given the kind; None if there is none."""
    full = names.get(name, {}).get("labels" if kind.name == "signed_labels" else kind.name)
    return full if full in METRICS else None


def _recognise(function: Any, kind: Kind, items: Batch, predictions: Predictions | None) -> PlainMetric:
    """Return how `function` is called; see the module's docstring.

    Raises:
        UsageError: it cannot be called in any form.
    """
    if isinstance(function, type) or not callable(function):
        raise UsageError(
            f"{function!r} is not a metric; pass a function of (outputs, targets), a torchmetrics object or a name"
        )
    usable, failures, undefined = None, [], None
    for plain in _forms(function, kind, predictions):
        try:
            values = _values(plain, items)
        except Exception as error:
            failures.append(error)
            continue
        if not any(math.isfinite(value) for value in values):
            undefined = values[0]
            continue
        usable = usable or plain
        if len({value for value in values if math.isfinite(value)}) > 1:
            return plain
    if usable is None and undefined is not None:
        raise UsageError(
            f"metric {name_of(function)} returned {undefined} for all {len(items[0])} batches that it was tried with; "
            "return a number where it is not defined, or pass a larger item_size"
        )
    if usable is None:
        cause = f"{type(failures[0]).__name__}: {failures[0]}"
        raise UsageError(
            f"metric {name_of(function)} cannot be called with {kind.title} as outputs, labels or probabilities, as "
            f"tensors or arrays: {cause}. A metric takes (outputs, targets) of one batch, or (y_true, y_pred), and "
            "returns a number"
        )
    return usable


def _forms(function: Any, kind: Kind, predictions: Predictions | None) -> Iterator[PlainMetric]:
    """Yield all forms in which `function` may be called, the most likely ones first."""
    names = _argument_names(function)
    truth_first = names[0] in TRUE_NAMES
    by_name = PREDICTION_NAMES.get(names[1 if truth_first else 0])
    options: Sequence[Predictions] = ("outputs", "labels", "probabilities")
    if predictions or by_name:
        options = [predictions or by_name or "outputs"]
    elif truth_first:
        options = ("labels", "outputs", "probabilities")
    for takes in options:
        for as_arrays in (True, False) if truth_first else (False, True):
            yield PlainMetric(function, kind, takes, as_arrays=as_arrays, truth_first=truth_first)


def _argument_names(function: Any) -> tuple[str, str]:
    """Return the names of the first two arguments in lower case, empty where there is no signature."""
    try:
        names = [name.lower() for name in inspect.signature(function).parameters]
    except (TypeError, ValueError):
        names = []
    first, second = [*names, "", ""][:2]
    return first, second


@torch.no_grad()
def _values(plain: PlainMetric, items: Batch) -> list[float]:
    outputs, targets = (part[:TRIED_ITEMS].cpu() for part in items)
    return [plain(*(value.clone() for value in item)) for item in zip(outputs, targets, strict=True)]
