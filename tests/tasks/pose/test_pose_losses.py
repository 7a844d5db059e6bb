import subprocess
import sys
from pathlib import Path
from pickle import UnpicklingError

import mmpose
import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmpose.models.losses import KeypointMSELoss
from mmpose.registry import MODELS
from processes import run_script
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


def test_mask_and_weights_of_pixels_are_factors_of_the_squared_errors(surrogate):
    output, target, weights = batch()
    generator = torch.Generator().manual_seed(1)
    mask = (torch.rand(4, 1, 12, 8, generator=generator) < 0.7).float()
    pixels = torch.rand(4, 14, 12, 8, generator=generator) * weights[..., None, None]
    loss = KeypointReLoss(surrogate)
    assert_close(loss(output, target, weights, mask), surrogate(output * mask, target * mask, weights))
    assert_close(loss(output, target, None, mask), loss(output, target, mask.expand_as(target)))
    root = (mask * pixels).sqrt()
    assert_close(loss(output, target, pixels, mask), surrogate(root * output, root * target, weights))
    for name in ("target_weights", "mask"):
        with pytest.raises(ValueError, match=rf"{name} must be .*, not \[4, 14, 12\]"):
            loss(output, target, **{name: torch.ones(4, 14, 12)})


def test_masked_pixels_and_joints_receive_no_gradient(surrogate):
    output, target, weights = batch()
    mask = torch.ones(4, 1, 12, 8)
    mask[0, 0, :6] = mask[1] = 0
    KeypointReLoss(surrogate, ordinary_weight=1.0)(output, target, weights, mask).backward()
    assert output.grad[0, :, :6].abs().max() == 0
    assert output.grad[1].abs().max() == 0
    assert output.grad.isfinite().all()


def test_options_are_those_of_the_loss_that_it_replaces(surrogate):
    output, target, weights = batch()
    target = torch.cat([target[:, :7], 0 * target[:, 7:]], 1)
    mask = torch.ones(4, 1, 12, 8)
    mask[2, 0, 3:] = 0
    for options in ({}, {"skip_empty_channel": True}):
        replaced = KeypointMSELoss(use_target_weight=True, **options)
        plain, mixed = (KeypointReLoss(surrogate, ordinary_weight=w, **options) for w in (0.0, 1.0))
        for call in ((weights,), (None, mask), (weights[..., None, None] * mask, mask)):
            assert_close(mixed(output, target, *call) - plain(output, target, *call), replaced(output, target, *call))
    loss = KeypointReLoss(surrogate, skip_empty_channel=True)(output, target)
    assert_close(loss, KeypointReLoss(surrogate)(output, target, torch.arange(14).lt(7).float().expand(4, 14)))


def test_mmengines_log_is_loaded_from_a_checkpoint_but_no_other_attribute(tmp_path):
    history = HistoryBuffer([1.0, 3.0], [1, 1])
    meta = {"sigmas": np.array([0.1], dtype=np.float32), "best": np.float64(0.5), "flips": np.arange(3)}
    torch.save({"log": history, "meta": meta}, tmp_path / "good.pth")
    loaded = torch.load(tmp_path / "good.pth")
    assert loaded["log"].statistics("mean", 2) == 2.0
    assert loaded["meta"]["flips"].tolist() == [0, 1, 2]
    torch.save({"method": history.__class__.update}, tmp_path / "bad.pth")
    with pytest.raises(UnpicklingError, match="does not need the attribute update"):
        torch.load(tmp_path / "bad.pth")


@pytest.mark.slow
def test_the_tools_of_mmpose_train_resume_and_test(tmp_path, persons, narrow):
    PoseReLoss(size=(32, 24)).save_pretrained(tmp_path / "learned")
    config = tmp_path / "config.py"
    config.write_text(
        f"""
_base_ = ["{narrow.partition("=")[2]}"]
model = dict(head=dict(loss=dict(_delete_=True, type="PoseReLoss", surrogate="{tmp_path / "learned"}")))
loader = dict(batch_size=4, num_workers=0, persistent_workers=False, dataset=dict(data_root="{persons / "lsp"}"))
train_dataloader, val_dataloader, test_dataloader = dict(**loader), dict(**loader), dict(**loader)
train_cfg = dict(max_epochs=1, val_interval=1)
default_hooks = dict(checkpoint=dict(interval=1), logger=dict(interval=1))
"""
    )
    tools = Path(mmpose.__file__).parent / ".mim" / "tools"

    def tool(name: str, *arguments: object) -> str:
        words = [str(word) for word in (config, *arguments, "--work-dir", tmp_path / "work")]
        return run_script(tools / f"{name}.py", words, tmp_path / "output.txt")

    # In a new interpreter, the config has to import what it uses. The later ones are forked, to save their imports.
    train = [sys.executable, tools / "train.py", config, "--work-dir", tmp_path / "work"]
    subprocess.run(train, capture_output=True, check=True, cwd=tmp_path)
    output = tool("train", "--resume", "--cfg-options", "train_cfg.max_epochs=2")
    assert "resumed epoch: 1" in output
    assert "Epoch(train) [2]" in output
    assert "pck/PCK" in tool("test", tmp_path / "work" / "epoch_2.pth")
