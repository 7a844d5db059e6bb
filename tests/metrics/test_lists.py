"""Metrics of ranked lists equal scikit-learn's; padding and queries without a relevant document do not count."""

import pytest
import torch
from sklearn.metrics import ndcg_score
from torchmetrics.functional.retrieval import retrieval_reciprocal_rank

from reloss.metrics import list_ndcg, list_ndcg10, mrr

METRICS = (list_ndcg, list_ndcg10, mrr)


def lists(n=4, q=6, d=20):
    """Scores and grades from 0 to 3; lists have 5 to 20 documents."""
    generator = torch.Generator().manual_seed(0)
    targets = (torch.rand(n, q, d, generator=generator) * 5 - 2).clamp(min=0).ceil().long()
    outputs = torch.randn(n, q, d, generator=generator) + 0.5 * targets
    lengths = torch.randint(5, d + 1, (n, q, 1), generator=generator)
    return outputs, targets.where(torch.arange(d) < lengths, -1)


def by_query(outputs, targets, function):
    """Mean of a function over the queries of each item with a relevant document, without their padding."""
    means = []
    for item in zip(outputs, targets, strict=True):
        queries = [(o[t >= 0], t[t >= 0]) for o, t in zip(*item, strict=True) if (t > 0).any()]
        means.append(sum(float(function(*query)) for query in queries) / len(queries))
    return means


def test_equals_scikit_learn_and_torchmetrics():
    outputs, targets = lists()
    targets[:, 0] = targets[:, 0].clamp(max=0)  # no relevant document
    for levels in (None, 2):
        scores = outputs if levels is None else (outputs * levels).round()
        for metric, k in ((list_ndcg, None), (list_ndcg10, 10)):
            expected = by_query(scores, targets, lambda o, t, k=k: ndcg_score(t[None], o[None], k=k))
            assert metric(scores, targets).tolist() == pytest.approx(expected, abs=1e-6)
    expected = by_query(outputs, targets, lambda o, t: retrieval_reciprocal_rank(o, t > 0))
    assert mrr(outputs, targets).tolist() == pytest.approx(expected, abs=1e-6)


def test_ties_of_the_reciprocal_rank_take_the_expected_place():
    outputs = torch.tensor([[[2.0, 1, 1, 1, 0]]])
    assert mrr(outputs, torch.tensor([[[0, 3, 0, 1, 1]]])).item() == pytest.approx(1 / (2 + 1 / 3))
    assert mrr(0 * outputs, torch.tensor([[[0, 1, 0, 0, -1]]])).item() == pytest.approx(1 / 2.5)


@pytest.mark.parametrize("metric", METRICS)
def test_scores_of_padding_do_not_count(metric):
    outputs, targets = lists()
    expected = metric(outputs, targets)
    for value in (0.0, 100.0, torch.nan, -torch.inf):
        assert torch.equal(metric(outputs.where(targets >= 0, value), targets), expected)
    assert (metric(outputs, targets.clamp(max=0)) == 0).all()
    assert (metric(targets.float(), targets) == 1).all()


@pytest.mark.parametrize("metric", METRICS)
def test_wrong_lists_raise(metric):
    outputs, targets = lists()
    for scores, grades, message in (
        (outputs, targets - 2, r"relevance must be at least 0, or -1 where there is no document, not -\d"),
        (outputs * torch.inf, targets, "scores must be finite where there is a document"),
        (outputs[0], targets[0], r"a single ranking is a list of one query: outputs\[None\]"),
        (outputs, targets[..., 0], r"pass one_hot\(targets, D\)"),
        (outputs[..., None], targets, r"remove the last axis: outputs.squeeze\(-1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            metric(scores, grades)
