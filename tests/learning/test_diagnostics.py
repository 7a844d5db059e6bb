import pytest
import torch
from scipy.stats import kendalltau, spearmanr

from reloss import ClassificationReLoss
from reloss.learning.diagnostics import rank_checkpoints
from reloss.metrics import accuracy


def checkpoints(seed, epochs=20, examples=64, classes=5):
    """Predictions that improve with the epoch; the targets are the same for every seed."""
    targets = torch.randint(classes, (examples,), generator=torch.Generator().manual_seed(0))
    noise = torch.randn(epochs, examples, classes, generator=torch.Generator().manual_seed(seed))
    margin = torch.linspace(0, 3, epochs)[:, None, None] * torch.nn.functional.one_hot(targets, classes)
    return noise + margin, targets.expand(epochs, -1)


def test_correlations_equal_scipys_over_all_and_over_late_checkpoints():
    runs = [checkpoints(1), checkpoints(2, epochs=35)]
    ranking = rank_checkpoints(ClassificationReLoss.ordinary_loss, accuracy, runs)
    assert (ranking.checkpoints, ranking.runs) == (55, 2)
    for late in (False, True):
        names = ("spearman_late", "kendall_late") if late else ("spearman_checkpoints", "kendall_checkpoints")
        selected = [(o[len(o) // 2 :], t[len(t) // 2 :]) if late else (o, t) for o, t in runs]
        losses = torch.cat([ClassificationReLoss.ordinary_loss(*run) for run in selected])
        values = torch.cat([accuracy(*run) for run in selected])
        expected = spearmanr(-losses, values).statistic, kendalltau(-losses, values).statistic
        assert [getattr(ranking, name) for name in names] == pytest.approx(expected, abs=1e-5)


def test_a_loss_that_rises_with_the_metric_ranks_backwards():
    ranking = rank_checkpoints(accuracy, accuracy, [checkpoints(1)])
    assert ranking.spearman_checkpoints == pytest.approx(-1)


def test_undefined_correlations_are_not_in_the_summary():
    outputs, targets = checkpoints(1, epochs=7)
    few = rank_checkpoints(accuracy, accuracy, [(outputs[:3], targets[:3])]).summary()
    assert few == {"checkpoints": 3, "runs": 1}
    late_few = rank_checkpoints(accuracy, accuracy, [(outputs[:5], targets[:5])]).summary()
    assert late_few.keys() == {"spearman_checkpoints", "kendall_checkpoints", "checkpoints", "runs"}
    always_wrong = (outputs.argmax(-1) + 1) % outputs.shape[-1]
    constant = rank_checkpoints(ClassificationReLoss.ordinary_loss, accuracy, [(outputs, always_wrong)]).summary()
    assert constant == {"checkpoints": 7, "runs": 1}
