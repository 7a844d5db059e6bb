"""Differentiable ranks and rank correlations; stands on PyTorch alone."""

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
