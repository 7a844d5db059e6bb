"""Differentiable sorting, ranks and rank correlations. Needs PyTorch and NumPy only.

The rank of a value counts the smaller values in its row. A count is a step function: its gradient is zero almost
everywhere. The soft ranks in this package replace each step by a smooth one, so that gradient ascent can raise a rank
correlation. Read `hard`, `soft`, then one of the methods (`networks`, `laplace`, `pairwise`), then `operators`,
`correlation` and `losses`.
"""

from reloss.ranking.correlation import kendall, pearson, soft_kendall, soft_spearman, spearman
from reloss.ranking.hard import hard_rank
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
from reloss.ranking.networks import Interpolation
from reloss.ranking.operators import (
    SoftTopK,
    soft_argsort,
    soft_median,
    soft_quantile,
    soft_sort,
    soft_top_k,
    soft_top_k_mask,
)
from reloss.ranking.options import Method
from reloss.ranking.soft import soft_rank

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
