"""Rank correlations: agreement with SciPy, constant input, the scale of the values, and gradients."""

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from reloss.ranking import kendall, pearson, soft_kendall, soft_spearman, spearman


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@st.composite
def tied_pairs(draw):
    n = draw(st.integers(2, 20))
    values = st.lists(st.integers(-3, 3), min_size=n, max_size=n)
    return draw(values.filter(lambda x: len(set(x)) > 1)), draw(values.filter(lambda y: len(set(y)) > 1))


@given(tied_pairs())
@settings(deadline=None)
def test_spearman_and_pearson_equal_scipy_with_ties(pair):
    x, y = (torch.tensor(side) for side in pair)
    assert float(spearman(x, y)) == pytest.approx(scipy.stats.spearmanr(*pair).statistic, abs=1e-6)
    assert float(pearson(x, y)) == pytest.approx(scipy.stats.pearsonr(*pair).statistic, abs=1e-6)


def test_leading_dimensions_are_independent():
    x, y = normal(2, 3, 9), normal(2, 3, 9, seed=1)
    for correlation in (pearson, spearman, soft_spearman):
        assert correlation(x, y).shape == (2, 3)
        assert_close(correlation(x, y)[1, 2], correlation(x[1, 2], y[1, 2]))


# The mean of equal values can differ from the value by rounding, for example for 0.1 and 1/3.
@pytest.mark.parametrize("constant", [0.0, 0.1, 1 / 3, -1e6])
@pytest.mark.parametrize("n", [3, 5, 8, 100])
@pytest.mark.parametrize("correlation", [pearson, soft_spearman])
def test_a_constant_input_gives_zero_with_zero_gradient(correlation, n, constant):
    varying, constants = normal(n).requires_grad_(), torch.full((n,), constant, requires_grad=True)
    for x, y in ((constants, varying), (varying, constants)):
        value = correlation(x, y)
        assert float(value.detach()) == pytest.approx(0, abs=1e-6)
        (gradient,) = torch.autograd.grad(value, x)
        assert gradient.abs().max() == 0


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("method", ["bitonic", "odd_even"])
def test_a_constant_row_gives_zero_even_if_its_soft_ranks_differ(method, standardize):
    x = torch.full((2, 7), 0.1)
    x[1] = torch.arange(7.0)
    correlations = soft_spearman(x, torch.arange(7.0).expand(2, 7), method, standardize=standardize)
    assert correlations[0] == 0
    assert correlations[1] > 0.99


def test_the_correlation_of_one_value_is_zero():
    x = torch.tensor([2.0], requires_grad=True)
    for correlation in (pearson, soft_spearman):
        assert correlation(x, x).item() == 0
    assert spearman(x, x).item() == 0
    assert torch.autograd.grad(soft_spearman(x, x), x)[0].item() == 0


@pytest.mark.parametrize("correlation", [pearson, spearman, soft_spearman])
def test_no_values_raise(correlation):
    with pytest.raises(ValueError, match="n >= 1"):
        correlation(torch.zeros(2, 0), torch.zeros(2, 0))


CORRELATIONS = [pearson, spearman, soft_spearman, kendall, soft_kendall]


@pytest.mark.parametrize("correlation", CORRELATIONS)
@pytest.mark.parametrize(("x", "y"), [((8,), (8, 1)), ((8,), (9,)), ((8,), (1,)), ((2, 8), (3, 8))])
def test_shapes_that_do_not_agree_raise(correlation, x, y):
    for first, second in ((x, y), (y, x)):
        with pytest.raises(ValueError, match=r"the same n, not \["):
            correlation(torch.zeros(first), torch.zeros(second))


@pytest.mark.parametrize("correlation", CORRELATIONS)
def test_leading_axes_broadcast_and_can_be_empty(correlation):
    x, y = normal(3, 8), normal(8, seed=1)
    assert_close(correlation(x, y), torch.stack([correlation(row, y) for row in x]))
    assert_close(correlation(y, x)[1], correlation(y, x[1]))
    assert correlation(torch.zeros(0, 5), torch.zeros(0, 5)).shape == (0,)


@pytest.mark.parametrize("standardize", [False, True])
def test_the_error_names_the_value_that_is_not_finite(standardize):
    finite, not_finite = normal(2, 4), normal(2, 4)
    not_finite[1, 3] = float("nan")
    for x, y in ((finite, not_finite), (not_finite, finite)):
        with pytest.raises(ValueError, match=r"values\[1, 3\] is nan"):
            soft_spearman(x, y, standardize=standardize)


@pytest.mark.parametrize("scale", [1e-25, 1e-12, 1e12, 1e25, 1e38])
def test_values_whose_squares_leave_float32_are_correlated_correctly(scale):
    x, y = normal(64) / 4, (normal(64) + normal(64, seed=1)) / 4
    assert_close(pearson(x * scale, y * scale), pearson(x, y), rtol=0, atol=1e-5)
    assert_close(soft_spearman(x * scale, y), soft_spearman(x, y), rtol=0, atol=1e-3)


@pytest.mark.parametrize("scale", [1e-45, 1e-40, 1e-33, 1e-20, 1e30, 3e37])
def test_gradients_are_finite_at_any_scale(scale):
    x, y = (normal(4, 9, seed=0) * scale).requires_grad_(), normal(4, 9, seed=1)
    for correlate in (pearson, soft_spearman, soft_kendall):
        assert torch.autograd.grad(correlate(x, y).square().sum(), x)[0].isfinite().all()


@pytest.mark.parametrize("scale", [2e36, 1.7e38])
def test_values_whose_sum_overflows_are_correlated_correctly(scale):
    x, y = torch.linspace(1, 2, 256) * scale, torch.linspace(1, 2, 256)
    x.requires_grad_()
    for correlation in (pearson, soft_spearman, soft_kendall):
        value = correlation(x, y)
        assert_close(value, correlation(y, y))
        assert torch.autograd.grad(value, x)[0].isfinite().all()
    largest = torch.finfo(torch.float64).max
    ends = torch.tensor([-largest, -largest, largest], dtype=torch.float64)
    assert_close(pearson(ends, ends.sign()), torch.tensor(1.0, dtype=torch.float64))


def test_large_integers_are_correlated_in_float64():
    timestamps = 1_700_000_000 + torch.arange(10)
    for correlation in CORRELATIONS:
        expected = correlation(torch.arange(10.0).double(), torch.arange(10.0))
        assert_close(correlation(timestamps, torch.arange(10)).double(), expected.double(), rtol=0, atol=1e-6)


def test_soft_spearman_is_scale_invariant_only_when_standardized():
    """Without standardisation, the soft ranks of values with a small spread are almost uninformative."""
    values = normal(20, 256)
    correlation, small_spread = soft_spearman(values, values), soft_spearman(values * 0.1, values)
    assert_close(small_spread, correlation, rtol=0, atol=1e-4)
    assert correlation.mean() > 0.98
    assert soft_spearman(values * 0.1, values, standardize=False).mean() < 0.2


def test_the_gradient_of_pearson_equals_finite_differences():
    x, y = (normal(6, seed=seed).double().requires_grad_() for seed in (0, 1))
    assert torch.autograd.gradcheck(pearson, (x * 1e8, y))
    assert torch.autograd.gradcheck(pearson, (x, y))


def test_gradient_ascent_raises_the_correlation():
    x, y = normal(32, seed=2).requires_grad_(), normal(32, seed=3)
    before = float(spearman(x, y))
    optimizer = torch.optim.Adam([x], lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        (-soft_spearman(x, y)).backward()
        optimizer.step()
    assert float(spearman(x, y)) > max(0.9, before + 0.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    x, y = normal(3, 16).to(dtype), normal(3, 16, seed=1).to(dtype)
    for correlation in (pearson, spearman, soft_spearman):
        assert_close(correlation(x, y), correlation(x.float(), y.float()), rtol=0, atol=0)
