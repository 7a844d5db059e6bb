"""Networks: torchvision's, the three-stage ResNets for CIFAR, two small CNNs, and multi-layer perceptrons."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reloss.runtime.errors import unknown

CIFAR_DEPTHS = {"resnet20": 3, "resnet32": 5, "resnet56": 9}  # 6n + 2 layers
WIDTHS = {"mlp_64": (64,), "mlp_64_64": (64, 64)}  # of the hidden layers


def build(name: str, classes: int, shape: Sequence[int] = ()) -> nn.Module:
    """Return a network with random weights: images [B, 3, H, W] -> logits [B, classes], or [B] with one class.

    The network digits_cnn takes images [B, 1, 8, 8], and multi-layer perceptrons take examples [B, *shape].

    Raises:
        UsageError: the name is unknown; the message names the nearest ones.
    """
    network = _build(name, classes, shape)
    return nn.Sequential(network, nn.Flatten(0)) if classes == 1 else network


def _build(name: str, classes: int, shape: Sequence[int]) -> nn.Module:
    if name in WIDTHS:
        return perceptron(math.prod(shape), WIDTHS[name], classes)
    if name in SMALL:
        return SMALL[name](classes)
    if name in CIFAR_DEPTHS:
        return CifarResNet(CIFAR_DEPTHS[name], classes)
    from torchvision import models  # importing it takes seconds, which networks of our own do not need

    known = models.list_models(module=models)
    if name not in known:
        raise unknown("model", name, [*SMALL, *WIDTHS, *CIFAR_DEPTHS, *known])
    return models.get_model(name, weights=None, num_classes=classes)


def digits_cnn(classes: int) -> nn.Module:
    """Return a network of two convolutions and two linear layers for 8x8 images."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 64),
        nn.ReLU(),
        nn.Linear(64, classes),
    )


def cifar_cnn(classes: int) -> nn.Module:
    """Return a network of three convolutions and a linear layer for 32x32 images, for ablations."""
    layers: list[nn.Module] = []
    for narrow, wide in pairwise((3, 16, 32, 64)):
        layers += [nn.Conv2d(narrow, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


def perceptron(inputs: int, widths: Sequence[int], classes: int) -> nn.Module:
    """Return a multi-layer perceptron for examples of `inputs` numbers."""
    layers: list[nn.Module] = [nn.Flatten()]
    for narrow, wide in pairwise((inputs, *widths)):
        layers += [nn.Linear(narrow, wide), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear((inputs, *widths)[-1], classes))


SMALL = {"digits_cnn": digits_cnn, "cifar_cnn": cifar_cnn}


class CifarResNet(nn.Module):
    """ResNet for 32x32 images: three stages of 16, 32 and 64 channels (He et al. 2016, section 4.2).

    A shortcut that changes the shape takes every second pixel and pads the channels with zeros (option A).
    """

    def __init__(self, blocks: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        widths = [16] * (blocks + 1) + [32] * blocks + [64] * blocks
        self.stages = nn.Sequential(*(_Block(narrow, wide) for narrow, wide in pairwise(widths)))
        self.head = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [B, classes] of images [B, 3, H, W]."""
        return self.head(self.stages(self.stem(images)).mean((2, 3)))


class _Block(nn.Module):
    def __init__(self, narrow: int, wide: int) -> None:
        super().__init__()
        self.stride, self.padding = (1, 0) if narrow == wide else (2, (wide - narrow) // 2)
        self.layers = nn.Sequential(
            nn.Conv2d(narrow, wide, 3, self.stride, padding=1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
            nn.Conv2d(wide, wide, 3, padding=1, bias=False),
            nn.BatchNorm2d(wide),
        )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return torch.relu(self.layers(x) + shortcut)
