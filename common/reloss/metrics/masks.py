"""One value for outputs that are not a choice of the model, such as padding, for all kinds of outputs."""

from torch import Tensor

MASKED = -1e4  # fits float16; the probability is 0 next to any logit of a model


def is_open(outputs: Tensor) -> Tensor:
    """Return which outputs are choices of the model, not `MASKED`. Holds after division by a temperature up to 8."""
    return outputs > MASKED / 10
