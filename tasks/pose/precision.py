"""Training in bfloat16, which also works on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def train_in_bfloat16(model: Any) -> None:
    """Make backbone and head of mmpose's `model` compute in bfloat16 during training.

    bfloat16 has the range of float32, so the loss needs no scaling. Losses and accuracies receive float32. With an
    autocast around everything, as in mmengine's `AmpOptimWrapper`, mmpose's accuracy would fail: NumPy has no bfloat16.
    """
    for part in (model.backbone, model.head):
        part.forward = _in_bfloat16(part)


def _in_bfloat16(part: nn.Module) -> Any:
    float32_forward = part.forward

    def forward(inputs: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        if not part.training:
            return float32_forward(inputs)
        device = next(part.parameters()).device.type
        with torch.autocast(device, torch.bfloat16):
            outputs = float32_forward(inputs)
        return outputs.float() if isinstance(outputs, Tensor) else tuple(output.float() for output in outputs)

    return forward
