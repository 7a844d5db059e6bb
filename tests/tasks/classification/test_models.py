import pytest
import torch

from reloss.runtime.errors import UsageError
from reloss_tasks.classification import models


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "layers", "parameters"),
    [("resnet20", 20, 269_722), ("resnet32", 32, 464_154), ("resnet56", 56, 853_018)],
)
def test_cifar_resnets_are_those_of_he_et_al(name, layers, parameters):
    model = models.build(name, 10)
    assert count(model) == parameters  # table 6: 0.27M, 0.46M and 0.85M
    weighted = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)]
    assert len(weighted) == layers
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_cifar_resnet_has_three_stages():
    model = models.build("resnet20", 10)
    shapes = []
    for block in model.stages:
        block.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape[1:])))
    model(torch.randn(1, 3, 32, 32))
    assert shapes == 3 * [(16, 32, 32)] + 3 * [(32, 16, 16)] + 3 * [(64, 8, 8)]


def test_a_shortcut_pads_channels_with_zeros():
    block = models.build("resnet20", 10).stages[3].eval()
    for parameter in block.parameters():
        torch.nn.init.zeros_(parameter)
    x = torch.rand(1, 16, 4, 4)
    output = block(x)
    assert output.shape == (1, 32, 2, 2)
    assert torch.equal(output[:, 8:24], x[:, :, ::2, ::2])
    assert output[:, :8].count_nonzero() == output[:, 24:].count_nonzero() == 0


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [("digits_cnn", (1, 8, 8), 10), ("resnet18", (3, 64, 64), 7), ("mobilenet_v2", (3, 32, 32), 3)],
)
def test_build(name, shape, classes):
    assert models.build(name, classes).eval()(torch.randn(2, *shape)).shape == (2, classes)


@pytest.mark.parametrize(
    ("name", "nearest"), [("resnet21", "resnet20"), ("mobilenetv2", "mobilenet_v2"), ("digit_cnn", "digits_cnn")]
)
def test_unknown_names_get_the_nearest(name, nearest):
    with pytest.raises(UsageError, match=f"unknown model '{name}'; did you mean .*{nearest}"):
        models.build(name, 10)
