"""Made predictions of labels, masks, numbers and lists, for the tests of their surrogates."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Predictions = tuple[Tensor, Tensor]


class Kind(NamedTuple):
    """How to make predictions of a kind, to improve them, and to mark everything as ignored."""

    make: Callable[..., Predictions]
    """(quality, seed, items, examples) -> outputs and targets. Some targets do not count."""
    improve: Callable[[Tensor, Tensor, Tensor, torch.Generator], Tensor]
    """(outputs, targets, steps [N, B, ...] of at least 0, generator) -> outputs that are nowhere worse."""
    ignored: float
    """Target that does not count."""
    options: dict[str, object]
    """Arguments of the constructor."""
    metric: str
    shape: tuple[int, ...]
    """Shape of one example's outputs."""


def _randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _rand(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def labels(quality: float = 1.0, seed: int = 0, n: int = 6, b: int = 16) -> Predictions:
    targets = (_rand(seed, n, b, 3) < torch.tensor([0.1, 0.3, 0.6])).long()
    outputs = _randn(seed + 1, n, b, 3) + quality * (2 * targets - 1)
    return outputs, targets.masked_fill(_rand(seed + 2, n, b, 3) < 0.1, -1)


def foreground(quality: float = 1.0, seed: int = 0, n: int = 6, b: int = 4) -> Predictions:
    targets = (_rand(seed, n, b, 6, 5) < 0.4 * _rand(seed + 3, n, b, 1, 1)).long()
    outputs = _randn(seed + 1, n, b, 1, 6, 5) + quality * (2 * targets - 1)[:, :, None]
    return outputs, targets.masked_fill(_rand(seed + 2, *targets.shape) < 0.1, -100)


def classes(quality: float = 1.0, seed: int = 0, n: int = 6, b: int = 4) -> Predictions:
    targets = (_rand(seed, n, b, 6, 5).square() * 3).long()
    one_hot = torch.nn.functional.one_hot(targets, 3).movedim(-1, 2)
    outputs = _randn(seed + 1, n, b, 3, 6, 5) + 2 * quality * one_hot
    return outputs, targets.masked_fill(_rand(seed + 2, *targets.shape) < 0.1, 255)


def numbers(quality: float = 1.0, seed: int = 0, n: int = 6, b: int = 16) -> Predictions:
    targets = torch.tensor([2.0, 10.0]) * _randn(seed, n, b, 2) + 5
    outputs = targets + torch.tensor([2.0, 10.0]) * _randn(seed + 1, n, b, 2) / (0.3 + quality)
    return outputs, targets.masked_fill(_rand(seed + 2, n, b, 2) < 0.1, torch.nan)


def lists(quality: float = 1.0, seed: int = 0, n: int = 6, b: int = 5) -> Predictions:
    targets = (_rand(seed, n, b, 14) * 5 - 2).clamp(min=0).ceil().long()
    outputs = _randn(seed + 1, n, b, 14) + quality * targets
    lengths = 3 + (12 * _rand(seed + 2, n, b, 1)).long()
    return outputs, targets.where(torch.arange(14) < lengths, -1)


def _raise_positives(outputs: Tensor, targets: Tensor, steps: Tensor, generator: torch.Generator) -> Tensor:
    return outputs + steps * (2 * (targets == 1) - 1).reshape(outputs.shape)


def _raise_own_class(outputs: Tensor, targets: Tensor, steps: Tensor, generator: torch.Generator) -> Tensor:
    return outputs + steps * (targets[:, :, None] == torch.arange(outputs.shape[2])[:, None, None])


def _approach(outputs: Tensor, targets: Tensor, steps: Tensor, generator: torch.Generator) -> Tensor:
    """Errors of a dimension shrink by the same factor: then its correlations cannot fall either."""
    factor = 1 / (1 + steps[:, :1])
    return targets.nan_to_num(nan=0) + (outputs - targets.nan_to_num(nan=0)) * factor


def _raise_grade(outputs: Tensor, targets: Tensor, steps: Tensor, generator: torch.Generator) -> Tensor:
    """All documents of a random grade and above rise together, and some without relevance fall."""
    grade = torch.randint(1, 4, (*outputs.shape[:2], 1), generator=generator)
    return outputs + steps[..., :1] * (targets >= grade) - steps * (targets == 0)


KINDS = {
    "labels": Kind(labels, _raise_positives, -1, {}, "label_macro_f1", (3,)),
    "foreground": Kind(foreground, _raise_positives, -100, {}, "dice", (1, 6, 5)),
    "masks": Kind(classes, _raise_own_class, 255, {}, "mean_iou", (3, 6, 5)),
    "regression": Kind(numbers, _approach, torch.nan, {"spread": [2.0, 10.0]}, "concordance", (2,)),
    "lists": Kind(lists, _raise_grade, -1, {}, "list_ndcg10", (14,)),
}


def name_of(kind: str) -> str:
    """The name of the surrogate's kind."""
    return "masks" if kind == "foreground" else kind
