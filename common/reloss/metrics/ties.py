"""The bounds of equal scores in an order, for metrics that treat ties as one place."""

import torch
from torch import Tensor


def descending(outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the order of scores [..., B] from the highest, and the bounds of the tie at each place.

    Returns:
        order, start, end, each [..., B]: for each place, the scores at the places start .. end - 1 are equal.
    """
    negative = -outputs.detach().double().contiguous()
    sorted_scores, order = negative.sort(dim=-1)
    end = torch.searchsorted(sorted_scores, sorted_scores, right=True)
    return order, torch.searchsorted(sorted_scores, sorted_scores), end
