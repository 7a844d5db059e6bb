"""Metrics of class scores."""

from torch import Tensor


def topk_accuracy(outputs: Tensor, targets: Tensor, k: int) -> Tensor:
    """Return the share of examples whose target is among the k largest outputs.

    Args:
        outputs: [N, B, C] scores; equal scores are ordered as `torch.topk` orders them.
        targets: [N, B] classes.
        k: from 1 to C.

    Returns:
        [N] in [0, 1].

    Raises:
        ValueError: the shapes do not agree, or k is not in 1..C.
    """
    if outputs.dim() != 3 or targets.shape != outputs.shape[:2]:
        raise ValueError(
            f"expected outputs [N, B, C] and targets [N, B], not {list(outputs.shape)}, {list(targets.shape)}"
        )
    if not 1 <= k <= outputs.shape[-1]:
        raise ValueError(f"k must be from 1 to the {outputs.shape[-1]} classes, not {k}")
    best = outputs.topk(k, dim=-1).indices
    return (best == targets[..., None]).any(-1).float().mean(-1)


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the share of examples whose target has the largest output: outputs [N, B, C], targets [N, B] -> [N]."""
    return topk_accuracy(outputs, targets, 1)


def top5_accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the share of examples whose target is among the five largest outputs (of at least five classes)."""
    return topk_accuracy(outputs, targets, 5)
