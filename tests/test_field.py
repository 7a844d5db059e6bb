"""The comparison of losses for rare classes: its losses are the known ones, and validation rows alone decide."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from benchmarks.field import Log, Method, focal, scores_of, soft_f1, together, weighted
from reloss.surrogates.expected.sets import ExpectedSets
from reloss.surrogates.expected.top import ExpectedTop
from reloss_tasks.classification import losses
from tools.field_records import LINES, Results
from tools.fit_zoo import cross_entropy, ten_misses
from tools.tabular_runs import GROUPS, SETS, Folds, load_sklearn, split_rows, train


@pytest.fixture(scope="module")
def folds() -> Folds:
    """Two splits of a small made set with a rare class."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(400, 3, generator=generator)
    positive = features[:, 0] + 0.5 * torch.randn(400, generator=generator) > 1
    return split_rows(list(features.double().numpy().T), positive.numpy(), 2)


@pytest.fixture(scope="module")
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    targets = (torch.rand(3, 40, generator=generator) < 0.2).long()
    return torch.randn(3, 40, generator=generator), targets


def test_losses_are_the_known_ones(batch) -> None:
    scores, targets = batch
    row, labels = scores[1], targets[1]
    assert focal(scores, targets)[1] == pytest.approx(sigmoid_focal_loss(row, labels.float(), reduction="mean").item())
    expected = losses.soft_f1(row, labels) + F.binary_cross_entropy_with_logits(row, labels.float())
    assert soft_f1(scores, targets)[1] == pytest.approx(expected.item())
    balanced = F.binary_cross_entropy_with_logits(row, labels.float(), pos_weight=torch.tensor(4.0))
    assert weighted(4, scores, targets)[1] == pytest.approx(balanced.item())
    missed, alarms = ((row <= 0) & (labels == 1)).sum(), ((row > 0) & (labels == 0)).sum()
    assert ten_misses(scores, targets)[1] == pytest.approx(-float(10 * missed + alarms) / 40)


def test_networks_that_train_together_learn_as_they_do_alone(folds: Folds) -> None:
    rates = (0.05, 0.2)
    methods = [
        Method("expected", "f1", ExpectedSets(metric="binary_f1")),
        Method("expected + cross-entropy", "partial_auroc", ExpectedTop(metric="partial_auroc"), cross_entropy),
    ]
    both = train(folds, together(methods, len(rates)), rates * len(methods), epochs=2)
    for method, part in zip(methods, both.split(len(rates), 1), strict=True):
        torch.testing.assert_close(part, train(folds, method.alone, rates, epochs=2), rtol=1e-3, atol=1e-4)


def test_rate_and_threshold_are_chosen_on_validation_rows(folds: Folds) -> None:
    outputs = train(folds, cross_entropy, (1e-4, 0.3), epochs=40)
    plain = scores_of(folds, outputs, ["f1", "auroc"], (1e-4, 0.3), tuned=False)
    assert plain["f1"]["rate"] == 0.3
    assert plain["auroc"]["validation"][1] > plain["auroc"]["validation"][0]
    shifted = scores_of(folds, outputs - 3, ["f1"], (1e-4, 0.3), tuned=False)["f1"]["test"]
    tuned, same = (
        scores_of(folds, part, ["f1"], (1e-4, 0.3), tuned=True)["f1"]["test"] for part in (outputs, outputs - 3)
    )
    assert tuned == pytest.approx(same, abs=0.05)
    assert sum(tuned) > sum(shifted)
    hidden = outputs.clone()
    for split, rows in enumerate(folds.test):
        hidden[split][:, rows] = torch.nan
    assert scores_of(folds, hidden, ["f1"], (1e-4, 0.3), tuned=False)["f1"]["validation"] == plain["f1"]["validation"]


def test_finished_lines_are_not_repeated(tmp_path: Path) -> None:
    log = Log(tmp_path / "field.jsonl")
    log.add({"set": "yeast1", "method": "focal", "scores": {}})
    assert Log(log.path).finished == {("yeast1", "focal")}
    assert json.loads(log.path.read_text())["method"] == "focal"


def test_halves_share_no_source() -> None:
    assert len(set(SETS)) == 12
    sources = [{name.rstrip("0123456789") for name in group} for group in GROUPS]
    assert not sources[0] & sources[1]


def test_sets_of_scikit_learn_are_split_once() -> None:
    assert [int(load_sklearn(name).targets.sum()) for name in ("breast_cancer", "digit_eight")] == [212, 174]


def test_committed_results_are_complete() -> None:
    results = Results(LINES)
    for metric in ("f1", "average_precision", "ten_misses"):
        assert {"cross-entropy", "zoo + cross-entropy", "soft F1 + cross-entropy"} <= set(results.methods(metric))
    ranks = results.ranks("f1")
    assert sum(wins for _, wins in ranks.values()) == pytest.approx(12)
    assert sum(rank for rank, _ in ranks.values()) == pytest.approx(len(ranks) * (len(ranks) + 1) / 2)
    assert results.difference("cross-entropy", "f1").mean == 0
