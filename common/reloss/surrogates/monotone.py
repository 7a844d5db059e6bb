"""Networks whose output falls as any input rises, by construction."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def falling_layers(linears: Sequence[nn.Linear]) -> list[tuple[Tensor, Tensor]]:
    """Return weights and biases made of linear layers, such that with ELU between them the output falls in the inputs.

    The absolute values of the weights make the output rise with each unit; the inputs are negated. Half of the units
    take ELU, which is convex, and half its concave mirror image, -ELU(-x): with one alone, the curve could bend only
    one way (Runje and Shankaranarayana, 2023). A mirrored unit is a plain one with signs on both sides.
    """
    before, layers = -torch.ones_like(linears[0].weight[0]), []
    for layer in linears:
        after = torch.ones_like(layer.bias)
        if layer is not linears[-1]:
            after[(len(after) + 1) // 2 :] = -1
        layers.append((after[:, None] * layer.weight.abs() * before, after * layer.bias))
        before = after
    return layers
