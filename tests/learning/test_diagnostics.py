import pytest
import torch
from scipy.stats import kendalltau, spearmanr

from reloss import ClassificationReLoss
from reloss.learning.diagnostics import loss_curve, rank_checkpoints
from reloss.metrics import accuracy


def checkpoints(seed, epochs=20, examples=64, classes=5):
    """Predictions that get better with the epoch, for targets that are the same for every seed."""
    targets = torch.randint(classes, (examples,), generator=torch.Generator().manual_seed(0))
    noise = torch.randn(epochs, examples, classes, generator=torch.Generator().manual_seed(seed))
    margin = torch.linspace(0, 3, epochs)[:, None, None] * torch.nn.functional.one_hot(targets, classes)
    return noise + margin, targets.expand(epochs, -1)


def test_correlations_are_scipys_over_all_runs_and_over_late_checkpoints():
    runs = [checkpoints(1), checkpoints(2, epochs=35)]
    found = rank_checkpoints(ClassificationReLoss.ordinary_loss, accuracy, runs)
    assert (found.checkpoints, found.runs) == (55, 2)
    for late in (False, True):
        names = ("spearman_late", "kendall_late") if late else ("spearman_checkpoints", "kendall_checkpoints")
        kept = [(o[len(o) // 2 :], t[len(t) // 2 :]) if late else (o, t) for o, t in runs]
        losses = torch.cat([ClassificationReLoss.ordinary_loss(*run) for run in kept])
        values = torch.cat([accuracy(*run) for run in kept])
        expected = spearmanr(-losses, values).statistic, kendalltau(-losses, values).statistic
        assert [getattr(found, name) for name in names] == pytest.approx(expected, abs=1e-5)


def test_a_loss_that_rises_with_the_metric_ranks_backwards():
    found = rank_checkpoints(accuracy, accuracy, [checkpoints(1)])
    assert found.spearman_checkpoints == pytest.approx(-1)


@pytest.mark.parametrize("input", ["probability", "log_probability"])
def test_curve_and_slope_in_the_logit(input):
    torch.manual_seed(0)
    surrogate = ClassificationReLoss(input=input, output="monotone").double()
    logits = torch.linspace(-4, 4, 50, dtype=torch.float64)
    p, losses, slopes = loss_curve(surrogate, logits)
    torch.testing.assert_close(p, logits.sigmoid())
    two_classes = torch.stack((logits, torch.zeros_like(logits)), -1)
    expected = surrogate.per_item(two_classes[:, None], torch.zeros(50, 1, dtype=torch.long))
    torch.testing.assert_close(losses, expected.detach())
    step = 1e-6
    rise = loss_curve(surrogate, logits + step)[1] - loss_curve(surrogate, logits - step)[1]
    torch.testing.assert_close(slopes, rise / (2 * step), rtol=1e-4, atol=1e-6)
    assert (slopes <= 0).all()
