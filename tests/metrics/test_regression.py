"""Metrics of regression equal scikit-learn's and SciPy's; missing targets do not count."""

import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import r2_score
from torchmetrics.functional.regression import concordance_corrcoef

from reloss.metrics import concordance, r2, regression_spearman, share_within

METRICS = (r2, concordance, regression_spearman, share_within)


def predictions(n=6, b=20, d=3):
    generator = torch.Generator().manual_seed(0)
    targets = 3 + 2 * torch.randn(n, b, d, generator=generator)
    return targets + torch.randn(n, b, d, generator=generator), targets


def test_equals_scikit_learn_scipy_and_torchmetrics():
    outputs, targets = predictions()
    pairs = list(zip(outputs, targets, strict=True))
    assert r2(outputs, targets).tolist() == pytest.approx([r2_score(t, o) for o, t in pairs], abs=1e-5)
    expected = [concordance_corrcoef(o, t).mean().item() for o, t in pairs]
    # torchmetrics divides (co)variances by n - 1, the shift of the means by 1
    assert concordance(outputs, targets).tolist() == pytest.approx(expected, abs=0.01)
    expected = [sum(spearmanr(o[:, k], t[:, k]).statistic for k in range(3)) / 3 for o, t in pairs]
    assert regression_spearman(outputs, targets).tolist() == pytest.approx(expected, abs=1e-5)
    expected = (outputs.sub(targets).abs() <= 0.8).float().mean((1, 2)).tolist()
    assert share_within(outputs, targets, tolerance=0.8).tolist() == pytest.approx(expected)


def test_concordance_by_hand():
    outputs, targets = torch.tensor([[1.0, 2, 6]]), torch.tensor([[1.0, 2, 3]])
    covariance, variances, shift = 5 / 3, 2 / 3 + 14 / 3, 1
    assert concordance(outputs, targets).item() == pytest.approx(2 * covariance / (variances + shift))


@pytest.mark.parametrize("metric", METRICS)
def test_missing_targets_and_dimensions(metric):
    outputs, targets = predictions()
    each = torch.stack([metric(outputs[..., k], targets[..., k]) for k in range(3)], -1)
    assert metric(outputs, targets).tolist() == pytest.approx(each.mean(-1).tolist(), abs=1e-6)
    expected = metric(outputs[:, :12], targets[:, :12])
    targets[:, 12:] = torch.nan
    assert metric(outputs, targets).tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    targets[..., 0] = torch.nan
    expected = metric(outputs[:, :12, 1:], targets[:, :12, 1:])
    assert metric(outputs, targets).tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    assert (metric(outputs, targets * torch.nan) == 0).all()


@pytest.mark.parametrize("metric", METRICS)
def test_constants(metric):
    _, targets = predictions()
    assert metric(torch.zeros_like(targets), targets).isfinite().all()
    constant = torch.ones(2, 4)
    assert metric(constant, constant).tolist() == ([0, 0] if metric is regression_spearman else [1, 1])
    assert metric(constant + torch.arange(4), constant).tolist() == pytest.approx(
        [0.25] * 2 if metric is share_within else [0, 0]
    )
    assert metric(torch.ones(2, 1), torch.ones(2, 1)).isfinite().all()


@pytest.mark.parametrize("metric", METRICS)
def test_wrong_inputs_raise(metric):
    numbers = torch.zeros(2, 3)
    for outputs, targets, message in (
        (numbers[..., None], numbers, r"remove the last axis: outputs.squeeze\(-1\)"),
        (numbers, numbers[..., None], r"remove the last axis: targets.squeeze\(-1\)"),
        (numbers[..., None, None], numbers[..., None, None], r"outputs.flatten\(1\)"),
        (numbers, numbers.long(), r"floating dtype, not torch.int64: pass targets.float\(\)"),
        (numbers * torch.nan, numbers, "values must be finite"),
        (numbers, numbers + torch.inf, "values must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            metric(outputs, targets)
    with pytest.raises(ValueError, match="tolerance must be a number of at least 0"):
        share_within(numbers, numbers, tolerance=-1)
