"""Soft ranks: properties of all methods, further properties of the sums, derivatives, and edge cases."""

from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from reloss.ranking import Method, hard_rank, kendall, soft_kendall, soft_rank, soft_spearman
from reloss.ranking.inversions import count_inversions
from reloss.ranking.networks import Comparator, _place_sweeps
from reloss.ranking.scans import recurrence
from reloss.ranking.sorting import stable_order
from reloss.ranking.wiring import wiring_of

METHODS = get_args(Method)
SUMS = ("laplace", "pairwise")
rows = arrays(np.float64, st.integers(1, 16), elements=st.floats(-100, 100, width=16))


def dense_laplace(values: Tensor, temperature: float) -> Tensor:
    scaled = (values[:, None] - values[None]) / temperature
    below = 0.5 * scaled.clamp(max=0).exp()
    above = 1 - 0.5 * (-scaled.clamp(min=0)).exp()
    return torch.where(scaled < 0, below, above).sum(1) - 0.5


@pytest.mark.parametrize("method", METHODS)
@given(values=rows)
@settings(max_examples=40, deadline=None)
def test_ranks_sum_to_the_sum_of_places_and_do_not_depend_on_a_shift(method: Method, values: np.ndarray) -> None:
    ranks = soft_rank(torch.from_numpy(values), method)
    n = len(values)
    assert ranks.sum().item() == pytest.approx(n * (n - 1) / 2, abs=1e-8 * n * n)
    assert ranks.min() >= -1e-9
    assert ranks.max() <= n - 1 + 1e-9
    if np.unique(values).size == n:  # the shift may round close values to the same value
        torch.testing.assert_close(soft_rank(torch.from_numpy(values) + 8, method), ranks, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@given(permutation=st.permutations(range(9)))
@settings(max_examples=25, deadline=None)
def test_well_separated_values_get_their_hard_ranks(method: Method, permutation: list[int]) -> None:
    values = torch.tensor(permutation, dtype=torch.float64)
    options = {"temperature": 0.02} if method in SUMS else {"steepness": 60.0}
    ranks = soft_rank(values, method, **options)
    torch.testing.assert_close(ranks, hard_rank(values), rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", SUMS)
@given(values=rows, seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_sums_are_permutation_equivariant_and_monotone(method: Method, values: np.ndarray, seed: int) -> None:
    x = torch.from_numpy(values)
    ranks = soft_rank(x, method)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(soft_rank(x[order], method), ranks[order], rtol=0, atol=1e-9)
    ascending = ranks[x.argsort(stable=True)].tolist()
    assert all(lower <= upper + 1e-9 for lower, upper in pairwise(ascending))


@pytest.mark.parametrize("method", SUMS)
def test_a_rank_of_a_sum_rises_with_its_value_and_falls_with_the_others(method: Method) -> None:
    x = torch.randn(12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    jacobian = torch.autograd.functional.jacobian(lambda x: soft_rank(x, method), x)
    assert jacobian.diagonal().min() > 0
    assert (jacobian - jacobian.diagonal().diag()).max() <= 0


def test_networks_depend_on_the_order_of_the_input() -> None:
    x = torch.randn(16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    order = torch.randperm(16, generator=torch.Generator().manual_seed(2))
    change = (soft_rank(x[order]) - soft_rank(x)[order]).abs().max()
    assert change > 0.05


@pytest.mark.parametrize("network", ["bitonic", "odd_even"])
@pytest.mark.parametrize("n", [2, 5, 8, 13])
def test_every_layer_of_a_network_is_doubly_stochastic(network: str, n: int) -> None:
    x = torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    wiring = wiring_of(network, n, "corrected", x.device)
    worth = torch.arange(n, dtype=x.dtype)
    weights = _place_sweeps(x, worth, wiring, Comparator(5.0, "logistic_phi", 0.25))[1][0]
    assert len(weights) == len(wiring.partners) > 0
    for partner, weight in zip(wiring.partners, weights, strict=True):
        layer = weight.diag()
        layer[torch.arange(n), partner] += 1 - weight
        assert layer.min() >= 0
        torch.testing.assert_close(layer.sum(0), torch.ones(n, dtype=torch.float64))
        torch.testing.assert_close(layer.sum(1), torch.ones(n, dtype=torch.float64))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [2, 3, 7])
def test_first_and_second_derivatives(method: Method, n: int) -> None:
    x = torch.randn(2, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n)).requires_grad_()

    def rank(x: Tensor) -> Tensor:
        return soft_rank(x, method, **({"temperature": 0.7} if method in SUMS else {"interpolation": "logistic"}))

    assert gradcheck(rank, x)
    assert gradgradcheck(rank, x)


@pytest.mark.parametrize("spread", [1e-6, 1.0, 1e3, 1e9])
def test_laplace_equals_the_dense_sum_for_any_spread(spread: float) -> None:
    x = torch.randn(700, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * spread
    x[3:6] = x[2]
    torch.testing.assert_close(soft_rank(x, "laplace"), dense_laplace(x, 0.1), rtol=0, atol=1e-9)
    float32_ranks = soft_rank(x.float(), "laplace")
    torch.testing.assert_close(float32_ranks, dense_laplace(x.float().double(), 0.1).float(), rtol=0, atol=700 * 2e-6)


def test_the_gradient_of_laplace_equals_the_gradient_of_the_dense_sum() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(100, dtype=torch.float64, generator=generator).requires_grad_()
    weights = torch.randn(100, dtype=torch.float64, generator=generator)
    (gradient,) = torch.autograd.grad((soft_rank(x, "laplace") * weights).sum(), x)
    (dense_gradient,) = torch.autograd.grad((dense_laplace(x, 0.1) * weights).sum(), x)
    torch.testing.assert_close(gradient, dense_gradient, rtol=0, atol=1e-9)


def test_pairwise_ranks_do_not_depend_on_the_chunk_size(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).requires_grad_()
    ranks = soft_rank(x, "pairwise")
    (gradient,) = torch.autograd.grad(ranks.square().sum(), x)
    monkeypatch.setattr("reloss.ranking.pairwise.CHUNK", 700)
    chunked_ranks = soft_rank(x, "pairwise")
    torch.testing.assert_close(chunked_ranks, ranks, rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(chunked_ranks.square().sum(), x)[0], gradient, rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_edge_cases(method: Method) -> None:
    constant = torch.full((2, 8), 3.0, requires_grad=True)
    ranks = soft_rank(constant, method, standardize=True)
    if method != "odd_even":  # 8 layers of neighbours mix the two ends too little
        torch.testing.assert_close(ranks, torch.full((2, 8), 3.5), rtol=0, atol=1e-5)
    assert torch.isfinite(torch.autograd.grad(ranks.square().sum(), constant)[0]).all()
    single = torch.tensor([[7.0]], requires_grad=True)
    assert soft_rank(single, method).tolist() == [[0.0]]
    assert torch.autograd.grad(soft_rank(single, method).sum(), single)[0].tolist() == [[0.0]]
    with pytest.raises(ValueError, match="n >= 1"):
        soft_rank(torch.zeros(3, 0), method)
    with pytest.raises(ValueError, match=r"values\[1, 2\] is nan"):
        soft_rank(torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, float("nan")]]), method)
    with pytest.raises(ValueError, match=r"values\[0\] is inf"):
        soft_rank(torch.tensor([float("inf"), 1.0]), method)
    largest = torch.full((3,), torch.finfo(torch.float32).max)  # finite, but their sum is infinite
    assert torch.isfinite(soft_rank(largest, method)).all()
    for scale in (0, -1.0, float("inf"), float("nan"), "1", True):
        with pytest.raises(ValueError, match="must be a positive number, not "):
            soft_rank(torch.zeros(3), method, **{"temperature" if method in SUMS else "steepness": scale})


@pytest.mark.parametrize("method", METHODS)
def test_no_rows_give_no_ranks(method: Method) -> None:
    values = torch.zeros(0, 5, requires_grad=True)
    assert soft_rank(values, method, standardize=True).shape == (0, 5)
    assert torch.autograd.grad(soft_rank(values, method).sum(), values)[0].shape == (0, 5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_whose_differences_overflow_are_ranked(method: Method, standardize: bool, dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    values = torch.tensor([[0.9, -1.0, 0.1, -0.2], [2.0, 1.0, 4.0, 3.0]], dtype=dtype)
    values[0] *= largest
    values.requires_grad_()
    ranks = soft_rank(values, method, standardize=standardize)
    assert ranks.dtype == dtype
    assert ranks[0].argsort().tolist() == [1, 3, 2, 0]
    torch.testing.assert_close(ranks[1], soft_rank(values[1], method, standardize=standardize))
    assert torch.isfinite(torch.autograd.grad(ranks.square().sum(), values)[0]).all()


@pytest.mark.parametrize("method", METHODS)
def test_large_integers_are_ranked_in_float64(method: Method) -> None:
    timestamps = 1_700_000_000 + 5 * torch.arange(8)
    ranks = soft_rank(timestamps, method)
    assert ranks.dtype == torch.float64
    torch.testing.assert_close(ranks, torch.arange(8.0, dtype=torch.float64), rtol=0, atol=0.01)


@pytest.mark.parametrize("rank", [lambda x: soft_rank(x, "pairwise"), lambda x: soft_kendall(x, torch.arange(40.0))])
def test_the_gradient_is_the_same_under_autocast(rank) -> None:
    x = torch.randn(40, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weights = torch.rand(40, generator=torch.Generator().manual_seed(1))
    (expected,) = torch.autograd.grad((rank(x) * weights).sum(), x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (gradient,) = torch.autograd.grad((rank(x) * weights).sum(), x)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_an_option_of_another_method_raises(method: Method) -> None:
    x = torch.tensor([0.3, 0.1, 0.2])
    network_options = {"steepness": 5.0, "interpolation": "logistic", "art_lambda": 0.25}
    network_options["fidelity"] = "corrected"
    for name, value in (network_options if method in SUMS else {"temperature": 0.1}).items():
        with pytest.raises(ValueError, match=f"method '{method}' has no option '{name}'; remove it"):
            soft_spearman(x, x, method, **{name: value})
    option, default = ({"temperature": 0.5}, 0.1) if method in SUMS else ({"steepness": 1.0}, 5.0)
    assert not torch.equal(soft_rank(x, method, **option), soft_rank(x, method))
    assert torch.equal(soft_rank(x, method, **dict.fromkeys(option, default)), soft_rank(x, method))


@pytest.mark.parametrize("method", METHODS)
def test_strides_batches_and_half_precision(method: Method) -> None:
    x = torch.randn(4, 3, 10, generator=torch.Generator().manual_seed(5))
    ranks = soft_rank(x, method)
    torch.testing.assert_close(ranks[1, 2], soft_rank(x[1, 2], method))
    torch.testing.assert_close(soft_rank(x.transpose(0, 1), method), ranks.transpose(0, 1))
    strided = x.permute(0, 2, 1).contiguous().permute(0, 2, 1)
    torch.testing.assert_close(soft_rank(strided, method), ranks)
    expanded = x[:1].expand(5, 3, 10)
    torch.testing.assert_close(soft_rank(expanded, method), ranks[:1].expand(5, 3, 10))
    half = x.bfloat16().requires_grad_()
    assert soft_rank(half, method).dtype == torch.float32
    assert torch.autograd.grad(soft_rank(half, method).square().sum(), half)[0].dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:.*lru_cache")
@pytest.mark.parametrize(("method", "n"), [("bitonic", 6), ("odd_even", 4), ("pairwise", 20), ("laplace", 20)])
def test_compiled_ranks_equal_eager_ranks(method: Method, n: int) -> None:
    def rank(x: Tensor) -> Tensor:
        return soft_rank(x, method, standardize=True)

    x = torch.randn(3, n, generator=torch.Generator().manual_seed(9)).requires_grad_()
    weights = torch.randn(3, n, generator=torch.Generator().manual_seed(10))
    compiled = torch.compile(rank, backend="aot_eager", fullgraph=method != "laplace")
    torch.testing.assert_close(compiled(x), rank(x))
    gradients = [torch.autograd.grad((ranks(x) * weights).sum(), x)[0] for ranks in (compiled, rank)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("n", [1, 2, 300, 5000])
def test_the_radix_sort_equals_pytorch_sort(n: int) -> None:
    x = torch.randn(3, n, generator=torch.Generator().manual_seed(n)) * 1e3
    x[0, : n // 2] = x[0, n // 2 : 2 * (n // 2)]  # ties
    x[1, ::3] = 0.0
    for values in (x, x.double(), x[0], x.int(), x.long() << 40):
        assert torch.equal(stable_order(values), values.argsort(dim=-1, stable=True))


@pytest.mark.parametrize("method", METHODS)
def test_standardize_removes_the_scale(method: Method) -> None:
    x = torch.randn(64, generator=torch.Generator().manual_seed(6))
    ranks = soft_rank(x, method, standardize=True)
    torch.testing.assert_close(soft_rank(1e-3 * x + 2, method, standardize=True), ranks, rtol=0, atol=0.05)
    assert (soft_rank(1e-3 * x, method) - ranks).abs().max() > 5


@given(seed=st.integers(0, 99), n=st.integers(1, 100))
@settings(max_examples=30, deadline=None)
def test_the_blocked_recurrence_equals_a_loop(seed: int, n: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    inputs, decays = torch.rand(2, 2, n, dtype=torch.float64, generator=generator)
    expected = torch.zeros(2, dtype=torch.float64)
    result = recurrence(inputs, decays)
    for place in range(n):
        expected = decays[:, place] * expected + inputs[:, place]
        torch.testing.assert_close(result[:, place], expected)


@given(x=arrays(np.int64, 12, elements=st.integers(0, 5)), y=arrays(np.int64, 12, elements=st.integers(0, 5)))
@settings(max_examples=60, deadline=None)
def test_kendall_equals_scipy(x: np.ndarray, y: np.ndarray) -> None:
    correlation = kendall(torch.from_numpy(x).double(), torch.from_numpy(y).double()).item()
    expected = stats.kendalltau(x, y).statistic
    assert correlation == pytest.approx(0.0 if np.isnan(expected) else expected, abs=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 100, 1025])
def test_kendall_equals_scipy_for_rows_of_any_length(n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    x = torch.randint(max(n // 2, 2), (3, n), generator=generator)
    y = x + torch.randint(50, (3, n), generator=generator)
    expected = [stats.kendalltau(*pair).statistic if n > 1 else 0.0 for pair in zip(x, y, strict=True)]
    expected = torch.tensor(expected, dtype=torch.float64).nan_to_num(0.0)
    torch.testing.assert_close(kendall(x.double(), y), expected, rtol=0, atol=1e-14)


@given(permutation=st.permutations(range(13)))
@settings(max_examples=30, deadline=None)
def test_inversions_are_counted(permutation: list[int]) -> None:
    pairs = [(i, j) for i in range(13) for j in range(i + 1, 13) if permutation[i] > permutation[j]]
    both = torch.tensor([permutation, sorted(permutation)])
    assert count_inversions(both).tolist() == [len(pairs), 0]


def test_kendall_orders_large_integers() -> None:
    timestamps, order = 1_700_000_000 + torch.arange(10), torch.arange(10.0)
    nanoseconds = 2**62 + torch.arange(10)  # closer than float64 can tell
    assert kendall(timestamps, order) == kendall(nanoseconds, order) == 1
    assert kendall(order, -nanoseconds) == -1
    torch.testing.assert_close(soft_kendall(order, nanoseconds), soft_kendall(order, order))
    expected = soft_kendall(order.double(), order)
    torch.testing.assert_close(soft_kendall(timestamps, order), expected)


def test_soft_kendall_converges_to_kendall_and_is_twice_differentiable() -> None:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(3, 20, dtype=torch.float64, generator=generator).requires_grad_()
    y = torch.randint(6, (3, 20), generator=generator).double()
    torch.testing.assert_close(soft_kendall(x, y, temperature=1e-7), kendall(x, y))
    assert gradcheck(lambda x: soft_kendall(x, y), x)
    assert gradgradcheck(lambda x: soft_kendall(x, y), x)
    constant = soft_kendall(x, torch.ones_like(y))
    assert constant.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("method", METHODS)
def test_gradient_ascent_on_soft_spearman_sorts_the_values(method: Method) -> None:
    generator = torch.Generator().manual_seed(8)
    x, y = torch.randn(2, 32, generator=generator)
    x.requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        (-soft_spearman(x, y, method)).backward()
        optimizer.step()
    assert soft_spearman(x, y, "laplace", temperature=1e-4).item() > 0.95
