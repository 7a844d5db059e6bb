import math
from itertools import permutations

import pytest
import torch
from torch.testing import assert_close

from reloss.metrics import accuracy, top5_accuracy, topk_accuracy
from reloss.surrogates.expected.classification import ExpectedClassification, classification_features, log_top_k


def logits(classes=7, scale=1.5, seed=0):
    """Return logits [1, 12, C] in float64 and targets [1, 12]."""
    generator = torch.Generator().manual_seed(seed)
    outputs = scale * torch.randn(1, 12, classes, generator=generator, dtype=torch.float64)
    return outputs, torch.randint(classes, (1, 12), generator=generator)


def draws_by_hand(outputs, target, k):
    """Return the probability that the target is among k classes drawn without replacement, over all orders."""
    p, total = outputs.softmax(-1).tolist(), 0.0
    for order in permutations(range(len(p)), k):
        if target in order:
            left, probability = 1.0, 1.0
            for drawn in order:
                probability *= p[drawn] / left
                left -= p[drawn]
            total += probability
    return total


def path_by_hand(outputs, target, k):
    """Return the probability of a hit within k draws if each miss takes the strongest remaining rival."""
    rivals, hit, missed = sorted((v for c, v in enumerate(outputs.tolist()) if c != target), reverse=True), 0.0, 1.0
    for _ in range(k):
        weight = math.exp(outputs[target])
        p = weight / (weight + sum(math.exp(value) for value in rivals))
        hit, missed, rivals = hit + missed * p, missed * (1 - p), rivals[1:]
    return hit


@pytest.mark.parametrize("k", [1, 2, 3, 5, 7, 9])
def test_top_k_equals_its_definition(k):
    outputs, targets = logits()
    expected = [path_by_hand(o, t, k) for o, t in zip(outputs[0], targets[0].tolist(), strict=True)]
    assert log_top_k(outputs, targets, k)[0].exp().tolist() == pytest.approx(expected)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_top_k_bounds_the_exact_probability_of_all_orders(k):
    outputs, targets = logits(classes=6)
    exact = [draws_by_hand(o, t, k) for o, t in zip(outputs[0], targets[0].tolist(), strict=True)]
    smooth, exact = log_top_k(outputs, targets, k)[0].exp(), torch.tensor(exact, dtype=torch.float64)
    assert (smooth > exact - 1e-9).all()
    assert (smooth - exact).abs().max() < (1e-6 if k == 1 else 0.1)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_of_a_sure_model_is_the_metric(k):
    outputs, targets = logits()
    assert_close(log_top_k(5000 * outputs, targets, k).exp().mean(-1).float(), topk_accuracy(outputs, targets, k))


def test_features_follow_their_definitions():
    outputs, targets = logits()
    log_p, log_beats_rival, log_top_5 = classification_features(outputs, targets).unbind(-1)
    assert_close(-log_p.mean(-1), ExpectedClassification.ordinary_loss(outputs, targets))
    assert_close(log_top_5, log_top_k(outputs, targets, 5))
    for number, target in enumerate(targets[0].tolist()):
        largest = max(value for c, value in enumerate(outputs[0, number].tolist()) if c != target)
        margin = outputs[0, number, target].item() - largest
        assert log_beats_rival[0, number].item() == pytest.approx(-math.log1p(math.exp(-margin)))


def test_features_rise_with_the_target_and_fall_with_rivals():
    outputs, targets = logits()
    outputs.requires_grad_()
    own = torch.nn.functional.one_hot(targets, outputs.shape[-1]).bool()
    for feature in classification_features(outputs, targets).unbind(-1):
        (gradient,) = torch.autograd.grad(feature.sum(), outputs, retain_graph=True)
        assert (gradient[own] > 0).all()
        assert (gradient[~own] <= 1e-12).all()


def test_gradients_equal_finite_differences():
    outputs, targets = logits()
    assert torch.autograd.gradcheck(
        lambda values: classification_features(values, targets), (outputs.requires_grad_(),)
    )


def test_expected_metrics_are_means_over_examples():
    outputs, targets = logits()
    p = outputs.softmax(-1).gather(-1, targets[..., None]).mean().float()
    loss = ExpectedClassification(metric="accuracy", scale=3.0)
    assert_close(loss.per_item(outputs, targets), 3 * (1 - p)[None])
    sure = 5000 * outputs.float()
    assert_close(ExpectedClassification(metric="accuracy").per_item(sure, targets), 1 - accuracy(sure, targets))
    assert_close(
        ExpectedClassification(metric="top5_accuracy").per_item(sure, targets), 1 - top5_accuracy(sure, targets)
    )


@pytest.mark.parametrize("classes", [2, 5, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("metric", [None, "accuracy", "top5_accuracy"])
def test_extreme_inputs_give_finite_losses(classes, dtype, metric):
    surrogate = ExpectedClassification(metric=metric)
    outputs, targets = logits(classes)
    infinite = outputs.clone()
    infinite[..., 0] = -math.inf
    for extreme in (1e4 * outputs.clamp(-1, 1), -1e4 * outputs.clamp(-1, 1), torch.zeros_like(outputs), infinite):
        extreme = extreme.to(dtype).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = surrogate.per_item(extreme, targets)
        losses.sum().backward()
        assert losses.dtype == torch.float32
        assert torch.isfinite(losses).all()
        assert torch.isfinite(extreme.grad).all()


def test_errors_name_the_problem():
    outputs, targets = logits()
    with pytest.raises(ValueError, match="no formula for metric f1"):
        ExpectedClassification(metric="f1")
    with pytest.raises(ValueError, match="integer dtype"):
        ExpectedClassification(metric="accuracy").per_item(outputs, targets.float())
    with pytest.raises(ValueError, match="whole numbers from 0 to 6"):
        ExpectedClassification(metric="accuracy").check(outputs, targets + 1)
