"""Metrics of multi-label predictions: each example has any number of the L labels, and each label has a score.

A macro average gives every label the same weight, a micro average every decision. The ranking metric looks at the order
of the labels within each example. A target of -1 does not count.
"""

from torch import Tensor

from reloss.metrics.labels import MIXED
from reloss.metrics.shapes import ShapeError, check_shapes
from reloss.metrics.ties import descending
from reloss.ranking.hard import check_values

IGNORED = -1  # target that does not count


def label_macro_f1(outputs: Tensor, targets: Tensor, *, threshold: float = 0.0) -> Tensor:
    """Return the mean F1 over the labels; equal to scikit-learn's `f1_score(average="macro", zero_division=0)`.

    Args:
        outputs: [N, B, L] finite scores. A score above the threshold, not equal to it, predicts the label.
        targets: [N, B, L] in {0, 1}, in any dtype; -1 where an example does not count for a label.
        threshold: 0 for logits, 0.5 for probabilities.

    Returns:
        [N] in [0, 1]. A label without a positive target or prediction scores 0. Labels for which no example counts are
        skipped.

    Raises:
        ValueError: the shapes do not agree, an output is not finite, or a target is not 0, 1 or -1.
    """
    tp, wrong, counts = _counts(outputs, targets, threshold)
    return _mean(_f1(tp.sum(1), wrong.sum(1)), counts.any(1))


def label_micro_f1(outputs: Tensor, targets: Tensor, *, threshold: float = 0.0) -> Tensor:
    """Return the F1 of all decisions of an item; equal to scikit-learn's `f1_score(average="micro", zero_division=0)`.

    Arguments and errors: see `label_macro_f1`.

    Returns:
        [N] in [0, 1]; 0 for an item without a positive target or prediction.
    """
    tp, wrong, _ = _counts(outputs, targets, threshold)
    return _f1(tp.sum((1, 2)), wrong.sum((1, 2))).float()


def label_mean_average_precision(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean average precision (mAP) over the labels; equal to scikit-learn's `average_precision_score`.

    Arguments and errors: see `label_macro_f1`.

    Returns:
        [N] in [0, 1]. A label without positives scores 0. Labels for which no example counts are skipped.
    """
    positive, negative = split_labels(outputs, targets)
    return _mean(_average_precision(outputs.mT, positive.mT, negative.mT), (positive | negative).any(1))


def label_ranking_average_precision(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean over the examples of the average precision of ranking the labels of an example.

    Equal to scikit-learn's `label_ranking_average_precision_score`: among equal scores, the place is the last one.
    Arguments and errors: see `label_macro_f1`.

    Returns:
        [N] in [0, 1]. An example with no label, or with all of them, scores 1. Examples for which no label counts are
        skipped.
    """
    positive, negative = split_labels(outputs, targets)
    precision = _average_precision(outputs, positive, negative)
    return _mean(precision.where(positive.any(-1), 1), (positive | negative).any(-1))


def check_labels(outputs: Tensor, targets: Tensor) -> None:
    """Raise ValueError unless these are scores and labels as `label_macro_f1` takes them; reads all targets.

    The message names the remedy.
    """
    check_label_shapes(outputs, targets)
    labels = targets if targets.is_floating_point() else targets.long()
    wrong = ~((labels == 0) | (labels == 1) | (labels == IGNORED))
    if wrong.any():
        value = labels[wrong][0].item()
        remedy = f"; {MIXED}" if 0 < value < 1 else "; turn them into labels: (targets > 0).long()"
        raise ValueError(f"labels must be 0 or 1, or -1 for what does not count, not {value:g}{remedy}")
    if bool((labels == IGNORED).any()) and not bool((labels == 0).any()):
        raise ValueError(
            "labels are 1 and -1, which does not count, and none is 0; if -1 means that a label is absent, pass "
            "(targets > 0).long()"
        )


def check_label_shapes(outputs: Tensor, targets: Tensor) -> None:
    """Raise ValueError unless outputs and targets are [N, B, L]; reads no values."""
    try:
        check_shapes({"outputs [N, B, L]": outputs, "targets [N, B, L]": targets})
    except ShapeError as error:
        remedy = ""
        if outputs.dim() == 2 and outputs.shape == targets.shape:
            remedy = "; scores [B] of a single label are for kind set"
        elif outputs.dim() == 3 and targets.shape == outputs.shape[:2]:
            remedy = "; classes [B] are for kind classification; for labels, pass one_hot(targets, L)"
        elif outputs.dim() > 3 and outputs.shape == targets.shape:
            remedy = "; turn all axes before the labels into one: outputs.flatten(0, -2), targets.flatten(0, -2)"
        raise error.with_remedy(remedy) from None


def split_labels(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return which targets are 1, and which are 0: [N, B, L] each, after `check_labels`."""
    check_labels(outputs, targets)
    return targets == 1, targets == 0


def _counts(outputs: Tensor, targets: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return true positives, wrong decisions, and what counts: [N, B, L] each."""
    positive, negative = split_labels(outputs, targets)
    check_values(outputs)
    predicted = outputs > threshold
    return predicted & positive, (predicted & negative) | (~predicted & positive), positive | negative


def _average_precision(outputs: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Return the mean precision at the scores of the positives: [..., n] each -> [...]; 0 without positives."""
    check_values(outputs)
    order, _, end = descending(outputs)
    positive, counts = positive.gather(-1, order), (positive | negative).gather(-1, order)
    hits, above = (values.cumsum(-1).gather(-1, end - 1) for values in (positive, counts))
    precision = hits.double() / above.clamp(min=1)
    return (precision * positive).sum(-1) / positive.sum(-1).clamp(min=1)


def _f1(tp: Tensor, wrong: Tensor) -> Tensor:
    return 2 * tp.double() / (2 * tp + wrong).clamp(min=1)


def _mean(values: Tensor, counts: Tensor) -> Tensor:
    """Return the mean over the values of each item that count: [N, n] -> [N] in float32; 0 if none counts."""
    return ((values * counts).sum(-1) / counts.sum(-1).clamp(min=1)).float()
