"""The small network behind the learned losses: linear layers with ELU between them, free or monotone.

A loss should fall as a prediction gets better. A free network has to learn this from data, and can learn the opposite.
A monotone network has no choice: the absolute values of its weights are used, so its output can only fall as a feature
grows, whatever is learned.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def evaluate(linears: Sequence[nn.Linear], features: Tensor, *, monotone: bool) -> Tensor:
    """Return the output of the network for each group.

    Args:
        linears: the layers; all but the last have the same number of units.
        features: [..., F], in the dtype of the layers.
        monotone: whether the output falls as any feature grows; see `layers`.

    Returns:
        [...].
    """
    *hidden, last = layers(linears, monotone=monotone)
    for weight, bias in hidden:
        features = _elu(F.linear(features, weight, bias))
    return F.linear(features, *last).squeeze(-1)


def layers(linears: Sequence[nn.Linear], *, monotone: bool) -> list[tuple[Tensor, Tensor]]:
    """Return the weight and bias of each layer; if `monotone`, changed so that the output falls as a feature grows.

    The absolute values of the weights make the output rise with every unit, and the features are negated. Half of the
    units use ELU, which is convex, and half its concave mirror image, -ELU(-x). With one kind alone, the output could
    bend only one way. A mirrored unit is computed as a plain one with a minus sign on both sides.

    Source: Runje and Shankaranarayana, Constrained Monotonic Neural Networks (2023).
    """
    if not monotone:
        return [(layer.weight, layer.bias) for layer in linears]
    width = linears[0].out_features
    mirror = torch.ones_like(linears[0].bias)
    mirror[(width + 1) // 2 :] = -1
    signs_in, signed_layers = -torch.ones_like(mirror[:1]), []
    for layer in linears:
        signs_out = mirror if layer is not linears[-1] else torch.ones_like(mirror[:1])
        signed_layers.append((signs_out[:, None] * layer.weight.abs() * signs_in, signs_out * layer.bias))
        signs_in = signs_out
    return signed_layers


def rising(layer: nn.Linear, *, monotone: bool) -> tuple[Tensor, Tensor]:
    """Return the weight and bias of one layer; if `monotone`, such that its outputs rise with its inputs."""
    return layer.weight.abs() if monotone else layer.weight, layer.bias


def _elu(values: Tensor) -> Tensor:
    """Return ELU; several times faster on a CPU than PyTorch's own, which computes expm1."""
    positive = F.relu(values)
    return positive + (values - positive).exp() - 1
