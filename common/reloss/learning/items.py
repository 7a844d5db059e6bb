"""Items to rank: recorded ones with their true targets, and the release's synthetic ones."""

import torch
from torch import Tensor


def relabel_suffix(outputs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Make items whose accuracy is uniform on [0, 1] from recorded logits, as the release does.

    Examples are shuffled across the items; every target becomes the class of the largest logit; then a suffix of each
    item, of uniform length, gets random classes. Source: the label augmentation of the released training script.

    Args:
        outputs: [N, B, C] logits.
        generator: on the CPU.

    Returns:
        outputs [N, B, C], shuffled, and targets [N, B].
    """
    n, b, c = outputs.shape
    order = torch.randperm(n * b, generator=generator).to(outputs.device)
    outputs = outputs.flatten(0, 1)[order].view(n, b, c)
    kept = torch.randint(b + 1, (n, 1), generator=generator)
    random = torch.randint(c, (n, b), generator=generator)
    suffix = (torch.arange(b) >= kept).to(outputs.device)
    return outputs, torch.where(suffix, random.to(outputs.device), outputs.argmax(-1))
