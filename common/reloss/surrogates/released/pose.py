"""The release's network for pose: a weight in (0, 1) for each joint, from the squared errors of its whole heatmap.

The loss of a joint is its mean squared error times this weight. The weight is free to fall as errors grow, and PCK, to
which all misses are alike, teaches it to: training from scratch can then escape into errors so large that the loss
vanishes.

Source: the `ReLoss` of pose estimation in hunto/ReLoss.
"""

import torch
from torch import Tensor, nn


def joint_network(pixels: int, width: int) -> nn.Sequential:
    """Return the network of one joint, `logits_fcs` in the release: `pixels` squared errors -> one number."""
    return nn.Sequential(nn.Linear(pixels, width), nn.ELU(), nn.Linear(width, 1))


def weighted_error(network: nn.Sequential, errors: Tensor) -> Tensor:
    """Return the mean squared error of each joint times its weight: squared errors [..., H·W] -> [...]."""
    return errors.mean(-1) * torch.sigmoid(network(errors)).squeeze(-1)
