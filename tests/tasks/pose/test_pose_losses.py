import pytest
import torch
from mmpose.models.losses import KeypointMSELoss
from mmpose.registry import MODELS
from torch.testing import assert_close

from reloss import ClassificationReLoss, PoseReLoss
from reloss.runtime.errors import UsageError
from reloss.surrogates.expected.pose import ExpectedPose
from reloss_tasks.pose.losses import KeypointLocationLoss, KeypointReLoss


def batch(b=4, k=14):
    generator = torch.Generator().manual_seed(0)
    output, target = (torch.rand(b, k, 12, 8, generator=generator) for _ in range(2))
    return output.requires_grad_(), target, (torch.rand(b, k, generator=generator) < 0.8).float()


@pytest.fixture
def surrogate():
    torch.manual_seed(0)
    return PoseReLoss(size=(12, 8), scale=3.0)


def test_a_config_builds_the_loss_from_a_folder(surrogate, tmp_path):
    surrogate.save_pretrained(tmp_path / "learned")
    loss = MODELS.build({"type": "mmpose.PoseReLoss", "surrogate": str(tmp_path / "learned"), "loss_weight": 2.0})
    output, target, weights = batch()
    assert isinstance(loss, KeypointReLoss)
    assert_close(loss(output, target, weights), 2 * surrogate(output, target, weights))


@pytest.mark.parametrize("metric", [None, "heatmap_pck"])
def test_a_config_builds_the_loss_from_a_folder_of_expected_features(metric, tmp_path):
    torch.manual_seed(0)
    ExpectedPose(metric).save_pretrained(tmp_path / "expected")
    loss = KeypointReLoss(tmp_path / "expected")
    output, target, weights = batch()
    loss(output, target, weights).backward()
    assert isinstance(loss.surrogate, ExpectedPose)
    assert output.grad[weights == 0].abs().max() == 0
    assert (output.grad[weights > 0].abs().amax((-2, -1)) > 0).all()


def test_surrogates_for_other_predictions_are_refused(tmp_path):
    ClassificationReLoss().save_pretrained(tmp_path / "learned")
    with pytest.raises(UsageError, match="ClassificationReLoss is no surrogate for heatmaps"):
        KeypointReLoss(str(tmp_path / "learned"))


def test_only_the_heatmaps_receive_a_gradient(surrogate):
    loss = KeypointReLoss(surrogate)
    output, target, weights = batch()
    loss(output, target, weights).backward()
    hidden = weights == 0
    assert output.grad[hidden].abs().max() == 0
    assert (output.grad[~hidden].abs().amax((-2, -1)) > 0).all()
    assert list(loss.parameters()) == []
    assert loss.state_dict() == {}
    assert all(parameter.grad is None for parameter in surrogate.parameters())


def test_without_a_visible_joint_the_loss_is_zero(surrogate):
    output, target, weights = batch()
    value = KeypointReLoss(surrogate, ordinary_weight=1.0)(output, target, 0 * weights)
    value.backward()
    assert value.item() == 0
    assert output.grad.abs().max() == 0


def test_mean_squared_error_is_added(surrogate):
    output, target, weights = batch()
    ordinary = KeypointMSELoss(use_target_weight=True)(output, target, weights)
    plain, mixed = (KeypointReLoss(surrogate, ordinary_weight=w)(output, target, weights) for w in (0.0, 0.5))
    assert_close(mixed - plain, ordinary / 2)


def test_without_target_weights_all_joints_count(surrogate):
    output, target, weights = batch()
    everything = surrogate(output, target, torch.ones_like(weights))
    assert_close(KeypointReLoss(surrogate, use_target_weight=False)(output, target, weights), everything)
    assert_close(KeypointReLoss(surrogate)(output, target), everything)


def test_the_ordinary_loss_of_the_surrogate_is_mmposes():
    output, target, weights = batch()
    target = target * weights[..., None, None]
    assert_close(
        PoseReLoss.ordinary_loss(output[None], target[None])[0],
        KeypointMSELoss(use_target_weight=True)(output, target, weights),
    )


def test_heatmaps_of_another_size_are_refused(surrogate):
    output, target, weights = batch()
    with pytest.raises(ValueError, match=r"for heatmaps of \[12, 8\]"):
        KeypointReLoss(surrogate)(output.mT, target.mT, weights)


def test_the_location_loss_is_the_surprise_at_the_position_of_each_visible_joint():
    output, target, weights = batch(2, 3)
    expected = 0.0
    for person, joint in (weights > 0).nonzero().tolist():
        position = target[person, joint].argmax()
        expected -= (4 * output[person, joint].flatten()).log_softmax(0)[position] / weights.numel()
    assert_close(KeypointLocationLoss(sharpness=4)(output, target, weights), torch.as_tensor(expected))


def test_the_location_loss_is_small_for_right_heatmaps_and_finite_for_any():
    target = torch.zeros(1, 2, 12, 8)
    target[0, 0, 5, 6] = target[0, 1, 0, 0] = 1
    loss = KeypointLocationLoss()
    assert loss(target, target).item() < 1e-5
    extreme = (1e4 * (0.5 - target)).requires_grad_()
    value = loss(extreme, target, torch.tensor([[1.0, 0.0]]))
    value.backward()
    assert value.isfinite()
    assert extreme.grad.isfinite().all()
    assert extreme.grad[0, 1].abs().max() == 0
