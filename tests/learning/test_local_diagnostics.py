"""Local diagnostics, with losses whose relation to the metric is known."""

import pytest
import torch

from reloss.learning.items import Items
from reloss.learning.local_diagnostics import CHANGES, EXCHANGED, ITEMS, LocalChanges, preferred_positives
from reloss.learning.measure import Measure
from reloss.metrics import MASKED


def total(outputs, targets):
    """A smooth metric: the sum of the outputs."""
    return outputs.flatten(1).sum(-1)


def items(count=12, size=20, width=3):
    generator = torch.Generator().manual_seed(0)
    return Items(torch.randn(count, size, width, generator=generator), torch.arange(size).expand(count, size))


def changes(metric=total, of=None):
    return LocalChanges(of or items(), Measure(metric, True), seed=0)


def test_a_loss_that_follows_the_metric_exactly():
    figures = changes().diagnose(lambda outputs, targets: -total(outputs, targets), "_exact")
    assert figures["local_spearman_exact"] == pytest.approx(1)
    assert figures["local_cosine_exact"] == pytest.approx(1, abs=1e-4)


def test_a_loss_upside_down():
    figures = changes().diagnose(total)
    assert figures["local_spearman"] == pytest.approx(-1)
    assert figures["local_cosine"] == pytest.approx(-1, abs=1e-4)


def test_a_loss_that_does_not_change():
    figures = changes().diagnose(lambda outputs, targets: 0 * total(outputs, targets))
    assert figures == {"local_spearman": 0, "local_spread": 0, "local_cosine": 0}


def test_the_spread_is_the_standard_deviation_of_the_loss():
    local = changes()
    figures = local.diagnose(lambda outputs, targets: -5 * total(outputs, targets))
    assert figures["local_spread"] == pytest.approx(5 * local.metric.std(-1).mean().item(), rel=1e-5)


def test_the_noise_leaves_masked_outputs_alone():
    masked = items()
    masked.outputs[:, :, 2] = MASKED
    local = changes(lambda outputs, targets: outputs[:, :, 0].sum(-1), masked)
    assert (local.changed.outputs[:, :, 2] == MASKED).all()
    assert len(local.changed.outputs) == ITEMS * CHANGES
    difference = local.changed.outputs.view(ITEMS, CHANGES, 20, 3) - masked.outputs[:ITEMS, None]
    assert difference[..., :2].std() == pytest.approx(0.1, rel=0.1)


def test_where_targets_hold_the_prediction_examples_are_exchanged():
    def mean_target(outputs, targets):
        return targets.float().mean(-1)

    of = Items(torch.randn(12, 50, 3), torch.arange(12)[:, None].expand(12, 50))
    local = changes(mean_target, of)
    figures = local.diagnose(lambda outputs, targets: -mean_target(outputs, targets))
    assert figures["local_spearman"] == pytest.approx(1)
    assert "local_cosine" not in figures
    exchanged = local.changed.targets.view(ITEMS, CHANGES, 50) != of.targets[:ITEMS, None]
    assert exchanged.float().mean() == pytest.approx(EXCHANGED * 11 / 12, rel=0.1)


def test_a_metric_that_no_change_alters():
    assert changes(lambda outputs, targets: torch.ones(len(outputs))).diagnose(total) == {}


def test_few_items():
    assert changes(of=items(count=1, size=1)).diagnose(total)["local_spearman"] == pytest.approx(-1)


def rare_scores(shift=0.0):
    generator = torch.Generator().manual_seed(0)
    targets = (torch.rand(16, 64, generator=generator) < 0.1).float()
    return Items(torch.randn(16, 64, generator=generator) + 3 * targets - 1.5 + shift, targets)


@pytest.mark.parametrize("shift", [0.0, 5.0, -5.0])
def test_cross_entropy_prefers_a_third_of_the_positives_whatever_the_shift(shift):
    def cross_entropy(outputs, targets):
        return torch.nn.functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none").mean(-1)

    assert preferred_positives(cross_entropy, rare_scores(shift)) == pytest.approx(0.32, abs=0.1)


def test_a_loss_under_which_predicting_no_positives_is_cheapest():
    assert preferred_positives(lambda outputs, targets: outputs.sigmoid().mean(-1), rare_scores()) == 0
    assert preferred_positives(lambda outputs, targets: -outputs.sigmoid().mean(-1), rare_scores()) > 5
