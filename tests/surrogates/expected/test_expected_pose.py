"""Expected hits and OKS of heatmaps against the enumeration of all pixels, and the surrogate over them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from reloss.metrics import heatmap_pck, oks, pck
from reloss.metrics.keypoints import COCO_SIGMAS
from reloss.surrogates.expected.pose import (
    BODY_SIGMA,
    FEATURES,
    RADII,
    ExpectedPose,
    expected_oks,
    expected_pck,
    log_expected_oks,
    log_masses,
    log_probabilities,
    minus_relative_error,
)
from reloss.surrogates.pose import PoseReLoss

H, W = 12, 9


def persons(n: int = 2, b: int = 3, k: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return noisy heatmaps, and targets with one peak each; the last joint of the first person is invisible."""
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randint(size, (n, b, k, 1, 1), generator=generator) for size in (W, H))
    squares = (torch.arange(W) - x).square() + (torch.arange(H)[:, None] - y).square()
    targets = (-squares / 8).exp()
    targets[:, 0, -1] = 0
    return targets + 0.4 * torch.randn(targets.shape, generator=generator), targets


def pixels_of(targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return all outcomes (x, y) of a joint, [H·W, 1, 1, 2], and the joint with its visibility, [H·W, 1, 1, 3]."""
    outcomes = torch.cartesian_prod(torch.arange(H), torch.arange(W)).flip(-1)[:, None, None].float()
    y, x = divmod(int(targets.argmax()), W)
    return outcomes, torch.tensor([x, y, 1.0]).expand(H * W, 1, 1, 3)


def surrogate_of_seed(seed: int = 0, **options) -> ExpectedPose:
    torch.manual_seed(seed)
    return ExpectedPose(**options)


def test_masses_are_the_expected_pck_over_all_pixels():
    outputs, targets = persons(1, 2, 3)
    p = (5 * outputs).flatten(-2).softmax(-1)
    masses = log_masses(log_probabilities(outputs, 5), targets).exp()
    for person in range(2):
        for joint in range(3):
            outcomes, truth = pixels_of(targets[0, person, joint])
            for number, radius in enumerate(RADII):
                hits = pck(outcomes, truth, threshold=radius, norm=torch.tensor([W, H]).expand(H * W, 1, 2))
                assert_close(masses[0, person, joint, number], (p[0, person, joint] * hits).sum())


@pytest.mark.parametrize("joints", [4, 17])
def test_expected_oks_is_the_mean_over_all_pixels(joints):
    outputs, targets = persons(1, 1, joints)
    p = (5 * outputs).flatten(-2).softmax(-1)
    expected = log_expected_oks(log_probabilities(outputs, 5), targets).exp()
    areas = torch.full((H * W, 1), 0.53 * H * W / 1.25**2)
    for joint in range(joints):
        outcomes, truth = pixels_of(targets[0, 0, joint])
        sigma = COCO_SIGMAS[joint] if joints == 17 else BODY_SIGMA
        assert_close(
            expected[0, 0, joint], (p[0, 0, joint] * oks(outcomes, truth, areas, [sigma])).sum(), rtol=1e-4, atol=1e-6
        )


def test_relative_error():
    outputs, targets = persons(1, 1, 2)
    error, invisible = minus_relative_error(outputs, targets)[0, 0]
    assert_close(error, -(outputs - targets)[0, 0, 0].square().sum() / targets[0, 0, 0].square().sum())
    assert invisible == 0
    assert_close(minus_relative_error(torch.zeros_like(targets), targets)[0, 0], torch.tensor([-1.0, 0.0]))


@pytest.mark.parametrize("metric", ["heatmap_pck", "heatmap_oks"])
def test_with_a_sharp_softmax_the_expected_metric_is_the_metric(metric):
    outputs, targets = persons(4, 5, 3)
    loss = ExpectedPose(metric, sharpness=1e5)
    features = loss.features(outputs, targets)
    if metric == "heatmap_pck":
        assert_close(1 - loss.per_item(outputs, targets), heatmap_pck(outputs, targets))
        hits = expected_pck(features)
        assert_close(hits, hits.round(), atol=1e-4, rtol=0)
    assert ((expected_oks(features) > 0) & (expected_oks(features) <= 1)).all()
    assert_close(ExpectedPose(metric).per_item(targets, targets), torch.zeros(4), atol=0.5, rtol=0)


def test_features_are_named_and_zero_for_a_perfect_prediction():
    _, targets = persons()
    features = ExpectedPose(sharpness=1e4).features(targets, targets)
    assert features.shape == (2, 3, 4, len(FEATURES))
    visible = targets.amax((-2, -1)) > 0
    assert_close(features[visible], torch.zeros_like(features[visible]), atol=1e-4, rtol=0)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_the_loss_falls_as_the_right_pixel_rises_and_rises_with_the_wrong_ones(seed):
    outputs, targets = persons(1, 1, 3, seed=seed)
    outputs = (0.9 * outputs).clamp(0, 0.9)
    y, x = divmod(int(targets[0, 0, 0].argmax()), W)
    better, worse = outputs.clone(), outputs.clone()
    better[0, 0, 0, y, x] += 0.05
    worse[0, 0, 0, (y + 6) % H, (x + 4) % W] += 0.3
    for metric in (None, "heatmap_pck", "heatmap_oks"):
        loss = surrogate_of_seed(seed, metric=metric)
        with torch.no_grad():
            assert loss.per_item(better, targets) <= loss.per_item(outputs, targets) <= loss.per_item(worse, targets)


def test_invisible_joints_do_not_count():
    outputs, targets = persons()
    loss = surrogate_of_seed().freeze()
    outputs.requires_grad_()
    weights = (targets.amax((-2, -1)) > 0).float()
    values = loss.per_item(outputs, targets)
    assert_close(values, loss.per_item(outputs, targets, weights))
    values.sum().backward()
    assert outputs.grad[:, 0, -1].abs().max() == 0
    assert outputs.grad[weights > 0].abs().amax((-2, -1)).min() > 0
    assert_close(loss.per_item(outputs, targets, weights / 2), values)
    alone = torch.zeros_like(weights)
    alone[:, 1, 2] = 3
    assert_close(loss.per_item(outputs, targets, alone), loss.per_item(outputs[:, 1:2, 2:3], targets[:, 1:2, 2:3]))
    nothing = loss(outputs[0], 0 * targets[0])
    assert nothing == 0
    with pytest.raises(ValueError, match="weights"):
        loss.per_item(outputs, targets, weights[:, :2])


@pytest.mark.parametrize("metric", [None, "heatmap_pck", "heatmap_oks"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4, -1e4])
def test_losses_and_gradients_are_finite_in_float32(metric, dtype, scale):
    outputs, targets = persons(1, 1, 3)
    outputs = (scale * outputs).to(dtype).requires_grad_()
    loss = surrogate_of_seed(metric=metric).freeze()
    with torch.autocast("cpu", torch.bfloat16):
        values = loss(outputs[0], targets[0])
    values.backward()
    assert values.dtype == torch.float32
    assert values.isfinite()
    assert outputs.grad.isfinite().all()
    assert_close(values, loss(outputs[0].float(), targets[0]))


def test_the_sharpness_is_learned_and_saved(tmp_path):
    outputs, targets = persons()
    loss = surrogate_of_seed(sharpness=7.0)
    assert loss.log_sharpness.exp().item() == pytest.approx(7)
    loss.per_item(outputs, targets).sum().backward()
    assert loss.log_sharpness.grad.abs() > 0
    with torch.no_grad():
        loss.log_sharpness += 1
    loss.save_pretrained(tmp_path)
    loaded = ExpectedPose.from_pretrained(tmp_path)
    assert_close(loaded.per_item(outputs, targets), loss.freeze().per_item(outputs, targets))
    assert list(ExpectedPose("heatmap_pck").parameters()) == []
    for sharpness in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="sharpness must be a positive number"):
            ExpectedPose(sharpness=sharpness)


def test_its_ordinary_loss_is_the_mean_squared_error():
    assert_close(ExpectedPose.ordinary_loss(*persons()), PoseReLoss.ordinary_loss(*persons()))
    with pytest.raises(ValueError, match=r"\[N, B, K, H, W\]"):
        ExpectedPose().check(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4))
