"""nDCG equals scikit-learn and torchmetrics, and defines every edge case."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score
from torch import Tensor
from torchmetrics.functional.retrieval import retrieval_normalized_dcg

from reloss.metrics import ndcg, ndcg10


def rankings(seed: int, n: int, b: int, levels: int | None = None) -> tuple[Tensor, Tensor]:
    """Return scores that correlate with the gains, rounded to a few levels if given. In some items all gains are 0."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(4, (n, b), generator=generator) * torch.randint(2, (n, 1), generator=generator)
    outputs = torch.randn(n, b, generator=generator) + targets
    return (outputs if levels is None else (outputs * levels / 4).round()), targets


@pytest.mark.parametrize("b", [2, 7, 60])
@pytest.mark.parametrize("levels", [None, 1, 3])
@pytest.mark.parametrize("k", [None, 1, 5, 10, 100])
def test_equals_scikit_learn(b, levels, k):
    outputs, targets = rankings(b, 40, b, levels)
    expected = [ndcg_score(t[None], o[None], k=k) for t, o in zip(targets, outputs, strict=True)]
    assert (targets == 0).all(1).any()
    assert ndcg(outputs, targets, k).tolist() == pytest.approx(expected, abs=1e-6)
    if k == 10:
        assert torch.equal(ndcg10(outputs, targets), ndcg(outputs, targets, 10))


def test_equals_scikit_learn_for_real_gains():
    outputs, _ = rankings(0, 50, 30, 2)
    targets = torch.rand(50, 30, generator=torch.Generator().manual_seed(1)) ** 4
    expected = [ndcg_score(t[None], o[None]) for t, o in zip(targets, outputs, strict=True)]
    assert ndcg(outputs, targets).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("levels", [None, 2])
def test_equals_torchmetrics(levels):
    outputs, targets = rankings(0, 20, 30, levels)
    expected = [float(retrieval_normalized_dcg(o, t, 5)) for o, t in zip(outputs, targets, strict=True)]
    assert ndcg(outputs, targets, 5).tolist() == pytest.approx(expected, abs=1e-6)


def test_by_hand():
    outputs, targets = torch.tensor([[3.0, 2, 1]]), torch.tensor([[0, 2, 1]])
    discount = 1 / torch.tensor([2.0, 3, 4]).log2()
    expected = (2 * discount[1] + discount[2]) / (2 * discount[0] + discount[1])
    assert ndcg(outputs, targets).item() == pytest.approx(expected.item())
    assert ndcg(outputs, targets, 1).item() == 0
    assert ndcg(outputs * 0, targets, 1).item() == pytest.approx(1 / 2)  # the mean gain is 1, the largest 2


def test_one_example_and_no_gains():
    assert ndcg(torch.tensor([[5.0]]), torch.tensor([[2]])).item() == 1
    assert ndcg(torch.tensor([[5.0]]), torch.tensor([[0]])).item() == 0
    assert ndcg(torch.eye(2, 6), torch.zeros(2, 6)).tolist() == [0, 0]


@given(st.integers(0, 10_000), st.integers(1, 20), st.sampled_from([1, 4, 16]), st.sampled_from([None, 1, 3]))
@settings(max_examples=40, deadline=None)
def test_values_are_in_range_and_ignore_the_order_of_examples_and_the_scale_of_scores(seed, b, levels, k):
    outputs, targets = rankings(seed, 3, b, levels)
    order = torch.randperm(b, generator=torch.Generator().manual_seed(seed))
    values = ndcg(outputs, targets, k)
    assert values.dtype == torch.float32
    assert 0 <= values.min() <= values.max() <= 1
    assert values.tolist() == pytest.approx(ndcg(outputs[:, order], targets[:, order], k).tolist(), abs=1e-6)
    assert torch.equal(ndcg(outputs**3 - 7, targets, k), values)
    assert torch.equal(ndcg(outputs, 4 * targets, k), values)
    assert ndcg(targets, targets, k).tolist() == (targets.sum(1) > 0).tolist()


@pytest.mark.parametrize(
    ("outputs", "targets"), [((4,), (4,)), ((2, 4), (2, 5)), ((2, 4, 1), (2, 4)), ((2, 0), (2, 0))]
)
def test_shapes_must_agree(outputs, targets):
    with pytest.raises(ValueError, match=r"expected outputs \[N, B\] and targets \[N, B\].*not \["):
        ndcg(torch.zeros(outputs), torch.zeros(targets))


def test_invalid_values_raise():
    zero, one, nan = torch.zeros(1, 1), torch.ones(1, 1), torch.full((1, 1), torch.nan)
    with pytest.raises(ValueError, match="targets must be gains of at least 0"):
        ndcg(zero, -one)
    with pytest.raises(ValueError, match="k must be a whole number of at least 1, not 0"):
        ndcg(zero, one, 0)
    for outputs, targets in ((nan, one), (one, nan)):
        with pytest.raises(ValueError, match="values must be finite"):
            ndcg(outputs, targets)


def test_no_items_give_no_values():
    assert ndcg(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)
