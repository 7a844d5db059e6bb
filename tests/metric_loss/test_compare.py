"""The comparison trains with every loss, chooses rates on validation data, and pairs seeds."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import f1_score

from reloss import UsageError
from reloss.metric_loss.compare import Comparison


def predictions(quality: float, seed: int, shift: float = 0.0):
    generator = torch.Generator().manual_seed(seed)
    targets = (torch.rand(200, generator=generator) < 0.3).long()
    return quality * (targets - 0.5) + shift + torch.randn(200, generator=generator), targets


def test_scores_are_the_metric_on_test_data(learned):
    def train(loss, seed):
        return predictions(4 if "Mixed" in type(loss).__name__ else 2, seed)

    comparison = learned.compare(train, seeds=3)
    assert list(comparison.scores) == ["ordinary", "expected", "expected + ordinary", "learned", "learned + ordinary"]
    outputs, targets = predictions(2, 1)
    assert comparison.scores["ordinary"][1] == pytest.approx(f1_score(targets, outputs > 0), abs=1e-6)
    assert comparison.best() in ("expected + ordinary", "learned + ordinary")
    difference = comparison.difference("learned + ordinary")
    pairs = [comparison.scores[name] for name in ("learned + ordinary", "ordinary")]
    gaps = [pairs[0][seed] - pairs[1][seed] for seed in range(3)]
    half = stats.t.ppf(0.975, 2) * np.std(gaps, ddof=1) / np.sqrt(3)
    assert difference.mean == pytest.approx(np.mean(gaps))
    assert difference.low == pytest.approx(np.mean(gaps) - half)
    assert comparison.rates == {}


def test_rates_are_chosen_on_validation_data(learned):
    def train(loss, seed, lr):
        best_on_validation, best_on_test = 0.1, 1.0
        return predictions(4 if lr == best_on_validation else 1, seed), predictions(
            4 if lr == best_on_test else 1, seed
        )

    comparison = learned.compare(train, seeds=[5, 7], rates=[0.01, 0.1, 1.0])
    assert set(comparison.rates.values()) == {0.1}
    assert comparison.scores["learned"].keys() == {5, 7}
    assert "learning rate" in comparison.table().headers


def test_a_threshold_is_tuned_on_validation_data(learned):
    comparison = learned.compare(
        lambda loss, seed: [predictions(3, seed + part, shift=-4) for part in (0, 50)], seeds=3
    )
    assert comparison.difference("ordinary, tuned threshold").low > 0.3
    assert "ordinary, tuned threshold" in str(comparison)


def test_the_table_has_a_row_for_each_loss(learned):
    lines = str(learned.compare(lambda loss, seed: predictions(2, seed), seeds=2)).splitlines()
    assert lines[0].split("  ")[0] == "loss"
    assert len(lines) == 1 + 5 + 1
    assert lines[-1] == "2 seeds; paired differences with 95 % intervals"


def test_lower_can_be_better():
    scores = {"ordinary": {0: 2.0, 1: 3.0}, "learned": {0: 1.0, 1: 2.5}}
    assert Comparison(scores, {}, "error", higher_is_better=False).best() == "learned"


def test_wrong_calls_are_explained(learned):
    with pytest.raises(UsageError, match="train takes lr, so pass the learning rates"):
        learned.compare(lambda loss, seed, lr: predictions(2, seed))
    with pytest.raises(UsageError, match="train does not take lr"):
        learned.compare(lambda loss, seed: predictions(2, seed), rates=[0.1])
    with pytest.raises(UsageError, match="seeds is empty or 0; pass at least one"):
        learned.compare(lambda loss, seed: predictions(2, seed), seeds=0)
    with pytest.raises(UsageError, match="train must return"):
        learned.compare(lambda loss, seed: 0.5, seeds=1)
    with pytest.raises(UsageError, match="validation data as well"):
        learned.compare(lambda loss, seed, lr: predictions(2, seed), rates=[0.1, 0.2])


def test_a_single_rate_needs_no_validation_data_and_a_default_no_rates(learned):
    seen = []

    def train(loss, seed, lr=0.5):
        seen.append(lr)
        return predictions(2, seed)

    assert set(learned.compare(train, seeds=2, rates=[0.1]).rates.values()) == {0.1}
    assert set(seen) == {0.1}
    seen.clear()
    assert learned.compare(train, seeds=2).rates == {}
    assert set(seen) == {0.5}
