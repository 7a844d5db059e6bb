"""Metrics of a ranking's top against scikit-learn and against definitions in NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from reloss.metrics import (
    auroc,
    get_metric,
    partial_auroc,
    precision_at_10,
    precision_at_k,
    recall_at_10,
    recall_at_k,
)


def examples(seed, b, values=0, n=8):
    """Scores and labels of n items; with `values`, scores are whole numbers below it, so that many are equal."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(n, b, generator=generator)
    if values:
        scores = torch.randint(values, (n, b), generator=generator).float()
    return scores, torch.randint(2, (n, b), generator=generator)


@given(st.integers(0, 10_000), st.integers(2, 30), st.integers(0, 6), st.floats(0.01, 1))
@settings(max_examples=40, deadline=None)
def test_partial_auroc_is_scikit_learns(seed, b, values, max_fpr):
    scores, targets = examples(seed, b, values, n=3)
    for value, score, target in zip(partial_auroc(scores, targets, max_fpr=max_fpr), scores, targets, strict=True):
        expected = roc_auc_score(target, score, max_fpr=max_fpr) if 0 < target.sum() < b else 0.5
        assert value.item() == pytest.approx(expected, abs=1e-6)


def test_partial_auroc_of_all_rates_is_auroc():
    scores, targets = examples(0, 20, 5)
    torch.testing.assert_close(partial_auroc(scores, targets, max_fpr=1), auroc(scores, targets))


@given(st.integers(0, 10_000), st.integers(1, 15), st.integers(1, 20))
@settings(max_examples=100, deadline=None)
def test_precision_and_recall_are_those_of_the_highest_scores(seed, b, k):
    scores, targets = examples(seed, b)
    first = np.take_along_axis(targets.numpy(), np.argsort(-scores.numpy(), -1)[:, :k], -1)
    assert precision_at_k(scores, targets, k).numpy() == pytest.approx(first.mean(-1))
    found = first.sum(-1) / np.maximum(targets.numpy().sum(-1), 1)
    assert recall_at_k(scores, targets, k).numpy() == pytest.approx(found)


def test_equal_scores_share_places_as_the_mean_over_their_orders():
    scores, targets = examples(3, 6, 2, n=4)
    generator = np.random.default_rng(0)
    noise = 0.1 * generator.random((4000, 1, 6))
    orders = np.argsort(-(scores.numpy() + noise), -1)[..., :4]
    expected = np.take_along_axis(np.broadcast_to(targets.numpy(), noise.shape[:1] + targets.shape), orders, -1)
    assert precision_at_k(scores, targets, 4).numpy() == pytest.approx(expected.mean((0, 2)), abs=0.02)


def test_metrics_of_ten_places():
    scores, targets = examples(1, 40)
    assert torch.equal(precision_at_10(scores, targets), precision_at_k(scores, targets, 10))
    assert torch.equal(recall_at_10(scores, targets), recall_at_k(scores, targets, 10))
    assert get_metric("partial_auroc") is partial_auroc


@pytest.mark.parametrize("max_fpr", [0, -0.1, 1.1, float("nan")])
def test_rates_out_of_range_are_refused(max_fpr):
    with pytest.raises(ValueError, match="max_fpr must be above 0 and at most 1"):
        partial_auroc(*examples(0, 4), max_fpr=max_fpr)


@pytest.mark.parametrize("metric", [precision_at_k, recall_at_k])
@pytest.mark.parametrize("k", [0, -1, 2.0, True])
def test_places_out_of_range_are_refused(metric, k):
    with pytest.raises(ValueError, match="k must be a whole number of at least 1"):
        metric(*examples(0, 4), k)


@pytest.mark.parametrize("metric", [partial_auroc, precision_at_10, recall_at_10])
def test_wrong_inputs_are_refused(metric):
    with pytest.raises(ValueError, match=r"expected outputs \[N, B\]"):
        metric(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="0 to 1"):
        metric(torch.zeros(2, 3), torch.full((2, 3), 2))
    with pytest.raises(ValueError, match="finite"):
        metric(torch.full((2, 3), torch.nan), torch.zeros(2, 3))
