"""Expected counts and ranks against the enumeration of all outcomes, and the surrogate over them."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor
from torch.testing import assert_close

from reloss.learning import PredictionBank, fit_surrogate
from reloss.learning.items import Items, shifted
from reloss.metrics import get_metric
from reloss.ranking import spearman
from reloss.surrogates.base import LARGEST
from reloss.surrogates.expected.sets import (
    FEATURES,
    ExpectedSets,
    count_features,
    log_expected_counts,
    rank_features,
    sets_of,
)
from reloss.surrogates.sets import SetReLoss, log_odds

OF_COUNTS = ["binary_f1", "binary_f2", "binary_iou", "binary_balanced_accuracy", "binary_kappa", "mcc"]
OF_SCORES = [*OF_COUNTS, "auroc", "average_precision"]
OF_CLASSES = ["macro_f1", "balanced_accuracy"]


def examples(seed: int = 0, n: int = 6, b: int = 9, spread: float = 2.0) -> tuple[Tensor, Tensor]:
    """Return scores and labels; the first item has no positive, the second no negative."""
    generator = torch.Generator().manual_seed(seed)
    targets = (torch.rand(n, b, generator=generator) < 0.4).long()
    targets[0], targets[1] = 0, 1
    return spread * (torch.randn(n, b, generator=generator) + targets - 0.5), targets


def classes(n: int = 5, b: int = 12, c: int = 4) -> tuple[Tensor, Tensor]:
    """Return logits and classes; the last class never occurs, and the first item has one class only."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(c - 1, (n, b), generator=generator)
    targets[0] = 2
    return 3 * torch.randn(n, b, c, generator=generator), targets


def surrogate_of_seed(seed: int = 0, **options) -> ExpectedSets:
    torch.manual_seed(seed)
    return ExpectedSets(**options)


EITHER = pytest.mark.parametrize("make", [examples, classes])


@pytest.mark.parametrize("b", [1, 2, 6])
def test_expected_counts_equal_the_enumeration_of_all_predictions(b):
    scores, targets = examples(n=5, b=b)
    p, positive = scores.double().sigmoid(), targets == 1
    expected = torch.zeros(4, len(scores), dtype=torch.float64)
    for outcome in product((False, True), repeat=b):
        predicted = torch.tensor(outcome)
        probability = torch.where(predicted, p, 1 - p).prod(-1)
        pairs = ((predicted, positive), (predicted, ~positive), (~predicted, positive), (~predicted, ~positive))
        expected += torch.stack([probability * (one & other).sum(-1) for one, other in pairs])
    assert_close(torch.stack(log_expected_counts(scores, positive)).exp(), expected.float())


def test_count_features_are_ratios_of_expected_counts():
    scores, targets = (part[2:] for part in examples())
    p, positive = scores.sigmoid(), targets == 1
    tp, fp = (p * positive).sum(-1), (p * ~positive).sum(-1)
    fn, tn = positive.sum(-1) - tp, (~positive).sum(-1) - fp
    ratios = (tp / (tp + fp), tp / (tp + fn), 2 * tp / (2 * tp + fp + fn), tn / (tn + fp), tn / (tn + fn))
    likelihoods = ((p.log() * positive).sum(-1) / (tp + fn), ((1 - p).log() * ~positive).sum(-1) / (tn + fp))
    shares = ((tp + fn) / 9, (tn + fp) / 9)
    expected = torch.stack((*torch.stack(ratios).log(), *likelihoods, *shares), -1)
    assert_close(count_features(scores, positive), expected)


def test_rank_features_equal_loops():
    scores, targets = (part[2:].double() for part in examples())
    for features, score, target in zip(rank_features(scores, targets == 1), scores, targets, strict=True):
        positives = sorted(score[target == 1].tolist(), reverse=True)
        negatives = score[target == 0]
        wins = torch.stack([torch.sigmoid(s - negatives) for s in positives])
        above = [float(torch.sigmoid(negatives - s).sum()) for s in positives]
        precision = scores.new_tensor([place / (place + count) for place, count in enumerate(above, 1)]).mean()
        assert_close(features, torch.stack((wins.mean().log(), wins.log().mean(), precision.log())))


def test_with_large_differences_ranks_are_exact():
    scores, targets = (part[2:] for part in examples())
    features = rank_features(1e5 * scores, targets == 1).exp()
    pairs = list(zip(targets, scores, strict=True))
    assert features[:, 0].tolist() == pytest.approx([roc_auc_score(*pair) for pair in pairs])
    assert features[:, 2].tolist() == pytest.approx([average_precision_score(*pair) for pair in pairs])


@pytest.mark.parametrize("metric", OF_SCORES)
def test_expected_metric_of_certain_predictions_is_the_metric(metric):
    """Also where a class is empty, or nothing is predicted positive."""
    scores, targets = examples(n=40, b=5, spread=1e4)
    scores[2] -= 1e5
    loss = ExpectedSets(metric=metric).per_item(scores, targets)
    assert_close(1 - loss, get_metric(metric)(scores, targets), atol=1e-4, rtol=0)


@pytest.mark.parametrize("metric", OF_COUNTS)
def test_expected_metric_is_the_metric_of_the_expected_counts(metric):
    """Two scores of one value and its opposite have p and 1 - p: repeated, they become whole counts."""
    scores = torch.tensor([2.0, 1.0, -0.5, -1.0, -2.0]).repeat(2, 1)
    targets = torch.tensor([[1, 0, 1, 0, 0], [1, 0, 0, 0, 0]])
    total = 100_000
    p = (scores.sigmoid() * total).round().long()
    predictions = torch.cat([torch.arange(total) < count for count in p.flatten()]).view(2, -1).float() - 0.5
    expected = get_metric(metric)(predictions, targets.repeat_interleave(total, -1))
    assert_close(1 - ExpectedSets(metric=metric).per_item(scores, targets), expected, atol=1e-4, rtol=0)


def test_expected_balanced_accuracy_is_the_mean_probability_of_each_class():
    outputs, targets = classes()
    p = outputs.softmax(-1).gather(-1, targets[..., None])[..., 0]
    expected = [
        torch.stack([p[n][targets[n] == c].mean() for c in targets[n].unique()]).mean() for n in range(len(outputs))
    ]
    assert_close(1 - ExpectedSets(metric="balanced_accuracy").per_item(outputs, targets), torch.stack(expected))


def test_each_class_is_compared_with_the_rest():
    outputs, targets = classes()
    for loss in (surrogate_of_seed(), ExpectedSets(metric="macro_f1")):
        odds = log_odds(outputs[1])
        expected = [loss.per_item(odds[None, :, c], (targets[1] == c)[None].long()) for c in targets[1].unique()]
        assert_close(loss.per_item(outputs, targets)[1], torch.stack(expected).mean())


@given(st.integers(0, 10_000), st.integers(1, 12), st.floats(0.1, 30), st.floats(0, 20))
@settings(max_examples=100, deadline=None)
def test_no_feature_falls_as_a_prediction_gets_better(seed, b, spread, change):
    scores, targets = examples(seed, 8, b, spread)
    generator = torch.Generator().manual_seed(seed)
    changed = torch.rand(scores.shape, generator=generator) < 0.4
    better = scores + change * changed * (2 * targets - 1)
    surrogate = ExpectedSets()
    rise = surrogate.features(better.double(), targets) - surrogate.features(scores.double(), targets)
    assert rise.min() >= -1e-9, FEATURES[int(rise.flatten(0, 1).amin(0).argmin())]


@pytest.mark.parametrize("seed", range(3))
def test_a_learned_loss_falls_as_predictions_get_better(seed):
    surrogate = surrogate_of_seed(seed).requires_grad_(False)
    scores, targets = examples()
    scores.requires_grad_()
    (gradients,) = torch.autograd.grad(surrogate.per_item(scores, targets).sum(), scores)
    assert gradients[targets == 1].max() < 0
    assert gradients[targets == 0].min() > 0


@EITHER
@pytest.mark.parametrize("metric", [None, "binary_f1", "mcc", "binary_kappa", "auroc", "average_precision"])
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


def test_certain_mistakes_have_a_gradient():
    scores, targets = examples(spread=1)
    scores = (-1e4 * (2.0 * targets - 1)).requires_grad_()
    (gradients,) = torch.autograd.grad(surrogate_of_seed().per_item(scores, targets).sum(), scores)
    assert gradients[targets == 1].max() < -1e-4
    assert gradients[targets == 0].min() > 1e-4


@EITHER
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_a_float32_loss(make, dtype):
    outputs, targets = make()
    for surrogate in (surrogate_of_seed(), ExpectedSets(metric="mcc")):
        with torch.autocast("cpu", torch.bfloat16):
            losses = surrogate.per_item(outputs.to(dtype), targets)
        assert losses.dtype == torch.float32
        assert_close(losses, surrogate.per_item(outputs.to(dtype).float(), targets), rtol=0, atol=0)


@EITHER
def test_gradient_equals_finite_differences(make):
    outputs, targets = make(b=4)
    surrogate, inputs = surrogate_of_seed().double(), (outputs / 3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda o: surrogate.per_item(o, targets), inputs)
    for formula in ExpectedSets.EXPECTED.values():
        assert torch.autograd.gradcheck(lambda o, formula=formula: formula(surrogate.features(o, targets)), inputs)


@EITHER
def test_order_of_examples_does_not_matter(make):
    outputs, targets = make()
    order = torch.randperm(outputs.shape[1], generator=torch.Generator().manual_seed(1))
    surrogate = surrogate_of_seed()
    assert_close(surrogate.per_item(outputs[:, order], targets[:, order]), surrogate.per_item(outputs, targets))


def test_no_items_give_no_losses():
    assert ExpectedSets().per_item(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)


def test_sets_of_scores_and_of_classes():
    scores, positive = sets_of(*examples())
    assert scores.shape == positive.shape == (6, 1, 9)
    scores, positive = sets_of(*classes())
    assert scores.shape == positive.shape == (5, 4, 12)
    assert (positive.sum(1) == 1).all()
    assert scores.abs().max() < LARGEST


def test_ordinary_loss_and_checks_are_those_of_sets():
    assert_close(ExpectedSets.ordinary_loss(*examples()), SetReLoss.ordinary_loss(*examples()))
    with pytest.raises(ValueError, match="0 to 1"):
        ExpectedSets().per_item(torch.zeros(2, 3), torch.full((2, 3), 2))
    with pytest.raises(ValueError, match="no formula for metric ndcg"):
        ExpectedSets(metric="ndcg")


def test_every_expected_metric_is_a_metric():
    assert [*OF_SCORES, *OF_CLASSES] == sorted(ExpectedSets.EXPECTED, key=[*OF_SCORES, *OF_CLASSES].index)
    assert all(get_metric(name).__name__ == name for name in ExpectedSets.EXPECTED)


@pytest.mark.parametrize("offset", [0.0, 20.0])
def test_a_fit_ranks_items_also_of_a_model_that_predicts_no_positive(tmp_path, offset):
    """With the larger offset, F1 is 0 for every recorded item, and only shifted items show what to learn."""
    generator = torch.Generator().manual_seed(0)
    bank = PredictionBank.create(tmp_path / "bank", item_size=64)
    for step in range(120):
        targets = (torch.rand(64, generator=generator) < 1 / 8).long()
        scores = 4 * step / 120 * targets + torch.randn(64, generator=generator) - 1 - offset
        bank.append(scores, targets, step)
    bank.finish()
    torch.manual_seed(0)
    result = fit_surrogate(ExpectedSets(), bank, "binary_f1", mixture="thresholds", steps=60, items=64)
    items = shifted(Items(*bank.items(torch.arange(len(bank)))), generator)
    metric = get_metric("binary_f1")(*items[:2])
    learned, ordinary = (
        float(spearman(-loss(*items[:2]), metric)) for loss in (result.surrogate.per_item, ExpectedSets.ordinary_loss)
    )
    assert learned > 0.75
    assert learned > ordinary + 0.1
