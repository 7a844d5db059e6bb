"""Training in bfloat16, on CPUs too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def train_in_bfloat16(model: Any) -> None:
    """Let the backbone and the head of mmpose's `model` compute in bfloat16 while they train.

    bfloat16 has float32's range, so no loss is scaled. Losses and accuracies are given float32: under an autocast
    around all of it, as in mmengine's `AmpOptimWrapper`, mmpose's own would fail, for NumPy knows no bfloat16.
    """
    for part in (model.backbone, model.head):
        part.forward = _in_bfloat16(part)


def _in_bfloat16(part: nn.Module) -> Any:
    exact = part.forward

    def forward(inputs: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        if not part.training:
            return exact(inputs)
        device = next(part.parameters()).device.type
        with torch.autocast(device, torch.bfloat16):
            outputs = exact(inputs)
        return outputs.float() if isinstance(outputs, Tensor) else tuple(output.float() for output in outputs)

    return forward
