"""Differentiable ranks and rank correlations; stands on PyTorch alone."""

from reloss.ranking.correlation import pearson, soft_spearman, spearman
from reloss.ranking.hard import hard_rank
from reloss.ranking.networks import Interpolation, Method, soft_rank

__all__ = ["Interpolation", "Method", "hard_rank", "pearson", "soft_rank", "soft_spearman", "spearman"]
