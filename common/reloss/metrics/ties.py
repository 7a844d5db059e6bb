"""Where equal scores begin and end in an order."""

import torch
from torch import Tensor


def descending(outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the order [..., B] of scores [..., B] from the highest, and the bounds of each place's tie in it.

    Returns:
        order, first, after: the scores at the places first <= place < after are equal.
    """
    negative = -outputs.detach().double().contiguous()
    ordered, order = negative.sort(dim=-1)
    return order, torch.searchsorted(ordered, ordered), torch.searchsorted(ordered, ordered, right=True)
