"""The sorting networks: bounds, sums, sharpness, ties, scale, memory layouts and errors."""

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.testing import assert_close

from reloss.ranking import Interpolation, hard_rank, pearson, soft_rank
from reloss.ranking.wiring import Network, Wiring, diffsort_sorts, wiring_of


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


finite_rows = st.integers(1, 40).flatmap(lambda n: arrays("float64", n, elements=st.floats(-100, 100)))


@given(finite_rows, st.sampled_from(get_args(Network)), st.sampled_from(get_args(Interpolation)))
@settings(deadline=None)
def test_ranks_sum_to_the_sum_of_places_and_stay_in_range(row, method, interpolation):
    n = len(row)
    ranks = soft_rank(torch.from_numpy(row), method, interpolation=interpolation)
    assert float(ranks.sum()) == pytest.approx(n * (n - 1) / 2, abs=1e-9)
    assert float(ranks.min()) >= -1e-9
    assert float(ranks.max()) <= n - 1 + 1e-9


@pytest.mark.parametrize("method", get_args(Network))
def test_ranks_do_not_depend_on_the_mean(method):
    values = normal(4, 33).double()
    assert_close(soft_rank(values + 7, method), soft_rank(values, method), rtol=0, atol=1e-9)


@pytest.mark.parametrize("interpolation", ["logistic", "logistic_phi", "gaussian"])
@pytest.mark.parametrize("method", get_args(Network))
@pytest.mark.parametrize("n", [2, 7, 22, 32, 100, 704])
def test_well_separated_values_get_their_hard_ranks(n, method, interpolation):
    values = torch.randperm(n, generator=torch.Generator().manual_seed(n)).double()
    ranks = soft_rank(values, method, steepness=100, interpolation=interpolation)
    assert_close(ranks, hard_rank(values), rtol=0, atol=1e-9)


def test_the_released_network_warns_where_it_misorders_well_separated_values():
    values = torch.randperm(22, generator=torch.Generator().manual_seed(1)).double()
    options = {"steepness": 100, "interpolation": "logistic"}
    wiring_of.cache_clear()
    with pytest.warns(UserWarning, match="for n = 22 values.*use fidelity='corrected', or the method odd_even"):
        errors = soft_rank(values, **options, fidelity="released") - hard_rank(values)
    assert errors.abs().max() == pytest.approx(1)
    assert_close(soft_rank(values, **options), hard_rank(values), rtol=0, atol=1e-9)


def sorts(wiring: Wiring, values: torch.Tensor) -> bool:
    """Whether a network with hard comparisons sorts every column of values [n, columns]."""
    for partner, sign in zip(wiring.partners, wiring.signs, strict=True):
        pair = values, values[partner]
        values = torch.minimum(*pair).where(sign[:, None] > 0, torch.maximum(*pair))
    return bool((values.diff(dim=0) >= 0).all())


CPU = torch.device("cpu")


@pytest.mark.parametrize("network", get_args(Network))
@pytest.mark.filterwarnings("ignore:diffsort's bitonic")
def test_a_network_sorts_every_input_for_every_n(network):
    """A network that sorts all inputs of zeros and ones sorts everything (Knuth, 1973)."""
    for n in range(2, 13):
        values = torch.arange(2**n) >> torch.arange(n)[:, None] & 1
        assert sorts(wiring_of(network, n, "corrected", CPU), values)
    for n in (22, 37, 75, 100, 129):
        threshold = torch.rand(2000, generator=torch.Generator().manual_seed(n))
        values = (torch.rand(n, 2000, generator=torch.Generator().manual_seed(0)) < threshold).int()
        assert sorts(wiring_of(network, n, "corrected", CPU), values)
        released = wiring_of(network, n, "released", CPU)
        assert sorts(released, values) == (network == "odd_even" or diffsort_sorts(n))


def test_the_corrected_network_is_the_released_one_where_that_sorts():
    unsorted = {n for n in range(2, 80) if not diffsort_sorts(n)}
    assert unsorted == {22, 38, *range(42, 47), 54, 70, *range(74, 79)}
    assert not any(map(diffsort_sorts, (300, 704)))
    assert all(map(diffsort_sorts, (100, 128, 256, 1024)))
    values = normal(3, 100)
    assert_close(soft_rank(values), soft_rank(values, fidelity="released"), rtol=0, atol=0)


@pytest.mark.parametrize("method", get_args(Network))
def test_gradients_are_finite_at_ties(method):
    values = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 2.0], requires_grad=True)
    for interpolation in get_args(Interpolation):
        ranks = soft_rank(values, method, interpolation=interpolation)
        (gradient,) = torch.autograd.grad(ranks[0], values)
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0


def test_ranks_degrade_with_the_scale_of_the_values():
    """The networks depend on the scale of the values."""
    values = normal(20, 256)
    correlations = [float(pearson(soft_rank(values * spread), hard_rank(values)).mean()) for spread in (0.1, 0.3, 1)]
    assert correlations[0] < 0.2
    assert 0.5 < correlations[1] < 0.75
    assert correlations[2] > 0.98


@pytest.mark.parametrize("n", [4, 64])
def test_a_constant_row_of_a_power_of_two_gets_equal_bitonic_ranks(n):
    assert_close(soft_rank(torch.full((n,), 0.3)), torch.full((n,), (n - 1) / 2), rtol=0, atol=1e-5)


def test_batch_dimensions_and_strides():
    values = normal(4, 3, 12)
    for view in (values[..., ::2], values[:1].expand(2, 3, 12), values.transpose(0, 1)):
        rows = [soft_rank(row.clone()) for row in view.reshape(-1, view.shape[-1])]
        assert_close(soft_rank(view), torch.stack(rows).view(view.shape), rtol=0, atol=1e-6)
    assert soft_rank(values[:0]).shape == (0, 3, 12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    values = normal(2, 9).to(dtype)
    assert_close(soft_rank(values), soft_rank(values.float()), rtol=0, atol=0)


def test_float64_is_ranked_in_float64():
    assert soft_rank(normal(5).double()).dtype == torch.float64


@pytest.mark.parametrize("method", get_args(Network))
def test_one_value(method):
    value = torch.tensor([3.0], requires_grad=True)
    assert soft_rank(value, method).tolist() == [0]


def test_invalid_arguments_raise():
    with pytest.raises(ValueError, match="n >= 1"):
        soft_rank(torch.zeros(2, 0))
    with pytest.raises(ValueError, match=r"values\[2\] is inf"):
        soft_rank(torch.tensor([0.0, 1.0, float("inf")]))
    with pytest.raises(ValueError, match="unknown method 'quick'; valid: bitonic, odd_even"):
        soft_rank(torch.zeros(3), "quick")
    with pytest.raises(ValueError, match="unknown interpolation 'cubic'; valid: logistic"):
        soft_rank(torch.zeros(1), interpolation="cubic")
    with pytest.raises(ValueError, match="unknown interpolation ''"):
        soft_rank(torch.zeros(3), interpolation="")
    with pytest.raises(ValueError, match="interpolation 'cauchy' has no option 'art_lambda'; remove it"):
        soft_rank(torch.zeros(3), interpolation="cauchy", art_lambda=0.5)
    with pytest.raises(ValueError, match="unknown fidelity 'paper'; valid: corrected, released"):
        soft_rank(torch.zeros(3), fidelity="paper")


@pytest.mark.parametrize("art_lambda", [float("nan"), -0.1, 1.0, "0.5", True])
def test_art_lambda_is_a_number_from_0_to_below_1(art_lambda):
    with pytest.raises(ValueError, match="art_lambda must be a number from 0 to below 1, not "):
        soft_rank(torch.zeros(3), art_lambda=art_lambda)
