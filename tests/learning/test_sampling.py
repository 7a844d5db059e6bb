import pytest
import torch
from torch.testing import assert_close

from reloss import ClassificationReLoss
from reloss.learning import LearnOptions
from reloss.learning.fit import Fit
from reloss.learning.measure import Measure
from reloss.learning.options import MIXTURES
from reloss.learning.sampling import split_counts, split_items
from reloss.metrics import PerItem, accuracy
from reloss.surrogates.options import FEATURES, PRESETS


@pytest.mark.parametrize("total", [1, 2, 7, 8, 64, 255])
@pytest.mark.parametrize("mixture", MIXTURES)
def test_counts_are_in_proportion(total, mixture):
    shares = LearnOptions(mixture=mixture).shares()
    counts = split_counts(total, shares)
    assert sum(counts.values()) == total
    if total >= len(shares):
        assert counts.keys() == shares.keys()
        assert all(abs(counts[name] - total * share) <= 1.5 for name, share in shares.items())


def fit_of(bank, metric, **settings) -> Fit:
    options = LearnOptions(items=32, **settings)
    return Fit(ClassificationReLoss(**PRESETS[FEATURES[options.fidelity]]), bank, Measure(metric, True), options, "cpu")


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("pool", [None, 64])
def test_a_step_draws_items_with_their_metric_and_statistics(improving_bank, mixture, pool):
    fit = fit_of(improving_bank(), accuracy, mixture=mixture, pool=pool)
    for _ in range(2):
        drawn, metric = fit.sampler.draw()
        assert drawn.outputs.shape == (32, 32, 5)
        assert_close(metric, accuracy(*drawn[:2]))
        assert_close(drawn.statistics, fit.surrogate.statistics(drawn.outputs), rtol=0, atol=0)


def test_a_step_draws_from_the_pool_and_from_the_bank(improving_bank):
    bank = improving_bank()
    fit = fit_of(bank, accuracy, mixture={"recorded": 1, "noisy": 2, "tempered": 1}, pool=30)
    assert {name: len(metric) for name, (_, metric) in fit.sampler.pool.items()} == {"noisy": 20, "tempered": 10}
    drawn = torch.cat([fit.sampler.draw()[0].outputs for _ in range(10)])
    assert len(drawn.unique(dim=0)) <= 30 + len(bank) - len(fit.validation)
    held_out = fit.validation.recorded.items.outputs
    assert not (drawn[:, None, 0, 0] == held_out[None, :, 0, 0]).any()


def test_a_metric_by_item_uses_a_pool_decided_by_the_seed(improving_bank):
    bank = improving_bank()

    def metric(outputs, targets):
        return (outputs.argmax(-1) == targets).float().mean()

    first, second = (fit_of(bank, PerItem(metric)).sampler.pool for _ in range(2))
    assert {name: len(values) for name, (_, values) in first.items()} == {"relabelled": 1024}
    assert torch.equal(first["relabelled"].items.outputs, second["relabelled"].items.outputs)
    assert torch.equal(first["relabelled"].metric, second["relabelled"].metric)
    assert fit_of(bank, accuracy).sampler.pool is None
    assert len(fit_of(bank, PerItem(metric), pool=8).sampler.pool["relabelled"].metric) == 8


def test_held_out_items_are_not_learned_from():
    learned_from, held_out = split_items(100, LearnOptions())
    assert len(held_out) == 20
    assert sorted([*learned_from.tolist(), *held_out.tolist()]) == list(range(100))
    assert held_out.tolist() != split_items(100, LearnOptions(seed=1))[1].tolist()
    assert len(split_items(100_000, LearnOptions())[1]) == 1024
