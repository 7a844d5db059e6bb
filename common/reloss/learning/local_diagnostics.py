"""Local diagnostics: whether a loss can teach, measured where training with it will start.

A high rank correlation over a whole bank says that a loss tells a good model from a bad one. Training asks for more: at
the predictions of the current model, a small change that improves the metric must lower the loss, and the loss must
change enough to be followed. So some of the last recorded items are changed a little, many times, and the changes of
loss and metric are compared.

Source: Razin et al. (2025), What Makes a Reward Model a Good Teacher?, who find that accuracy alone does not decide.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from reloss.learning.items import Items
from reloss.learning.measure import Measure
from reloss.metrics import is_open
from reloss.ranking import pearson, spearman

LossPerItem = Callable[[Tensor, Tensor], Tensor]

ITEMS = 8  # items that are changed
CHANGES = 32  # changes of each item
NOISE = 0.1  # size of a change, relative to the outputs' standard deviation
EXCHANGED = 0.1  # share of the examples that another item replaces
THRESHOLDS = 33  # shifts of the scores among which a loss chooses


class LocalChanges:
    """Small changes of the last recorded items, with their metric.

    An item is changed by normal noise on its outputs. Where that does not change the metric, as the targets contain the
    prediction, a tenth of its examples is replaced by examples of the other items instead. Items whose metric no change
    alters are skipped.

    Args:
        items: the last recorded items; the first ITEMS are changed.
        measure: the metric.
        seed: seed of the changes.
    """

    def __init__(self, items: Items, measure: Measure, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.items = items.select(torch.arange(min(ITEMS, len(items.targets)), device=items.targets.device))
        self.noise: Tensor | None = _noise(self.items, generator)
        self.changed = _with_noise(self.items, self.noise)
        self.metric = self._measured(measure)
        if not _varies(self.metric).any():
            self.noise, self.changed = None, _exchanged(items, len(self.items.targets), generator)
            self.metric = self._measured(measure)
        self.varied = _varies(self.metric)

    def _measured(self, measure: Measure) -> Tensor:
        return measure(self.changed, "changed item").view(-1, CHANGES)

    def diagnose(self, loss: LossPerItem, suffix: str = "") -> dict[str, float]:
        """Return how a loss follows the metric: (outputs [N, B, ...], targets [N, B, ...]) -> [N].

        Returns:
            Means over the items, with `suffix` after their names; empty if no change alters the metric.
            `local_spearman`: Spearman's correlation of minus the loss with the metric over the changes.
            `local_spread`: standard deviation of the loss over the changes. `local_cosine`: cosine between the loss's
            slopes in the directions of the noise, with a minus sign, and the metric's changes; only for noise.
        """
        if not self.varied.any():
            return {}
        metric = self.metric[self.varied]
        with torch.no_grad():
            losses = loss(self.changed.outputs, self.changed.targets).view(-1, CHANGES)[self.varied]
        figures = {
            f"local_spearman{suffix}": float(spearman(-losses, metric).mean()),
            f"local_spread{suffix}": float(losses.std(-1).mean()),
        }
        if self.noise is not None:
            slopes = _slopes(loss, self.items, self.noise)[self.varied]
            figures[f"local_cosine{suffix}"] = float(pearson(-slopes, metric).mean())
        return figures


def _noise(items: Items, generator: torch.Generator) -> Tensor:
    """Return the noise of all changes: [N, CHANGES, B, ...], 0 where outputs are masked."""
    outputs = items.outputs
    unmasked = is_open(outputs)
    size = NOISE * outputs[unmasked].float().std(correction=0)
    shape = (len(outputs), CHANGES, *outputs.shape[1:])
    noise = size * torch.randn(shape, generator=generator).to(outputs.device)
    return noise.where(unmasked[:, None], 0)


def _with_noise(items: Items, noise: Tensor) -> Items:
    """Return the changed items: N items and their noise [N, CHANGES, B, ...] -> N CHANGES items."""
    outputs = (items.outputs[:, None] + noise).flatten(0, 1)
    return Items(outputs, items.targets.repeat_interleave(CHANGES, 0))


def _exchanged(items: Items, count: int, generator: torch.Generator) -> Items:
    """Return CHANGES versions of the first `count` items, in which examples of all items replace a random tenth."""
    size = items.targets.shape[1]
    item = torch.arange(count).repeat_interleave(CHANGES)[:, None]
    other = torch.randint(len(items.targets), (len(item), size), generator=generator)
    replaced = torch.rand(len(item), size, generator=generator) < EXCHANGED
    index = torch.where(replaced, other, item) * size + torch.arange(size)
    return items.examples(index.to(items.targets.device))


def _slopes(loss: LossPerItem, items: Items, noise: Tensor) -> Tensor:
    """Return the derivative of the loss in each direction of the noise: [N, CHANGES]."""
    outputs = items.outputs.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(outputs, items.targets).sum(), outputs)
    return torch.einsum("nk,npk->np", gradient.flatten(1), noise.flatten(2))


def _varies(metric: Tensor) -> Tensor:
    """Return for which items the metric differs between changes: [N, CHANGES] -> [N]."""
    return metric.amax(-1) > metric.amin(-1)


def preferred_positives(loss: LossPerItem, items: Items) -> float:
    """Return the number of predicted positives per true positive, at the threshold that a loss prefers.

    All scores are shifted by the same constant, as a model's bias does it, so that the threshold stands at one of
    THRESHOLDS quantiles of the scores. The shift with the smallest mean loss is where training drifts.

    Args:
        loss: (outputs [N, B], targets [N, B]) -> [N].
        items: items of scores, with targets in {0, 1} and at least one positive.
    """
    scores = items.outputs.flatten().sort().values
    thresholds = scores[torch.linspace(0, len(scores) - 1, THRESHOLDS, device=scores.device).long()]
    with torch.no_grad():
        losses = torch.stack([loss(items.outputs - threshold, items.targets).mean() for threshold in thresholds])
    preferred = thresholds[losses.argmin()]
    return float((items.outputs > preferred).sum() / (items.targets > 0).sum())
