"""What metrics of regression are made of, softened: errors, correlations and shares within a tolerance.

The squared error looks at single examples and hates large errors. Concordance and R^2 compare the errors of an item
with the spread of its targets, Spearman's correlation looks at the order only, and the share within a tolerance
forgives small errors and gives up on large ones. All are functions of a whole item and have smooth counterparts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from reloss.metrics.regression import centred, check_regression
from reloss.ranking import hard_rank, pearson, soft_rank
from reloss.surrogates.checks import widen
from reloss.surrogates.expected.base import ExpectedLoss, ExpectedMetric
from reloss.surrogates.expected.sums import log_of_sum

LARGEST = 1e6  # bounds the distance of outputs from the mean target, in spreads
TOLERANCES = (0.1, 0.25, 0.5, 1.0)  # in spreads
SHARPNESS = 8  # of the soft share within a tolerance t: an error e counts as 1 / (1 + (e / t)^8)
TEMPERATURE = 0.1  # of the soft ranks, in standard deviations of the outputs
DAMPING = 1e-4  # added to the variance of the outputs in Pearson's correlation, in squared spreads
FEATURES = (
    "minus_log_relative_squared_error",
    "minus_log_absolute_error",
    "pearson",
    "concordance",
    "soft_spearman",
    *(f"log_share_within_{tolerance}" for tolerance in TOLERANCES),
)


def regression_features(outputs: Tensor, targets: Tensor, present: Tensor) -> Tensor:
    """Return nine features of each dimension of an item, in the order of `FEATURES`.

    Args:
        outputs: [..., B], in spreads, finite.
        targets: [..., B], in spreads; 0 where missing.
        present: [..., B], which targets are present.

    Returns:
        [..., 9]. The squared error is relative to the variance of the item's targets, or to the squared spread if they
        are constant. Correlations with constant outputs or targets are 0.
    """
    count = present.sum(-1).clamp(min=1)
    errors = (outputs - targets).where(present, 0)
    squared = errors.square().sum(-1) / count
    x, y = centred(outputs, present), centred(targets, present)
    variance, other = (values.square().sum(-1) / count for values in (y, x))
    covariance = (x * y).sum(-1) / count
    whole = variance + other + (errors.sum(-1) / count).square()
    varies = variance > 0
    correlation = covariance / ((other + DAMPING) * variance.where(varies, 1)).sqrt()
    return torch.stack(
        (
            -(squared / variance.where(varies, 1)).log1p(),
            -(errors.abs().sum(-1) / count).log1p(),
            correlation,
            torch.where(varies, 2 * covariance / whole.where(varies, 1), 0),
            _soft_spearman(x, y, present),
            *_log_shares(errors, present),
        ),
        -1,
    )


def _soft_spearman(x: Tensor, y: Tensor, present: Tensor) -> Tensor:
    """Return Spearman's correlation of soft ranks of x with ranks of y: both centred [..., B] -> [...].

    Missing values get the highest ranks in both, so they do not change the ranks of the others.
    """
    count = present.sum(-1, keepdim=True).clamp(min=1)
    deviation = (x.square().sum(-1, keepdim=True) / count + DAMPING).sqrt()
    last = 2 * math.sqrt(x.shape[-1])  # a standardised value is at most the root of their number
    ranks = soft_rank((x / deviation).where(present, last + 1), "laplace", temperature=TEMPERATURE)
    others = hard_rank(y.where(present, torch.finfo(y.dtype).max))
    return pearson(centred(ranks, present), centred(others, present))


def _log_shares(errors: Tensor, present: Tensor) -> list[Tensor]:
    """Return the logarithm of the soft share within each of TOLERANCES: errors [..., B] -> [...] each.

    The weight of an error falls as a power, so its logarithm stays moderate for the largest errors.
    """
    tolerances = errors.new_tensor(TOLERANCES)
    logs = errors.abs().clamp(min=1e-6).log()[..., None, :] - tolerances.log()[:, None]
    weights = -torch.nn.functional.softplus(SHARPNESS * logs)
    shares = log_of_sum(weights, present[..., None, :]) - present.sum(-1, keepdim=True).clamp(min=1).log()
    return list(shares.where(present.any(-1, keepdim=True), 0).unbind(-1))


def expected_r2(features: Tensor) -> Tensor:
    """Return R^2: features [..., F] -> [...]; exact, except where the targets of an item are constant."""
    return 2 - (-_column(features, "minus_log_relative_squared_error")).exp()


def _column(features: Tensor, name: str) -> Tensor:
    return features[..., FEATURES.index(name)]


class ExpectedRegression(ExpectedLoss):
    """The surrogate for metrics of regression, over errors, correlations and shares within a tolerance.

    Takes outputs [B] or [B, D] and targets of the same shape and a floating dtype. A target that is NaN is missing and
    does not count. The groups are the D dimensions; one without targets is skipped, and an item without targets has
    loss 0.

    R^2 and concordance are exact, so as formulas they are the metrics themselves. Loss and gradient are finite for
    outputs of any size: they are clamped to 1e6 spreads around the mean of the targets.

    Args:
        metric: see `ExpectedLoss`; `share_within` has its default tolerance of 0.5 only if the spread is 1.
        width: units of the hidden layers.
        scale: see `SurrogateLoss`.
        spread: standard deviation of the targets, for each of the D dimensions, or one number for all: the unit of
            absolute errors and tolerances.

    Raises:
        ValueError: there is no formula for the metric, or a width, scale or spread is not positive.
    """

    FEATURES: ClassVar[tuple[str, ...]] = FEATURES

    EXPECTED: ClassVar[Mapping[str, ExpectedMetric]] = {
        "r2": expected_r2,
        "concordance": lambda features: _column(features, "concordance"),
        "regression_spearman": lambda features: _column(features, "soft_spearman"),
        "share_within": lambda features: _column(features, "log_share_within_0.5").exp(),
    }

    spreads: Tensor

    def __init__(
        self, metric: str | None = None, width: int = 16, scale: float = 1.0, spread: Sequence[float] | float = 1.0
    ) -> None:
        super().__init__(metric, width, scale)
        spreads = [spread] if isinstance(spread, int | float) else list(spread)
        if not spreads or not all(isinstance(value, int | float) and 0 < value < math.inf for value in spreads):
            raise ValueError(
                f"spread must hold a positive number for each dimension, not {spread!r}; pass the targets' standard "
                "deviations: targets.std(0).tolist()"
            )
        self.spread = spreads
        self.register_buffer("spreads", torch.tensor(spreads, dtype=torch.float32), persistent=False)

    @classmethod
    def expected_arguments(cls, shape: Sequence[int]) -> dict[str, Any]:
        """Return no arguments: the shape [] or [D] of one example's outputs decides nothing.

        Raises:
            ValueError: the outputs have more axes.
        """
        if len(shape) > 1:
            raise ValueError(f"expected one number or D numbers [D] for an example, not {list(shape)}")
        return {}

    def features(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the features of each dimension.

        Args:
            outputs: [N, B] or [N, B, D].
            targets: the same shape, in a floating dtype; NaN where missing.

        Returns:
            [N, D, 9], in the order of `FEATURES`; D is 1 for outputs [N, B].

        Raises:
            ValueError: the shapes do not agree, D is not the number of spreads, or the dtype is wrong.
        """
        self._check_dimensions(outputs, targets)
        outputs, targets = (values.reshape(*values.shape[:2], -1).mT for values in (outputs, widen(targets)))
        present = ~targets.isnan()
        spreads = self.spreads.to(outputs.dtype)[:, None]
        count = present.sum(-1, keepdim=True).clamp(min=1)
        mean = targets.nan_to_num(nan=0).sum(-1, keepdim=True) / count
        outputs, targets = ((values - mean) / spreads for values in (outputs, targets))
        outputs = outputs.where(present, 0).clamp(-LARGEST, LARGEST)
        return regression_features(outputs, targets.to(outputs.dtype).where(present, 0), present)

    def best_features(self) -> Tensor:
        """Return the largest value of each feature [F]: 0 for logarithms, 1 for correlations."""
        return torch.tensor(
            [float(name in ("pearson", "concordance", "soft_spearman")) for name in self.FEATURES], dtype=self.dtype
        )

    def group_weights(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return which dimensions of an item have a target: [N, D]."""
        return (~targets.isnan()).reshape(*targets.shape[:2], -1).any(1)

    def reduce(self, losses: Tensor, group_weights: Tensor | None) -> Tensor:
        """Return the mean over the dimensions that count, times the scale: losses [N, D], weights [N, D] -> [N]."""
        assert group_weights is not None
        return self.scale * (losses * group_weights).sum(-1) / group_weights.sum(-1).clamp(min=1)

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise ValueError unless these are numbers and targets as in `features`, and no target is infinite."""
        self._check_dimensions(outputs, targets)
        if bool(targets.isinf().any()):
            raise ValueError("targets must not be infinite; set missing targets to NaN, and they do not count")

    def _check_dimensions(self, outputs: Tensor, targets: Tensor) -> None:
        check_regression(outputs, targets)
        dimensions = outputs.shape[2] if outputs.dim() == 3 else 1
        if len(self.spread) not in (1, dimensions):
            raise ValueError(
                f"this surrogate has the spreads of {len(self.spread)} dimensions, but the outputs have {dimensions}; "
                "pass spread=targets.std(0).tolist()"
            )

    @staticmethod
    def ordinary_loss(outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean squared error of each item over the targets that are present: [N]."""
        check_regression(outputs, targets)
        present = ~targets.isnan()
        errors = (widen(outputs) - widen(targets)).where(present, 0).square()
        return errors.flatten(1).sum(-1) / present.flatten(1).sum(-1).clamp(min=1)
