"""Small recordings for the tests of the bank."""

import torch

from reloss.learning import PredictionBank

ITEM_BYTES = 4 * 3 * 2 + 4 * 8 + 8 + 8  # an item of record_items: outputs, targets, step, key


def item(index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Item number `index` of a recording: 4 examples with 3 outputs; the content identifies the item."""
    outputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(index))
    return outputs, torch.arange(4) + 10 * index


def record_items(bank: PredictionBank, indices: range) -> None:
    for index in indices:
        bank.append(*item(index), step=index)
