"""What all methods share, what the sums have and the sorting networks lack, and numerics at the edges."""

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
from reloss.ranking.laplace import _sort
from reloss.ranking.networks import Comparator, _sweep, _wiring
from reloss.ranking.scans import recurrence

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
def test_ranks_sum_to_those_of_an_order_and_ignore_a_shift(method: Method, values: np.ndarray) -> None:
    ranks = soft_rank(torch.from_numpy(values), method)
    n = len(values)
    assert ranks.sum().item() == pytest.approx(n * (n - 1) / 2, abs=1e-8 * n * n)
    assert ranks.min() >= -1e-9
    assert ranks.max() <= n - 1 + 1e-9
    if np.unique(values).size == n:  # a shift must not make distinct values equal
        torch.testing.assert_close(soft_rank(torch.from_numpy(values) + 8, method), ranks, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@given(permutation=st.permutations(range(9)))
@settings(max_examples=25, deadline=None)
def test_ranks_of_distant_values_are_hard(method: Method, permutation: list[int]) -> None:
    values = torch.tensor(permutation, dtype=torch.float64)
    options = {"temperature": 0.02} if method in SUMS else {"steepness": 60.0}
    ranks = soft_rank(values, method, **options)
    torch.testing.assert_close(ranks, hard_rank(values), rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", SUMS)
@given(values=rows, seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_sums_are_permutation_equivariant_and_keep_the_order(method: Method, values: np.ndarray, seed: int) -> None:
    x = torch.from_numpy(values)
    ranks = soft_rank(x, method)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(soft_rank(x[order], method), ranks[order], rtol=0, atol=1e-9)
    ascending = ranks[x.argsort(stable=True)].tolist()
    assert all(lower <= upper + 1e-9 for lower, upper in pairwise(ascending))


@pytest.mark.parametrize("method", SUMS)
def test_each_rank_of_a_sum_rises_with_its_own_value(method: Method) -> None:
    x = torch.randn(12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    jacobian = torch.autograd.functional.jacobian(lambda x: soft_rank(x, method), x)
    assert jacobian.diagonal().min() > 0
    assert (jacobian - jacobian.diagonal().diag()).max() <= 0


def test_sorting_networks_depend_on_the_order_of_input() -> None:
    x = torch.randn(16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    order = torch.randperm(16, generator=torch.Generator().manual_seed(2))
    change = (soft_rank(x[order]) - soft_rank(x)[order]).abs().max()
    assert change > 0.05


@pytest.mark.parametrize("network", ["bitonic", "odd_even"])
@pytest.mark.parametrize("n", [2, 5, 8, 13])
def test_every_layer_of_a_network_is_doubly_stochastic(network: str, n: int) -> None:
    x = torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    wiring = _wiring(network, n, x.device)
    weights = _sweep(x, wiring, Comparator(5.0, "logistic_phi", 0.25))[1][0]
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
def test_laplace_equals_the_sum_over_all_pairs_for_any_spread(spread: float) -> None:
    x = torch.randn(700, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * spread
    x[3:6] = x[2]
    torch.testing.assert_close(soft_rank(x, "laplace"), dense_laplace(x, 0.1), rtol=0, atol=1e-9)
    single = soft_rank(x.float(), "laplace")
    torch.testing.assert_close(single, dense_laplace(x.float().double(), 0.1).float(), rtol=0, atol=700 * 2e-6)


def test_laplace_gradient_equals_that_of_the_sum_over_all_pairs() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(100, dtype=torch.float64, generator=generator).requires_grad_()
    weights = torch.randn(100, dtype=torch.float64, generator=generator)
    (ours,) = torch.autograd.grad((soft_rank(x, "laplace") * weights).sum(), x)
    (dense,) = torch.autograd.grad((dense_laplace(x, 0.1) * weights).sum(), x)
    torch.testing.assert_close(ours, dense, rtol=0, atol=1e-9)


def test_pairwise_chunks_give_the_same_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).requires_grad_()
    whole = soft_rank(x, "pairwise")
    (gradient,) = torch.autograd.grad(whole.square().sum(), x)
    monkeypatch.setattr("reloss.ranking.pairwise.CHUNK", 700)
    chunked = soft_rank(x, "pairwise")
    torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(chunked.square().sum(), x)[0], gradient, rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_edges(method: Method) -> None:
    constant = torch.full((2, 8), 3.0, requires_grad=True)
    ranks = soft_rank(constant, method, standardize=True)
    if method != "odd_even":  # 8 layers of neighbours do not mix the ends
        torch.testing.assert_close(ranks, torch.full((2, 8), 3.5), rtol=0, atol=1e-5)
    assert torch.isfinite(torch.autograd.grad(ranks.square().sum(), constant)[0]).all()
    one = torch.tensor([[7.0]], requires_grad=True)
    assert soft_rank(one, method).tolist() == [[0.0]]
    assert torch.autograd.grad(soft_rank(one, method).sum(), one)[0].tolist() == [[0.0]]
    with pytest.raises(ValueError, match="n >= 1"):
        soft_rank(torch.zeros(3, 0), method)
    with pytest.raises(ValueError, match=r"values\[1, 2\] is nan"):
        soft_rank(torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, float("nan")]]), method)
    with pytest.raises(ValueError, match=r"values\[0\] is inf"):
        soft_rank(torch.tensor([float("inf"), 1.0]), method)
    largest = torch.full((3,), torch.finfo(torch.float32).max)  # finite, though their sum is not
    assert torch.isfinite(soft_rank(largest, method)).all()
    with pytest.raises(ValueError, match="positive"):
        soft_rank(torch.zeros(3), method, **{"temperature" if method in SUMS else "steepness": 0})


@pytest.mark.parametrize("method", METHODS)
def test_an_option_of_other_methods_is_refused(method: Method) -> None:
    x = torch.tensor([0.3, 0.1, 0.2])
    of_networks = {"steepness": 5.0, "interpolation": "logistic", "art_lambda": 0.25}
    for name, value in (of_networks if method in SUMS else {"temperature": 0.1}).items():
        with pytest.raises(ValueError, match=f"{name} is no option of method '{method}'"):
            soft_spearman(x, x, method, **{name: value})
    own, default = ({"temperature": 0.5}, 0.1) if method in SUMS else ({"steepness": 1.0}, 5.0)
    assert not torch.equal(soft_rank(x, method, **own), soft_rank(x, method))
    assert torch.equal(soft_rank(x, method, **dict.fromkeys(own, default)), soft_rank(x, method))


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
@pytest.mark.parametrize(("method", "n"), [("bitonic", 20), ("odd_even", 7), ("pairwise", 20), ("laplace", 20)])
def test_compiled_ranks_are_the_same(method: Method, n: int) -> None:
    def rank(x: Tensor) -> Tensor:
        return soft_rank(x, method, standardize=True)

    x = torch.randn(3, n, generator=torch.Generator().manual_seed(9)).requires_grad_()
    weights = torch.randn(3, n, generator=torch.Generator().manual_seed(10))
    compiled = torch.compile(rank, backend="aot_eager", fullgraph=method != "laplace")
    torch.testing.assert_close(compiled(x), rank(x))
    gradients = [torch.autograd.grad((ranks(x) * weights).sum(), x)[0] for ranks in (compiled, rank)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("n", [1, 2, 300, 5000])
def test_laplace_sorts_as_pytorch_does(n: int) -> None:
    x = torch.randn(3, n, generator=torch.Generator().manual_seed(n)) * 1e3
    x[0, : n // 2] = x[0, n // 2 : 2 * (n // 2)]  # ties
    x[1, ::3] = 0.0
    for values in (x, x.double(), x[0]):
        ordered, order = _sort(values)
        assert torch.equal(ordered, values.sort(dim=-1).values)
        assert torch.equal(order.sort(dim=-1).values, torch.arange(n).expand_as(order))
    assert torch.equal(_sort(x)[1], x.sort(dim=-1, stable=True).indices)


@pytest.mark.parametrize("method", METHODS)
def test_standardize_takes_the_scale_away(method: Method) -> None:
    x = torch.randn(64, generator=torch.Generator().manual_seed(6))
    ranks = soft_rank(x, method, standardize=True)
    torch.testing.assert_close(soft_rank(1e-3 * x + 2, method, standardize=True), ranks, rtol=0, atol=0.05)
    assert (soft_rank(1e-3 * x, method) - ranks).abs().max() > 5


@given(seed=st.integers(0, 99), n=st.integers(1, 100))
@settings(max_examples=30, deadline=None)
def test_recurrence_follows_its_recurrence(seed: int, n: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    inputs, decays = torch.rand(2, 2, n, dtype=torch.float64, generator=generator)
    expected = torch.zeros(2, dtype=torch.float64)
    result = recurrence(inputs, decays)
    for place in range(n):
        expected = decays[:, place] * expected + inputs[:, place]
        torch.testing.assert_close(result[:, place], expected)


@given(x=arrays(np.int64, 12, elements=st.integers(0, 5)), y=arrays(np.int64, 12, elements=st.integers(0, 5)))
@settings(max_examples=60, deadline=None)
def test_kendall_equals_scipys(x: np.ndarray, y: np.ndarray) -> None:
    ours = kendall(torch.from_numpy(x).double(), torch.from_numpy(y).double()).item()
    theirs = stats.kendalltau(x, y).statistic
    assert ours == pytest.approx(0.0 if np.isnan(theirs) else theirs, abs=1e-12)


def test_soft_kendall_becomes_hard_and_is_differentiable() -> None:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(3, 20, dtype=torch.float64, generator=generator).requires_grad_()
    y = torch.randint(6, (3, 20), generator=generator).double()
    torch.testing.assert_close(soft_kendall(x, y, temperature=1e-7), kendall(x, y))
    assert gradcheck(lambda x: soft_kendall(x, y), x)
    assert gradgradcheck(lambda x: soft_kendall(x, y), x)
    constant = soft_kendall(x, torch.ones_like(y))
    assert constant.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("method", METHODS)
def test_soft_spearman_can_be_climbed(method: Method) -> None:
    generator = torch.Generator().manual_seed(8)
    x, y = torch.randn(2, 32, generator=generator)
    x.requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        (-soft_spearman(x, y, method)).backward()
        optimizer.step()
    assert soft_spearman(x, y, "laplace", temperature=1e-4).item() > 0.95
