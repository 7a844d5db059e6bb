"""Soft ranks and their gradients equal diffsort, which multiplies dense matrices."""

from typing import get_args

import pytest
import torch
from torch.autograd import gradcheck
from torch.testing import assert_close

from reloss.ranking import Interpolation, soft_rank, soft_spearman
from reloss.ranking.networks import Network


def random_values(*shape: int) -> torch.Tensor:
    values = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(shape[-1]))
    return values.requires_grad_()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("interpolation", get_args(Interpolation))
@pytest.mark.parametrize("method", get_args(Network))
@pytest.mark.parametrize("n", [2, 3, 5, 8, 17, 64, 100])
def test_ranks_and_gradients_equal_diffsort(dense_rank, n, method, interpolation):
    """The backward pass of diffsort's `gaussian` rounds sigma to float32, so its gradients agree to float32 only."""
    values = random_values(3, n)
    weights = torch.randn(3, n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ranks = soft_rank(values, method, steepness=5.0, interpolation=interpolation)
    dense_ranks = dense_rank(values, method, steepness=5.0, interpolation=interpolation)
    assert_close(ranks, dense_ranks, rtol=0, atol=1e-8 * n)
    (gradient,) = torch.autograd.grad((ranks * weights).sum(), values)
    (dense_gradient,) = torch.autograd.grad((dense_ranks * weights).sum(), values)
    tolerance = 1e-5 if interpolation == "gaussian" else 1e-7
    assert_close(gradient, dense_gradient, rtol=0, atol=tolerance * dense_gradient.abs().max().item())


@pytest.mark.parametrize("steepness", [1.0, 30.0])
def test_steepness_has_the_same_meaning_as_in_diffsort(dense_rank, steepness):
    values = random_values(3, 17)
    assert_close(soft_rank(values, steepness=steepness), dense_rank(values, steepness=steepness), rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", get_args(Network))
@pytest.mark.parametrize("n", [5, 8])
def test_gradients_equal_finite_differences(n, method):
    values, metric = random_values(2, n), random_values(2, n).detach().flip(-1)
    assert gradcheck(lambda x: soft_rank(x, method), values)
    for standardize in (False, True):
        assert gradcheck(lambda x, s=standardize: soft_spearman(x, metric, method, standardize=s), values)
