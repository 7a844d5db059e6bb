"""The agreement of confidence and expected OKS against loops, and the surrogate that sees it."""

import math

import pytest
import torch
from test_expected_pose import persons
from torch.testing import assert_close

from reloss.learning import PredictionBank, fit_surrogate
from reloss.metrics import heatmap_ap
from reloss.metrics.keypoints import COCO_SIGMAS, confidences
from reloss.surrogates import build
from reloss.surrogates.expected.pose import FEATURES, ExpectedPose
from reloss.surrogates.expected.pose_ranking import ExpectedPoseRanking, agreement, expected_quality
from reloss.surrogates.pose import visible
from reloss.surrogates.registry import load


def surrogate_of_seed(seed=0):
    torch.manual_seed(seed)
    return ExpectedPoseRanking()


def test_agreement_equals_loops_over_pairs():
    generator = torch.Generator().manual_seed(0)
    confidence, quality = torch.rand(2, 3, 6, generator=generator).unbind(0)
    counts = torch.rand(3, 6, generator=generator) < 0.8
    values = agreement(confidence, quality, counts, 5.0)
    for n in range(3):
        for i in range(6):
            total = weight = 0.0
            for j in range(6):
                if counts[n, i] and counts[n, j]:
                    lead = float(quality[n, i] - quality[n, j])
                    better, worse = (i, j) if lead > 0 else (j, i)
                    difference = 5 * float(confidence[n, better] - confidence[n, worse])
                    total += abs(lead) * math.log(1 / (1 + math.exp(-difference)))
                    weight += abs(lead)
            assert values[n, i].item() == pytest.approx(total / weight if weight else 0, rel=1e-4, abs=1e-6)


def test_agreement_is_highest_in_the_order_of_quality_and_lowest_against_it():
    quality = torch.tensor([0.1, 0.4, 0.8, 0.9])
    counts = torch.ones(4, dtype=torch.bool)
    orders = [torch.tensor(order) for order in ([0.2, 0.4, 0.6, 0.8], [0.2, 0.6, 0.4, 0.8], [0.8, 0.6, 0.4, 0.2])]
    values = [float(agreement(order, quality, counts, 20.0).mean()) for order in orders]
    assert values == sorted(values, reverse=True)
    assert values[0] > -0.1
    assert values[2] < -3


def test_a_confidence_that_fits_the_quality_better_agrees_more():
    confidence = torch.tensor([0.5, 0.5, 0.5], requires_grad=True)
    values = agreement(confidence, torch.tensor([0.9, 0.5, 0.1]), torch.ones(3, dtype=torch.bool), 20.0)
    (gradient,) = torch.autograd.grad(values.sum(), confidence)
    assert gradient[0] > 0 > gradient[2]
    assert gradient[1].abs() < 1e-6


def test_no_gradient_flows_through_the_quality():
    quality = torch.rand(5, requires_grad=True)
    values = agreement(torch.rand(5, requires_grad=True), quality, torch.ones(5, dtype=torch.bool), 20.0)
    values.sum().backward()
    assert quality.grad is None


def test_quality_is_the_mean_over_visible_joints():
    log_oks = torch.tensor([[0.5, 0.1, 0.9], [0.5, 0.2, 0.3]]).log()
    assert_close(expected_quality(log_oks, torch.tensor([[1.0, 1, 0], [0, 0, 0]])), torch.tensor([0.3, 0.0]))


def test_features_are_those_of_poses_and_the_agreement_of_each_person():
    outputs, targets = persons(2, 4, 3)
    surrogate = surrogate_of_seed()
    features = surrogate.features(outputs, targets)
    assert features.shape == (2, 4, 3, len(ExpectedPoseRanking.FEATURES))
    plain = ExpectedPose().features(outputs, targets)
    assert_close(features[..., :-1], plain)
    seen = visible(targets)
    quality = expected_quality(plain[..., FEATURES.index("log_expected_oks")], seen)
    expected = agreement(confidences(outputs), quality, seen.any(-1), 20.0)
    assert_close(features[..., -1], expected[..., None].expand(2, 4, 3))
    assert features.max() <= 0


@pytest.mark.parametrize("size", [0.0, 1.0, 1e4])
def test_loss_and_gradient_stay_finite(size):
    outputs, targets = persons(2, 3, 4)
    outputs = (size * outputs).requires_grad_()
    losses = surrogate_of_seed().per_item(outputs, targets)
    (gradient,) = torch.autograd.grad(losses.sum(), outputs)
    assert torch.isfinite(losses).all()
    assert torch.isfinite(gradient).all()


def test_half_precision_gives_a_float32_loss():
    outputs, targets = persons()
    surrogate = surrogate_of_seed()
    with torch.autocast("cpu", torch.bfloat16):
        losses = surrogate.per_item(outputs.bfloat16(), targets)
    assert losses.dtype == torch.float32
    assert_close(losses, surrogate.per_item(outputs.bfloat16().float(), targets), rtol=0, atol=0)


def test_persons_without_visible_joints_do_not_count():
    outputs, targets = persons(1, 4, 3)
    targets[:, 3] = 0
    surrogate = surrogate_of_seed()
    features = surrogate.features(outputs, targets)
    assert_close(features[:, :3], surrogate.features(outputs[:, :3], targets[:, :3]))
    assert (features[:, 3, :, -1] == 0).all()


def test_the_kind_pose_ranking_learns_from_average_precision(tmp_path):
    """The poses of all items are alike; only their order by confidence differs, which other features do not see."""
    bank = PredictionBank.create(tmp_path / "bank", item_size=8)
    generator = torch.Generator().manual_seed(0)
    joints = len(COCO_SIGMAS)
    for step in range(60):
        targets = torch.zeros(8, joints, 8, 6)
        targets[..., 4, 3] = 1
        outputs = torch.zeros(8, joints, 8, 6)
        good = torch.arange(8) < 4
        outputs[good, :, 4, 3] = 1
        outputs[~good, :, 1, 1] = 1
        order = torch.randperm(8, generator=generator).float() / 16
        confidence = 0.5 + (step / 60) * torch.where(good, 0.4, 0.0) + (1 - step / 60) * order
        bank.append(outputs * confidence[:, None, None, None], targets, step)
    bank.finish()
    metric = heatmap_ap(*bank.items(torch.arange(60)))
    assert metric[-10:].mean() > metric[:10].mean() + 0.1
    torch.manual_seed(0)
    surrogate = build("pose_ranking", (joints, 8, 6), features="expected")
    result = fit_surrogate(surrogate, bank, "heatmap_ap", steps=30, items=32, mixture="recorded")
    assert result.spearman > 0.6
    surrogate.save_pretrained(tmp_path / "loss")
    assert isinstance(load(tmp_path / "loss"), ExpectedPoseRanking)
