"""Relational Surrogate Loss Learning (Huang et al., ICLR 2022): losses learned to rank predictions as a metric does.

All that a user needs can be imported from here. The names are loaded on first use, so `import reloss` loads no torch.
"""

from typing import TYPE_CHECKING

from reloss.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from reloss.learning import FitResult, LearnOptions, PredictionBank, fit_surrogate
    from reloss.metric_loss import Comparison, LearnedLoss, MetricLoss, Recorder, learn_loss, load, zoo_names
    from reloss.metrics import Metric, PerItem, get_metric
    from reloss.ranking import (
        hard_rank,
        kendall,
        pearson,
        soft_argsort,
        soft_kendall,
        soft_median,
        soft_quantile,
        soft_rank,
        soft_sort,
        soft_spearman,
        soft_top_k,
        soft_top_k_mask,
        spearman,
    )
    from reloss.runtime.errors import RelossError, UsageError
    from reloss.surrogates import (
        ClassificationReLoss,
        PoseReLoss,
        ReadingReLoss,
        SetReLoss,
        SurrogateLoss,
        TranslationReLoss,
        build,
        pretrained_names,
    )

__version__ = "0.1.0"
__all__ = [
    "ClassificationReLoss",
    "Comparison",
    "FitResult",
    "LearnOptions",
    "LearnedLoss",
    "Metric",
    "MetricLoss",
    "PerItem",
    "PoseReLoss",
    "PredictionBank",
    "ReadingReLoss",
    "Recorder",
    "RelossError",
    "SetReLoss",
    "SurrogateLoss",
    "TranslationReLoss",
    "UsageError",
    "build",
    "fit_surrogate",
    "get_metric",
    "hard_rank",
    "kendall",
    "learn_loss",
    "load",
    "pearson",
    "pretrained_names",
    "soft_argsort",
    "soft_kendall",
    "soft_median",
    "soft_quantile",
    "soft_rank",
    "soft_sort",
    "soft_spearman",
    "soft_top_k",
    "soft_top_k_mask",
    "spearman",
    "zoo_names",
]

_NAMES = {
    "reloss.learning": ("FitResult", "LearnOptions", "PredictionBank", "fit_surrogate"),
    "reloss.metric_loss": (
        *("Comparison", "LearnedLoss", "MetricLoss", "Recorder", "learn_loss", "load", "zoo_names"),
    ),
    "reloss.metrics": ("Metric", "PerItem", "get_metric"),
    "reloss.ranking": (
        *(
            "hard_rank",
            "kendall",
            "pearson",
            "soft_argsort",
            "soft_kendall",
            "soft_median",
            "soft_quantile",
            "soft_rank",
        ),
        *("soft_sort", "soft_spearman", "soft_top_k", "soft_top_k_mask", "spearman"),
    ),
    "reloss.runtime.errors": ("RelossError", "UsageError"),
    "reloss.surrogates": (
        *("ClassificationReLoss", "PoseReLoss", "ReadingReLoss", "SetReLoss", "SurrogateLoss", "TranslationReLoss"),
        *("build", "pretrained_names"),
    ),
}
__getattr__, __dir__ = lazy_names(__name__, {name: module for module, names in _NAMES.items() for name in names})
