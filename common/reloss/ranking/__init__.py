"""Differentiable ranks and rank correlations. Needs PyTorch and NumPy only.

The rank of a value counts the smaller values in its row. A count is a step function: its gradient is zero almost
everywhere. The soft ranks in this package replace each step by a smooth one, so that gradient ascent can raise a rank
correlation. Read `hard`, `soft`, then one of the methods (`networks`, `laplace`, `pairwise`), then `correlation`.
"""

from reloss.ranking.correlation import kendall, pearson, soft_kendall, soft_spearman, spearman
from reloss.ranking.hard import hard_rank
from reloss.ranking.networks import Interpolation
from reloss.ranking.soft import Method, soft_rank

__all__ = [
    "Interpolation",
    "Method",
    "hard_rank",
    "kendall",
    "pearson",
    "soft_kendall",
    "soft_rank",
    "soft_spearman",
    "spearman",
]
