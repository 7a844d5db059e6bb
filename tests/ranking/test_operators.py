"""Soft sort, argsort, top k and quantiles: torch in the hard limit, shares that sum to 1, derivatives, and options."""

from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from reloss.ranking import (
    soft_argsort,
    soft_median,
    soft_quantile,
    soft_rank,
    soft_sort,
    soft_top_k,
    soft_top_k_mask,
)
from reloss.ranking.operators import QuantileInterpolation, SortMethod

METHODS = get_args(SortMethod)
INTERPOLATIONS = get_args(QuantileInterpolation)
rows = arrays(np.float64, st.integers(1, 16), elements=st.floats(-100, 100, width=16))
distinct = st.permutations(range(11)).map(lambda row: torch.tensor(row, dtype=torch.float64))


def hard(method: str) -> dict[str, Any]:
    """Options that let well separated values take their hard places."""
    return {"temperature": 0.01} if method == "laplace" else {"steepness": 100.0, "interpolation": "logistic"}


def smooth(method: str) -> dict[str, Any]:
    return {"temperature": 0.7} if method == "laplace" else {"interpolation": "logistic", "steepness": 2.0}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("method", METHODS)
@given(row=distinct, k=st.integers(0, 11), descending=st.booleans())
@settings(max_examples=8, deadline=None)
def test_hard_limits_equal_torch(method: str, row: Tensor, k: int, descending: bool) -> None:
    options: dict[str, Any] = {"method": method, **hard(method)}
    assert_close(soft_sort(row, -1, descending, **options), row.sort(descending=descending).values)
    places = torch.nn.functional.one_hot(row.argsort(descending=descending)).double()
    assert_close(soft_argsort(row, -1, descending, **options), places, rtol=0, atol=1e-6)
    values, mask = soft_top_k(row, k, largest=descending, **options)
    expected = row.topk(k, largest=descending)
    assert_close(values, expected.values)
    assert_close(mask, torch.zeros(11).double().scatter(0, expected.indices, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_quantiles_equal_torch_and_numpy_in_the_hard_limit(method: str, interpolation: str) -> None:
    x = (
        3
        * torch.stack([torch.randperm(6, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]).double()
    )
    q = torch.tensor([0.0, 0.13, 0.5, 0.7, 1.0], dtype=torch.float64)
    options: dict[str, Any] = {"method": method, **{**hard(method), "interpolation": interpolation}}
    if method != "laplace":
        options["steepness"] = 1e4
    for dim, keepdim in ((None, False), (None, True), (0, False), (1, True), (-1, False)):
        data = x if dim is not None else x[0]
        result = soft_quantile(data, q, dim, keepdim, **options)
        expected = torch.quantile(data, q, dim, keepdim, interpolation=interpolation)
        if dim != 0:  # there, equal values meet
            assert_close(result, expected, rtol=0, atol=1e-2)
        assert result.shape == expected.shape
        assert soft_quantile(data, 0.3, dim, keepdim, **options).shape == expected.shape[1:]
    assert_close(
        soft_quantile(x, q, -1, **options)[:, 0].numpy(), np.quantile(x[0], q, method=interpolation), atol=1e-2, rtol=0
    )


@pytest.mark.parametrize("method", METHODS)
def test_the_median_is_the_lower_one_as_in_torch(method: str) -> None:
    x = (
        3
        * torch.stack([torch.randperm(6, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]).double()
    )
    options: dict[str, Any] = {"method": method} | (
        {"temperature": 0.01} if method == "laplace" else {"steepness": 1e3}
    )
    assert_close(soft_median(x, 1, **options), x.median(1).values)
    assert_close(soft_median(x, 1, keepdim=True, **options), x.median(1, keepdim=True).values)
    assert_close(soft_median(x[0], **options), x[0].median())


@pytest.mark.parametrize("method", METHODS)
@given(values=rows, k=st.integers(0, 16))
@settings(max_examples=15, deadline=None)
def test_shares_sum_to_one_and_sorted_values_keep_range_and_sum(method: str, values: np.ndarray, k: int) -> None:
    x, n = torch.from_numpy(values), len(values)
    k = min(k, n)
    shares, places = soft_argsort(x, method=method), soft_sort(x, method=method)
    ones = torch.ones(n, dtype=torch.float64)
    assert shares.min() >= -1e-9
    assert_close(shares.sum(0), ones)
    assert_close(shares.sum(1), ones)
    assert_close(shares @ x, places, rtol=0, atol=1e-8)
    assert places.min() >= x.min() - 1e-8
    assert places.max() <= x.max() + 1e-8
    chosen, mask = soft_top_k(x, k, method=method)
    assert_close(mask, shares[n - k :].sum(0), rtol=0, atol=1e-9)
    assert_close(chosen, places.flip(0)[:k], rtol=0, atol=1e-8)


@given(values=rows, seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_laplace_is_equivariant_and_monotone(values: np.ndarray, seed: int) -> None:
    x = torch.from_numpy(values)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    places, k = soft_sort(x), len(x) // 2
    assert_close(soft_sort(x[order]), places, rtol=0, atol=1e-8)
    assert_close(soft_sort(x + 8), places + 8, rtol=0, atol=1e-3)  # the shift rounds close values
    assert (places.diff() >= -1e-8).all()
    mask = soft_top_k_mask(x, k)
    assert_close(soft_top_k_mask(x[order], k), mask[order], rtol=0, atol=1e-9)
    assert (mask[x.argsort(stable=True)].diff() >= -1e-9).all()
    assert_close(soft_top_k_mask(-x, k, largest=False), mask, rtol=0, atol=1e-12)


OPERATORS: dict[str, Callable[..., Tensor]] = {
    "sort": soft_sort,
    "argsort": soft_argsort,
    "top_k_mask": lambda x, **options: soft_top_k_mask(x, 2, **options),
    "top_k_values": lambda x, **options: soft_top_k(x, 2, largest=False, **options).values,
    "quantile": lambda x, **options: soft_quantile(x, 0.4, -1, **{**options, "interpolation": "linear"}),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", OPERATORS)
def test_first_and_second_derivatives(name: str, method: str) -> None:
    options = smooth(method)
    if name == "quantile" and method != "laplace":
        options = {"steepness": 2.0}  # logistic_phi is steep at 0, so the values are kept apart
    softness = "temperature" if method == "laplace" else "steepness"
    scale = torch.tensor([[1.3], [0.8]], dtype=torch.float64, requires_grad=True)

    def operator(x: Tensor, scale: Tensor) -> Tensor:
        return OPERATORS[name](x, method=method, **{**options, softness: scale})

    x = (normal(2, 4) + 2 * torch.arange(4)).detach().requires_grad_()
    assert gradcheck(operator, (x, scale))
    assert gradgradcheck(operator, (x, scale))
    (expected,) = torch.autograd.grad(operator(x, scale.detach())[0].square().sum(), x)
    number = {**options, softness: 1.3}
    if name != "quantile":
        (gradient,) = torch.autograd.grad(OPERATORS[name](x[0], method=method, **number).square().sum(), x)
        assert_close(gradient, expected)


@pytest.mark.parametrize("method", ["bitonic", "odd_even", "laplace", "pairwise"])
def test_ranks_have_gradients_in_a_tensor_of_temperatures(method: Any) -> None:
    softness = "temperature" if method in ("laplace", "pairwise") else "steepness"
    x, scale = normal(2, 5).requires_grad_(), torch.tensor([[0.7], [1.4]], dtype=torch.float64, requires_grad=True)
    curve = {} if softness == "temperature" else {"interpolation": "logistic"}
    assert gradcheck(lambda x, scale: soft_rank(x, method, **{softness: scale}, **curve), (x, scale))
    ranks = torch.stack([soft_rank(*pair) for pair in ((row, method) for row in x * 1)])
    default = 0.1 if softness == "temperature" else 5.0
    for same in (torch.tensor(default), torch.full((2, 1), default), torch.full((1, 1), default)):
        assert_close(soft_rank(x, method, **{softness: same.double()}), ranks)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", OPERATORS)
def test_straight_through_gives_hard_results_with_soft_gradients(name: str, method: str) -> None:
    x = torch.tensor([0.3, -0.2, 0.9, 0.4, 0.1], dtype=torch.float64, requires_grad=True)
    soft, through = (OPERATORS[name](x, method=method, straight_through=flag) for flag in (False, True))
    hard_x = 1000 * x.detach()
    expected = OPERATORS[name](hard_x, method=method) / (1 if name in ("argsort", "top_k_mask") else 1000)
    assert_close(through, expected, rtol=0, atol=1e-2 if name == "quantile" else 1e-3)
    weights = normal(*soft.shape, seed=3) if soft.dim() else torch.tensor(2.0).double()
    gradients = [torch.autograd.grad((result * weights).sum(), x)[0] for result in (soft, through)]
    assert_close(*gradients)


def test_ranks_straight_through_descending_and_along_any_axis() -> None:
    x = normal(3, 4, 5)
    for dim in (-3, 0, 1, 2):
        ranks = soft_rank(x, "laplace", dim=dim)
        assert_close(ranks, soft_rank(x.movedim(dim, -1), "laplace").movedim(-1, dim))
        size = x.shape[dim]
        assert_close(soft_rank(x, "laplace", dim=dim, descending=True), size - 1 - ranks)
        through = soft_rank(x, "laplace", dim=dim, straight_through=True, descending=True)
        assert_close(through, x.argsort(dim, descending=True).argsort(dim).double())


@pytest.mark.parametrize("method", METHODS)
def test_any_axis_and_leading_axes(method: str) -> None:
    x = normal(3, 4, 5)
    for dim in (0, 1, -2, -1):
        moved = x.movedim(dim, -1)
        assert_close(soft_sort(x, dim, method=method), soft_sort(moved, method=method).movedim(-1, dim))
        matrix = soft_argsort(x, dim, True, method=method)
        assert matrix.shape == (*x.shape, x.shape[dim])
        assert_close(matrix.movedim(dim % 3, -2), soft_argsort(moved, descending=True, method=method))
        values, mask = soft_top_k(x, 2, dim, method=method)
        assert values.shape == x.topk(2, dim).values.shape
        assert_close(mask, soft_top_k_mask(moved, 2, method=method).movedim(-1, dim))
    assert_close(soft_sort(x, method=method)[1, 2], soft_sort(x[1, 2], method=method))


@pytest.mark.parametrize("temperature", [1e-4, 0.1, 3.0])
@pytest.mark.parametrize("n", [2, 3, 40])
def test_one_row_and_a_batch_agree(n: int, temperature: float) -> None:
    """A single row is computed in NumPy if it spans a small range."""
    x = normal(2, n, seed=n)
    x[:, -1] = x[:, 0]
    x.requires_grad_()
    for operator in (
        lambda x: soft_rank(x, "laplace", temperature=temperature),
        lambda x: soft_sort(x, temperature=temperature),
        lambda x: soft_top_k_mask(x, 1, temperature=temperature),
        lambda x: soft_top_k(x, 1, temperature=temperature).values,
        lambda x: soft_quantile(x, 0.4, -1, keepdim=True, temperature=temperature),
    ):
        batch, row = operator(x), operator(x[0])
        assert_close(row, batch[0], rtol=0, atol=1e-9)
        gradients = [torch.autograd.grad(result.square().sum(), x)[0] for result in (row, batch[0])]
        assert_close(*gradients, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_dtypes(method: str, dtype: torch.dtype) -> None:
    x = (4 * normal(2, 9)).to(dtype)
    wide = torch.float64 if dtype in (torch.float64, torch.int64) else torch.float32
    for operator in OPERATORS.values():
        assert_close(operator(x, method=method), operator(x.to(wide), method=method), rtol=0, atol=0)
        assert operator(x, method=method).dtype == wide
        assert_close(
            operator(x.to(wide), method=method).double(), operator(x.double(), method=method), rtol=0, atol=1e-4
        )


@pytest.mark.parametrize("method", METHODS)
def test_edge_cases(method: str) -> None:
    single = torch.tensor([[7.0]], requires_grad=True)
    assert soft_sort(single, method=method).tolist() == [[7.0]]
    assert soft_argsort(single, method=method).tolist() == [[[1.0]]]
    assert soft_quantile(single, 0.3, method=method).item() == 7
    empty = torch.zeros(0, 5)
    assert soft_sort(empty, method=method).shape == (0, 5)
    assert soft_argsort(empty, method=method).shape == (0, 5, 5)
    assert [part.shape for part in soft_top_k(empty, 2, method=method)] == [(0, 2), (0, 5)]
    assert soft_quantile(empty, 0.5, -1, method=method).shape == (0,)
    constant = torch.full((6,), 0.3, requires_grad=True)
    assert_close(soft_sort(constant, method=method), constant)
    assert torch.autograd.grad(soft_sort(constant, method=method)[1], constant)[0].isfinite().all()
    assert torch.autograd.grad(soft_top_k_mask(constant, 2, method=method)[1], constant)[0].isfinite().all()


@pytest.mark.parametrize("spread", [1e-6, 1.0, 1e4, 1e30])
def test_laplace_is_exact_for_any_spread(spread: float) -> None:
    x = normal(300) * spread
    x[3:6] = x[2]
    assert_close(soft_sort(x), soft_argsort(x) @ x, rtol=0, atol=1e-10 * spread)
    assert_close(soft_top_k_mask(x, 7), soft_argsort(x)[-7:].sum(0), rtol=0, atol=1e-10)
    if spread > 1:
        assert_close(soft_sort(x), x.sort().values, rtol=0, atol=1e-3 * spread)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: soft_sort(x, method="pairwise"), "unknown method 'pairwise'; valid: laplace, bitonic, odd_even"),
        (lambda x: soft_sort(x, 2), "dim must be an axis of values"),
        (lambda x: soft_sort(x, steepness=3.0), "method 'laplace' has no option 'steepness'; remove it"),
        (lambda x: soft_sort(x, temperature=torch.tensor([0.1, -1.0])), "positive and finite everywhere"),
        (lambda x: soft_sort(x, temperature=torch.tensor([0.1])), "size 1 along dim, not "),
        (lambda x: soft_sort(x, temperature=torch.full((2, 3), 0.1)), "size 1 along dim, not "),
        (lambda x: soft_sort(x, temperature=torch.tensor(1)), "must be a tensor of floats, not torch.int64"),
        (lambda x: soft_sort(x / 0), r"values\[0, 0\] is (nan|inf)"),
        (lambda x: soft_sort(x[:0], 0), "n >= 1 along dim 0"),
        (lambda x: soft_top_k(x, 4), "k must be an integer from 0 to n = 3, not 4"),
        (lambda x: soft_quantile(x, 1.5), r"q must be a number in \[0, 1\]"),
        (lambda x: soft_quantile(x, 0.5, interpolation="cubic"), "unknown interpolation 'cubic'; valid: linear"),
    ],
)
def test_wrong_arguments_raise(call: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.ones(2, 3))
