"""Metrics of regression: how well numbers are predicted, for each dimension of the targets, then averaged.

Targets that are NaN are missing: they do not count. A dimension of an item without targets is skipped.
"""

import torch
from torch import Tensor

from reloss.metrics.shapes import ShapeError, check_shapes
from reloss.ranking import pearson
from reloss.ranking.hard import check_values, hard_rank


def r2(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return R^2, the share of the targets' variance that the outputs explain.

    Equal to scikit-learn's `r2_score`.

    Args:
        outputs: [N, B] or [N, B, D] finite numbers.
        targets: the same shape; NaN where missing.

    Returns:
        [N], at most 1, the mean over the dimensions. A dimension with constant targets scores 1 if all outputs equal
        them, else 0; 0 for an item without targets.

    Raises:
        ValueError: the shapes do not agree, an output is not finite, a target is infinite, or the targets have another
            dtype than float.
    """
    outputs, targets, present = columns(outputs, targets)
    errors = (outputs - targets).square().sum(-1)
    variation = centred(targets, present).square().sum(-1)
    score = 1 - errors / variation.where(variation > 0, 1)
    return _mean(score.where(variation > 0, (errors == 0).double()), present)


def concordance(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return Lin's concordance correlation coefficient: the correlation, lowered by a shift and by a wrong scale.

    Equal to 2 cov / (var + var' + (mean - mean')^2), with variances that divide by the number of examples. Source: Lin,
    "A concordance correlation coefficient to evaluate reproducibility", Biometrics 1989. Arguments and errors: see
    `r2`.

    Returns:
        [N] in [-1, 1], the mean over the dimensions. A dimension with constant targets scores 1 if all outputs equal
        them, else 0; 0 for an item without targets.
    """
    outputs, targets, present = columns(outputs, targets)
    count = present.sum(-1).clamp(min=1)
    x, y = centred(outputs, present), centred(targets, present)
    shift = (outputs - targets).sum(-1) / count
    whole = (x.square() + y.square()).sum(-1) / count + shift.square()
    return _mean((2 * (x * y).sum(-1) / count / whole.where(whole > 0, 1)).where(whole > 0, 1), present)


def regression_spearman(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return Spearman's rank correlation of outputs and targets.

    Equal to SciPy's `spearmanr`, except that constant outputs or targets give 0. Arguments and errors: see `r2`.

    Returns:
        [N] in [-1, 1], the mean over the dimensions; 0 for an item without targets.
    """
    outputs, targets, present = columns(outputs, targets)
    ranks = (
        centred(hard_rank(values.where(present, torch.finfo(values.dtype).max)), present)
        for values in (outputs, targets)
    )
    return _mean(pearson(*ranks), present)


def share_within(outputs: Tensor, targets: Tensor, *, tolerance: float = 0.5) -> Tensor:
    """Return the share of outputs at most `tolerance` away from their targets.

    With the default, it is the accuracy of outputs rounded to whole numbers. Arguments and errors: see `r2`.

    Args:
        outputs: [N, B] or [N, B, D] finite numbers.
        targets: the same shape; NaN where missing.
        tolerance: in the unit of the targets, at least 0.

    Returns:
        [N] in [0, 1], the mean over the dimensions; 0 for an item without targets.
    """
    if isinstance(tolerance, bool) or not tolerance >= 0:
        raise ValueError(f"tolerance must be a number of at least 0, not {tolerance!r}")
    outputs, targets, present = columns(outputs, targets)
    hits = ((outputs - targets).abs() <= tolerance) & present
    return _mean(hits.sum(-1) / present.sum(-1).clamp(min=1), present)


def check_regression(outputs: Tensor, targets: Tensor) -> None:
    """Raise ValueError unless outputs [N, B] or [N, B, D] have the shape of the targets, which have a floating dtype.

    Reads no values.
    """
    shape = "[N, B, D]" if outputs.dim() == 3 else "[N, B]"
    try:
        check_shapes({f"outputs {shape}": outputs, f"targets {shape}": targets})
    except ShapeError as error:
        remedy = ""
        if outputs.dim() == 3 and outputs.shape[:2] == targets.shape and outputs.shape[2] == 1:
            remedy = "; remove the last axis: outputs.squeeze(-1)"
        elif targets.dim() == 3 and targets.shape[:2] == outputs.shape and targets.shape[2] == 1:
            remedy = "; remove the last axis: targets.squeeze(-1)"
        elif outputs.dim() > 3 and outputs.shape == targets.shape:
            remedy = "; turn all axes after the first into one: outputs.flatten(1), targets.flatten(1)"
        raise error.with_remedy(remedy) from None
    if not targets.is_floating_point():
        raise ValueError(
            f"targets of a regression must have a floating dtype, not {targets.dtype}: pass targets.float(); "
            "classes are for another kind of surrogate, such as classification"
        )


def columns(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Check outputs and targets, and return both in float64, and which targets are present: each [N, D, B].

    Outputs and targets are 0 where a target is missing.
    """
    check_regression(outputs, targets)
    check_values(outputs)
    check_values(targets.nan_to_num(nan=0, posinf=torch.inf, neginf=-torch.inf))
    outputs, targets = (values.detach().double().reshape(*values.shape[:2], -1).mT for values in (outputs, targets))
    present = ~targets.isnan()
    return outputs.where(present, 0), targets.where(present, 0), present


def centred(values: Tensor, present: Tensor) -> Tensor:
    """Return values [..., B] minus the mean of those present, and 0 for the others."""
    mean = (values * present).sum(-1, keepdim=True) / present.sum(-1, keepdim=True).clamp(min=1)
    return (values - mean).where(present, 0)


def _mean(values: Tensor, present: Tensor) -> Tensor:
    """Return the mean over the dimensions that have a target: values [N, D], present [N, D, B] -> [N] in float32."""
    counts = present.any(-1)
    return (values.where(counts, 0).sum(-1) / counts.sum(-1).clamp(min=1)).float()
