"""Expected parts of partial AUROC, precision and recall at k, against enumeration and against the exact metrics."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_expected_sets import classes, examples
from torch.testing import assert_close

from reloss.learning import PredictionBank, fit_surrogate
from reloss.metrics import get_metric, partial_auroc, precision_at_k, recall_at_k
from reloss.surrogates import build
from reloss.surrogates.expected.top import TOP_FEATURES, ExpectedTop, top_features
from reloss.surrogates.registry import load

AT_THE_TOP = ["partial_auroc", "precision_at_10", "recall_at_10"]
EITHER = pytest.mark.parametrize("make", [examples, classes])


def surrogate_of_seed(seed=0, **options):
    torch.manual_seed(seed)
    return ExpectedTop(**options)


def sorted_classes(score, target):
    return (score[target == value].sort(descending=True).values for value in (1, 0))


@pytest.mark.parametrize("k", [1, 3, 7, 20])
def test_expected_hits_equal_the_enumeration_of_all_comparisons(k):
    scores, targets = (part[2:].double() for part in examples(n=6))
    for features, score, target in zip(top_features(scores, targets == 1, k=k), scores, targets, strict=True):
        positives, negatives = sorted_classes(score, target)
        pairs = [(s, k - 1 - place) for place, s in enumerate(positives[:k])]
        chances = [torch.sigmoid(s - negatives[rival]) if rival < len(negatives) else 1.0 for s, rival in pairs]
        hits = 0.0
        for outcome in product((0, 1), repeat=len(chances)):
            p = torch.tensor([float(p if won else 1 - p) for p, won in zip(chances, outcome, strict=True)]).prod()
            hits += float(p) * sum(outcome)
        assert features[2:4].exp().tolist() == pytest.approx([hits / min(k, 9), hits / len(positives)], rel=1e-5)
        assert float(features[4]) == pytest.approx(sum(torch.as_tensor(p).log() for p in chances) / len(chances))


@pytest.mark.parametrize("max_fpr", [0.1, 0.4, 0.75])
def test_expected_area_equals_the_enumeration_of_all_comparisons(max_fpr):
    scores, targets = (part[2:5].double() for part in examples(b=7))
    for features, score, target in zip(top_features(scores, targets == 1, max_fpr), scores, targets, strict=True):
        positives, negatives = sorted_classes(score, target)
        counted = max_fpr * len(negatives)
        pairs = [(s, n, min(max(counted - j, 0), 1)) for s in positives for j, n in enumerate(negatives)]
        pairs = [(torch.sigmoid(s - n), share) for s, n, share in pairs if share > 0]
        area = 0.0
        for outcome in product((0, 1), repeat=len(pairs)):
            p = torch.stack([p if won else 1 - p for (p, _), won in zip(pairs, outcome, strict=True)]).prod()
            area += float(p) * sum(share * won for (_, share), won in zip(pairs, outcome, strict=True))
        total = len(positives) * counted
        assert float(features[0].exp()) == pytest.approx(area / total, rel=1e-6)
        assert float(features[1]) == pytest.approx(sum(share * float(p.log()) for p, share in pairs) / total, rel=1e-6)


@pytest.mark.parametrize(("max_fpr", "k"), [(0.1, 10), (0.3, 2), (1.0, 5)])
def test_with_large_differences_parts_are_exact(max_fpr, k):
    scores, targets = (part[2:] for part in examples(n=30, b=25))
    area, _, precision, recall, _ = top_features(1e5 * scores, targets == 1, max_fpr, k).exp().unbind(-1)
    smallest = max_fpr / 2
    assert_close((1 + (area - smallest) / (1 - smallest)) / 2, partial_auroc(scores, targets, max_fpr=max_fpr))
    assert_close(precision, precision_at_k(scores, targets, k).clamp(min=1e-40), atol=1e-5, rtol=1e-5)
    assert_close(recall, recall_at_k(scores, targets, k), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("metric", AT_THE_TOP)
@pytest.mark.parametrize("b", [5, 25])
def test_expected_metric_of_certain_predictions_is_the_metric(metric, b):
    """Also where a class is empty, and where there are fewer examples than places."""
    scores, targets = examples(n=40, b=b, spread=1e5)
    loss = ExpectedTop(metric=metric).per_item(scores, targets)
    assert_close(1 - loss, get_metric(metric)(scores, targets), atol=1e-4, rtol=0)


@given(st.integers(0, 10_000), st.integers(1, 16), st.floats(0.1, 30), st.floats(0, 20))
@settings(max_examples=100, deadline=None)
def test_no_feature_falls_as_a_prediction_gets_better(seed, b, spread, change):
    scores, targets = examples(seed, 8, b, spread)
    generator = torch.Generator().manual_seed(seed)
    changed = torch.rand(scores.shape, generator=generator) < 0.4
    better = scores + change * changed * (2 * targets - 1)
    one, other = (top_features(each.double(), targets == 1, 0.3, 4) for each in (scores, better))
    assert (other - one).min() >= -1e-9, TOP_FEATURES[int((other - one).amin(0).argmin())]


@EITHER
@pytest.mark.parametrize("metric", [None, *AT_THE_TOP])
@pytest.mark.parametrize("b", [1, 9])
def test_loss_and_gradient_stay_finite(make, metric, b):
    outputs, targets = make(b=b)
    surrogate = surrogate_of_seed(metric=metric)
    for size in (0.0, 1.0, 1e4, torch.inf):
        sized = torch.where(outputs == 0, 0, outputs * size).nan_to_num(nan=0, posinf=torch.inf, neginf=-torch.inf)
        sized = sized.detach().requires_grad_()
        losses = surrogate.per_item(sized, targets)
        (gradients,) = torch.autograd.grad(losses.sum(), sized)
        assert torch.isfinite(losses).all()
        assert torch.isfinite(gradients).all()


@EITHER
def test_half_precision_gives_a_float32_loss(make):
    outputs, targets = make()
    for surrogate in (surrogate_of_seed(), ExpectedTop(metric="precision_at_10")):
        with torch.autocast("cpu", torch.bfloat16):
            losses = surrogate.per_item(outputs.bfloat16(), targets)
        assert losses.dtype == torch.float32
        assert_close(losses, surrogate.per_item(outputs.bfloat16().float(), targets), rtol=0, atol=0)


@EITHER
def test_gradient_equals_finite_differences(make):
    outputs, targets = make(b=4)
    surrogate, inputs = surrogate_of_seed().double(), (outputs / 3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda o: surrogate.per_item(o, targets), inputs)


def test_no_items_give_no_losses():
    assert ExpectedTop().per_item(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)


def test_the_kind_top_learns_from_a_metric_of_the_top_and_loads(tmp_path):
    generator = torch.Generator().manual_seed(0)
    bank = PredictionBank.create(tmp_path / "bank", item_size=64)
    for step in range(80):
        targets = (torch.rand(64, generator=generator) < 1 / 8).long()
        bank.append(4 * step / 80 * targets + torch.randn(64, generator=generator), targets, step)
    bank.finish()
    torch.manual_seed(0)
    surrogate = build("top", (), features="expected")
    result = fit_surrogate(surrogate, bank, "partial_auroc", steps=40, items=64, mixture="recorded")
    assert result.spearman > 0.85
    surrogate.save_pretrained(tmp_path / "loss")
    assert isinstance(load(tmp_path / "loss"), ExpectedTop)


def test_every_expected_metric_is_a_metric():
    assert all(get_metric(name).__name__ == name for name in ExpectedTop.EXPECTED)
