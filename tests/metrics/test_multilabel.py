"""Metrics of multi-label predictions equal scikit-learn's; targets of -1 do not count."""

import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, label_ranking_average_precision_score

from reloss.metrics import get_metric

METRICS = {
    "label_macro_f1": lambda o, t: f1_score(t, o > 0, average="macro", zero_division=0),
    "label_micro_f1": lambda o, t: f1_score(t, o > 0, average="micro", zero_division=0),
    "label_mean_average_precision": lambda o, t: average_precision_score(t, o, average="macro"),
    "label_ranking_average_precision": lambda o, t: label_ranking_average_precision_score(t, o),
}


def predictions(seed=0, n=8, b=15, labels=4, levels=None):
    """Scores and labels; the first label is often without positives, and scores of `levels` have ties."""
    generator = torch.Generator().manual_seed(seed)
    share = torch.tensor([0.03, 0.2, 0.5, 0.8])[:labels]
    targets = (torch.rand(n, b, labels, generator=generator) < share).long()
    outputs = torch.randn(n, b, labels, generator=generator) + targets
    return (outputs if levels is None else (outputs * levels).round()), targets


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("levels", [None, 1])
@pytest.mark.filterwarnings("ignore:No positive class")
def test_equals_scikit_learn(name, levels):
    outputs, targets = predictions(levels=levels)
    expected = [METRICS[name](o.numpy(), t.numpy()) for o, t in zip(outputs, targets, strict=True)]
    for dtype in (torch.int64, torch.uint8, torch.bool, torch.float16):
        assert get_metric(name)(outputs, targets.to(dtype)).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", METRICS)
def test_targets_of_minus_one_do_not_count(name):
    outputs, targets = predictions()
    metric = get_metric(name)
    expected = metric(outputs[:, :10], targets[:, :10])
    targets[:, 10:] = -1
    assert metric(outputs, targets).tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    if name != "label_ranking_average_precision":
        expected = metric(outputs[..., 1:], targets[..., 1:])
        targets[..., 0] = -1
        assert metric(outputs, targets).tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    assert metric(outputs, torch.where(targets == 1, 0, -1)).isfinite().all()


@pytest.mark.parametrize("name", METRICS)
def test_wrong_inputs_raise(name):
    outputs, targets = predictions(n=2)
    for wrong, message in (
        (2 * targets, r"0 or 1, or -1 for what does not count, not 2; turn them into labels: \(targets > 0\)"),
        (targets * 0.5, "not 0.5; for mixed-up or soft targets"),
        (2 * targets - 1, r"if -1 means that a label is absent, pass \(targets > 0\)"),
        (targets[..., 0], r"classes \[B\] are for kind classification"),
        (targets[..., :2], r"expected outputs \[N, B, L\] and targets \[N, B, L\]"),
    ):
        with pytest.raises(ValueError, match=message):
            get_metric(name)(outputs, wrong)
    with pytest.raises(ValueError, match="values must be finite"):
        get_metric(name)(outputs * torch.nan, targets)
