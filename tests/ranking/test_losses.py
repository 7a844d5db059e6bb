"""Losses of rankings: scikit-learn and SciPy in the hard limit, derivatives, modules, and wrong arguments."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, ndcg_score
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from reloss.ranking import (
    AveragePrecisionLoss,
    NDCGLoss,
    SpearmanLoss,
    TopKCrossEntropyLoss,
    average_precision_loss,
    ndcg_loss,
    soft_top_k_mask,
    spearman_loss,
    top_k_cross_entropy,
)

GENERATOR = torch.Generator().manual_seed(0)
SCORES = torch.randn(4, 12, dtype=torch.float64, generator=GENERATOR)
GAINS = torch.randint(4, (4, 12), generator=GENERATOR).double()
POSITIVE = GAINS > 2
CLASSES = torch.tensor([3, 0, 11, 5])
HARD: dict[str, Any] = {"temperature": 1e-6, "reduction": "none"}


def test_hard_limits_equal_reference_implementations() -> None:
    rows = list(zip(SCORES.numpy(), GAINS.numpy(), POSITIVE.numpy(), strict=True))
    expected = {
        "spearman": [spearmanr(scores, gains).statistic for scores, gains, _ in rows],
        "ndcg": [ndcg_score(gains[None], scores[None]) for scores, gains, _ in rows],
        "ndcg@3": [ndcg_score(gains[None], scores[None], k=3) for scores, gains, _ in rows],
        "average precision": [average_precision_score(positive, scores) for scores, _, positive in rows],
    }
    losses = {
        "spearman": spearman_loss(SCORES, GAINS, **HARD),
        "ndcg": ndcg_loss(SCORES, GAINS, **HARD),
        "ndcg@3": ndcg_loss(SCORES, GAINS, k=3, **HARD),
        "average precision": average_precision_loss(SCORES, POSITIVE, **HARD),
    }
    for name, loss in losses.items():
        assert_close(1 - loss, torch.tensor(expected[name], dtype=torch.float64), rtol=0, atol=1e-6)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "spearman": lambda scores, **options: spearman_loss(scores, GAINS, **options),
    "ndcg": lambda scores, **options: ndcg_loss(scores, GAINS, k=3, **options),
    "average precision": lambda scores, **options: average_precision_loss(scores, POSITIVE, **options),
    "top k": lambda scores, **options: top_k_cross_entropy(scores, CLASSES, {1: 0.3, 4: 0.7}, **options),
}


@pytest.mark.parametrize("name", LOSSES)
def test_first_and_second_derivatives(name: str) -> None:
    scores = SCORES.clone().requires_grad_()
    assert gradcheck(lambda scores: LOSSES[name](scores, temperature=0.7), scores)
    assert gradgradcheck(lambda scores: LOSSES[name](scores, temperature=0.7), scores)


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_descent_lowers_the_loss(name: str) -> None:
    scores = SCORES.float().requires_grad_()
    before = LOSSES[name](scores, **({} if name == "top k" else HARD)).mean().item()
    optimizer = torch.optim.Adam([scores], lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        LOSSES[name](scores).backward()
        optimizer.step()
    assert LOSSES[name](scores, **({} if name == "top k" else HARD)).mean().item() < 0.3 * before


@pytest.mark.parametrize("name", LOSSES)
def test_reductions_and_dtypes(name: str) -> None:
    losses = LOSSES[name](SCORES, reduction="none")
    assert losses.shape == (4,)
    assert_close(LOSSES[name](SCORES), losses.mean())
    assert_close(LOSSES[name](SCORES, reduction="sum"), losses.sum())
    with pytest.raises(ValueError, match="unknown reduction 'max'; valid: mean, sum, none"):
        LOSSES[name](SCORES, reduction="max")
    if name != "spearman":  # its targets are in float64
        assert LOSSES[name](SCORES.bfloat16()).dtype == torch.float32
    assert_close(LOSSES[name](SCORES.float()).double(), losses.mean(), rtol=0, atol=1e-5)


def test_a_row_without_gains_or_positives_costs_nothing() -> None:
    scores = SCORES.clone().requires_grad_()
    for loss in (ndcg_loss, average_precision_loss):
        value = loss(scores, torch.zeros_like(scores), reduction="none")
        assert value.tolist() == [0.0] * 4
        assert torch.autograd.grad(value.sum(), scores)[0].abs().max() == 0


@pytest.mark.parametrize("method", ["laplace", "bitonic", "odd_even"])
def test_top_k_cross_entropy_is_the_logarithm_of_the_mask(method: Any) -> None:
    options: dict[str, Any] = {"temperature": 1.0} if method == "laplace" else {}
    mask = soft_top_k_mask(SCORES, 3, method=method, **options)
    expected = -mask.gather(-1, CLASSES[:, None]).log().mean()
    assert_close(top_k_cross_entropy(SCORES, CLASSES, 3, method=method, **options), expected)


def test_top_k_cross_entropy_of_distant_classes_is_finite_with_the_gradient_of_cross_entropy() -> None:
    logits = torch.tensor([[0.0, 3000.0, 10.0, -3000.0]], requires_grad=True)
    for k, expected in ((1, 6000 - 1495.0), (2, 3000 + math.log(2) + 5)):
        loss = top_k_cross_entropy(logits, torch.tensor([3]), k)
        assert loss.item() == pytest.approx(expected, abs=2)
        assert torch.autograd.grad(loss, logits)[0][0, 3].item() == pytest.approx(-1, abs=1e-3)
    assert cross_entropy(logits, torch.tensor([3])).item() == pytest.approx(6000, abs=2)


def test_modules_hold_the_options_of_their_functions() -> None:
    for module, function, targets, options in (
        (SpearmanLoss, spearman_loss, GAINS, {"method": "bitonic", "steepness": 3.0}),
        (NDCGLoss, ndcg_loss, GAINS, {"k": 4}),
        (AveragePrecisionLoss, average_precision_loss, POSITIVE, {"temperature": 0.3}),
        (TopKCrossEntropyLoss, top_k_cross_entropy, CLASSES, {"k": {1: 0.5, 2: 0.5}}),
    ):
        assert_close(module(**options)(SCORES, targets), function(SCORES, targets, **options))
    assert str(NDCGLoss(k=4)) == "NDCGLoss(k=4)"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ndcg_loss(SCORES, -GAINS), "gains must not be negative"),
        (lambda: ndcg_loss(SCORES, GAINS, k=13), "k must be an integer from 1 to n = 12, not 13"),
        (lambda: average_precision_loss(SCORES, GAINS), "targets must be 0 or 1"),
        (lambda: top_k_cross_entropy(SCORES, CLASSES, 12), r"k must be from 1 to C - 1 = 11, not \[12\]"),
        (lambda: top_k_cross_entropy(SCORES, CLASSES, {1: 0.5}), "the weights of k must be positive and sum to 1"),
        (lambda: top_k_cross_entropy(SCORES, CLASSES + 3, 2), "targets must be classes below 12"),
        (lambda: top_k_cross_entropy(SCORES, CLASSES[:3], 2), r"one for each row \[4\]"),
    ],
)
def test_wrong_arguments_raise(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
