"""Outputs that are no choice of a model, such as padding: one value for all kinds of predictions."""

from torch import Tensor

MASKED = -1e4  # fits float16; its probability is 0 beside any logit of a model


def is_open(outputs: Tensor) -> Tensor:
    """Return which outputs are a model's own, not `MASKED`, also after a temperature up to 8."""
    return outputs > MASKED / 10
