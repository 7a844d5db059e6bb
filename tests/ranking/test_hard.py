"""Hard ranks agree with SciPy's, for every dtype, shape and memory layout."""

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from reloss.ranking import hard_rank

tied_values = st.lists(st.integers(-3, 3), min_size=1, max_size=20)


@given(tied_values)
@settings(deadline=None)
def test_mean_ranks_equal_scipy(values):
    expected = torch.tensor(scipy.stats.rankdata(values) - 1, dtype=torch.float32)
    assert_close(hard_rank(torch.tensor(values)), expected, rtol=0, atol=0)
    assert_close(hard_rank(torch.tensor(values, dtype=torch.float64)), expected.double(), rtol=0, atol=0)


@given(tied_values)
@settings(deadline=None)
def test_ordinal_ranks_are_a_permutation_that_sorts_the_values(values):
    ranks = hard_rank(torch.tensor(values), ties="ordinal")
    assert sorted(ranks.tolist()) == list(range(len(values)))
    assert torch.tensor(values)[ranks.argsort()].tolist() == sorted(values)


WIDE = [torch.float32, torch.int64, torch.uint16, torch.uint32, torch.uint64]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.uint8, *WIDE])
def test_any_dtype_is_ranked_in_float32(dtype):
    ranks = hard_rank(torch.tensor([3, 1, 3, 0]).to(dtype))
    assert ranks.dtype == torch.float32
    assert ranks.tolist() == [2.5, 1, 2.5, 0]


def test_batch_dimensions_and_strides():
    values = torch.randn(4, 3, 10, generator=torch.Generator().manual_seed(0))
    strided, expanded = values[..., ::2], values[:1].expand(2, 3, 10)
    transposed = values.transpose(0, 1)
    for view in (strided, expanded, transposed):
        rows = [hard_rank(row.clone()) for row in view.reshape(-1, view.shape[-1])]
        assert_close(hard_rank(view), torch.stack(rows).view(view.shape), rtol=0, atol=0)


def test_unknown_ties_raise():
    with pytest.raises(ValueError, match="ties must be one of mean, ordinal, not 'dense'"):
        hard_rank(torch.zeros(3), ties="dense")


@pytest.mark.parametrize("values", [[1.0, 2.0], np.zeros(3), torch.zeros(3, dtype=torch.complex64)])
def test_values_must_be_a_tensor_of_real_numbers(values):
    with pytest.raises(ValueError, match="values must be a tensor of real numbers, not "):
        hard_rank(values)


def test_no_rows_give_no_ranks():
    assert hard_rank(torch.zeros(0, 5)).shape == (0, 5)


def test_one_value():
    assert hard_rank(torch.tensor([7.0])).tolist() == [0]


@pytest.mark.parametrize("shape", [(0,), (3, 0), ()])
def test_no_values_raise(shape):
    with pytest.raises(ValueError, match="n >= 1"):
        hard_rank(torch.zeros(shape))


@pytest.mark.parametrize(("value", "name"), [(float("nan"), "nan"), (float("inf"), "inf"), (-float("inf"), "-inf")])
def test_the_error_names_the_value_that_is_not_finite(value, name):
    values = torch.zeros(3, 4)
    values[1, 2] = value
    with pytest.raises(ValueError, match=rf"values\[1, 2\] is {name}"):
        hard_rank(values)
