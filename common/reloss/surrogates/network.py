"""The small fully connected network of the learned losses, free or monotone by construction."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def evaluate(linears: Sequence[nn.Linear], inputs: Tensor, *, monotone: bool) -> Tensor:
    """Return the network's output at each of the inputs: linear layers with ELU between them.

    Args:
        linears: the layers; all but the last have the same number of units.
        inputs: [..., F] in the layers' type.
        monotone: whether the output falls as any of the F inputs rises, see `layers`.

    Returns:
        [...].
    """
    *hidden, last = layers(linears, monotone=monotone)
    for weight, bias in hidden:
        inputs = _elu(F.linear(inputs, weight, bias))
    return F.linear(inputs, *last).squeeze(-1)


def layers(linears: Sequence[nn.Linear], *, monotone: bool) -> list[tuple[Tensor, Tensor]]:
    """Return the weights and biases of the linear layers; if `monotone`, such that the output falls by construction.

    The absolute values of the weights make the output rise with each unit; the inputs are negated. Half of the units
    take ELU, which is convex, and half its concave mirror image, -ELU(-x): with one alone, the output could bend
    only one way (Runje and Shankaranarayana, 2023). A mirrored unit is a plain one with signs on both sides.
    """
    if not monotone:
        return [(layer.weight, layer.bias) for layer in linears]
    width = linears[0].out_features
    mirror = torch.ones_like(linears[0].bias)
    mirror[(width + 1) // 2 :] = -1
    before, made = -torch.ones_like(mirror[:1]), []
    for layer in linears:
        after = mirror if layer is not linears[-1] else torch.ones_like(mirror[:1])
        made.append((after[:, None] * layer.weight.abs() * before, after * layer.bias))
        before = after
    return made


def _elu(values: Tensor) -> Tensor:
    """Return ELU; several times faster on a CPU than PyTorch's own, which takes expm1."""
    positive = F.relu(values)
    return positive + (values - positive).exp() - 1
