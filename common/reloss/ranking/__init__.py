"""Differentiable sorting, ranks and rank correlations. Needs PyTorch and NumPy only.

The rank of a value counts the smaller values in its row. A count is a step function: its gradient is zero almost
everywhere. The soft ranks in this package replace each step by a smooth one, so that gradient ascent can raise a rank
correlation. Read `hard`, `soft`, then one of the methods (`networks`, `laplace`, `pairwise`), then `operators`,
`correlation` and `losses`.

The names are loaded on first use, so importing the package takes little time.
"""

from typing import TYPE_CHECKING

from reloss.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from reloss.ranking.correlation import (
        kendall,
        pearson,
        soft_kendall,
        soft_spearman,
        spearman,
    )
    from reloss.ranking.hard import (
        hard_rank,
    )
    from reloss.ranking.losses import (
        AveragePrecisionLoss,
        NDCGLoss,
        SpearmanLoss,
        TopKCrossEntropyLoss,
        average_precision_loss,
        ndcg_loss,
        spearman_loss,
        top_k_cross_entropy,
    )
    from reloss.ranking.networks import (
        Interpolation,
    )
    from reloss.ranking.operators import (
        SoftTopK,
        soft_argsort,
        soft_median,
        soft_quantile,
        soft_sort,
        soft_top_k,
        soft_top_k_mask,
    )
    from reloss.ranking.options import (
        Method,
    )
    from reloss.ranking.soft import (
        soft_rank,
    )

__all__ = [
    "AveragePrecisionLoss",
    "Interpolation",
    "Method",
    "NDCGLoss",
    "SoftTopK",
    "SpearmanLoss",
    "TopKCrossEntropyLoss",
    "average_precision_loss",
    "hard_rank",
    "kendall",
    "ndcg_loss",
    "pearson",
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
    "spearman_loss",
    "top_k_cross_entropy",
]

_NAMES = {
    "reloss.ranking.correlation": (
        "kendall",
        "pearson",
        "soft_kendall",
        "soft_spearman",
        "spearman",
    ),
    "reloss.ranking.hard": ("hard_rank",),
    "reloss.ranking.losses": (
        "AveragePrecisionLoss",
        "NDCGLoss",
        "SpearmanLoss",
        "TopKCrossEntropyLoss",
        "average_precision_loss",
        "ndcg_loss",
        "spearman_loss",
        "top_k_cross_entropy",
    ),
    "reloss.ranking.networks": ("Interpolation",),
    "reloss.ranking.operators": (
        "SoftTopK",
        "soft_argsort",
        "soft_median",
        "soft_quantile",
        "soft_sort",
        "soft_top_k",
        "soft_top_k_mask",
    ),
    "reloss.ranking.options": ("Method",),
    "reloss.ranking.soft": ("soft_rank",),
}
__getattr__, __dir__ = lazy_names(__name__, {name: module for module, names in _NAMES.items() for name in names})
