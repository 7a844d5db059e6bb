"""Where the items of a learning step come from: recorded ones, and those made of them.

Every source takes recorded items and a generator on the CPU and returns as many items. Outputs [N, B, C] are class
logits with targets [N, B]; outputs [N, B] are scores, above 0 for the positive class, with targets in {0, 1}. Sources
that draw targets need one of the two; the others take outputs [N, B, ...] of any kind.
"""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from reloss.metrics import is_open
from reloss.runtime.errors import UsageError


class Items(NamedTuple):
    """N items of B examples: outputs [N, B, ...], targets [N, B, ...].

    `statistics` [N, B, S] is what the surrogate keeps of the outputs whatever their targets
    (`SurrogateLoss.statistics`); None where it has to be computed, or where the surrogate keeps nothing.
    """

    outputs: Tensor
    targets: Tensor
    statistics: Tensor | None = None

    def select(self, index: Tensor) -> "Items":
        """Return the items at `index`."""
        statistics = None if self.statistics is None else self.statistics[index]
        return Items(self.outputs[index], self.targets[index], statistics)

    def examples(self, index: Tensor) -> "Items":
        """Return items made of the examples at `index` [N, B], which counts over all items."""
        statistics = None if self.statistics is None else self.statistics.flatten(0, 1)[index]
        return Items(self.outputs.flatten(0, 1)[index], self.targets.flatten(0, 1)[index], statistics)

    @staticmethod
    def concatenate(parts: "Sequence[Items]") -> "Items":
        """Return the items of all parts; all of them have statistics, or none."""
        statistics = [part.statistics for part in parts if part.statistics is not None]
        return Items(
            torch.cat([part.outputs for part in parts]),
            torch.cat([part.targets for part in parts]),
            torch.cat(statistics) if statistics else None,
        )


Source = Callable[[Items, torch.Generator], Items]


def recorded(items: Items, generator: torch.Generator) -> Items:
    """Return the items as they are, with their true targets."""
    return items


def relabelled(items: Items, generator: torch.Generator) -> Items:
    """Make items whose metric varies from worst to best, as the release does for accuracy, uniform on [0, 1].

    Examples are shuffled across the items; every target becomes the class of the largest logit; then a suffix of each
    item, of uniform length, gets random classes. For scores, as many of the highest as an item has positives become
    positive, and the suffix gets its targets in random order. Source: the label augmentation of the released training
    script.

    Raises:
        UsageError: the outputs are neither class logits nor scores.
    """
    n, b = items.outputs.shape[:2]
    device = items.outputs.device
    items = items.examples(torch.randperm(n * b, generator=generator).view(n, b).to(device))
    kept = torch.randint(b + 1, (n, 1), generator=generator)
    outputs, targets = items.outputs, items.targets
    if _are_scores(items):
        positives = targets.sum(-1, keepdim=True)
        best = (outputs.argsort(-1, descending=True).argsort(-1) < positives).to(targets.dtype)
        place = torch.arange(b).expand(n, b)
        order = torch.where(place < kept, place, b + torch.rand(n, b, generator=generator)).argsort(-1)
        return items._replace(targets=best.gather(-1, order.to(device)))
    if outputs.dim() != 3 or targets.dim() != 2 or targets.is_floating_point():
        raise UsageError(
            f"outputs {list(outputs.shape)} with targets {list(targets.shape)} of {targets.dtype} are neither class "
            "logits with whole numbers nor scores of two classes, so they cannot be relabelled; choose mixture=shuffled"
        )
    random = torch.randint(outputs.shape[-1], (n, b), generator=generator).to(device)
    suffix = (torch.arange(b) >= kept).to(device)
    return items._replace(targets=torch.where(suffix, random, outputs.argmax(-1)).to(targets.dtype))


def noisy(items: Items, generator: torch.Generator) -> Items:
    """Add normal noise of up to twice the outputs' standard deviation, one size for each item; masked ones stay so."""
    outputs = items.outputs
    noise = torch.randn(outputs.shape, generator=generator).to(outputs.device)
    own = is_open(outputs)
    sizes = _per_item(2, outputs, generator) * outputs[own].std(correction=0)
    return Items(torch.where(own, outputs + sizes * noise, outputs), items.targets)


def tempered(items: Items, generator: torch.Generator) -> Items:
    """Divide the outputs by a temperature between 1/4 and 4, one for each item."""
    exponent = _per_item(4, items.outputs, generator) - 2
    return Items(items.outputs * torch.exp2(exponent), items.targets)


def blended(items: Items, generator: torch.Generator) -> Items:
    """Mix items, so checkpoints: of each item a random share of the examples is swapped for another item's."""
    n, b = items.outputs.shape[:2]
    other = (torch.arange(n) + torch.randint(1, max(n, 2), (n,), generator=generator)) % n
    own = torch.rand(n, b, generator=generator) < torch.rand(n, 1, generator=generator)
    index = torch.where(own, torch.arange(n)[:, None], other[:, None]) * b + torch.arange(b)
    return items.examples(index.to(items.outputs.device))


def random(items: Items, generator: torch.Generator) -> Items:
    """Make normal outputs of up to four times the recorded ones' standard deviation, and relabel them."""
    outputs = items.outputs
    noise = torch.randn(outputs.shape, generator=generator).to(outputs.device)
    generated = _per_item(4, outputs, generator) * outputs.std(correction=0) * noise
    return relabelled(Items(generated, items.targets), generator)


def shuffled(items: Items, generator: torch.Generator) -> Items:
    """Spoil items of any kind: a suffix of each, of uniform length, gets the targets of other examples in it.

    The counterpart of the release's label augmentation for predictions without classes: the metric varies from what it
    is to chance.
    """
    n, b = items.outputs.shape[:2]
    place = torch.arange(b).expand(n, b)
    kept = torch.randint(b + 1, (n, 1), generator=generator)
    shifted = kept + (place - kept + 1) % (b - kept).clamp(min=1)  # the suffix turned round by one
    order = torch.where(place < kept, place, shifted)
    index = (torch.arange(n)[:, None] * b + order).to(items.targets.device)
    return items._replace(targets=items.targets.flatten(0, 1)[index])


SOURCES: dict[str, Source] = {
    source.__name__: source for source in (recorded, relabelled, shuffled, noisy, tempered, blended, random)
}


def synthetic(items: Items, generator: torch.Generator, sources: Collection[str] = ()) -> Items:
    """Return the items on which a surrogate is validated beside the recorded: relabelled, else shuffled.

    Where items cannot be relabelled and `sources`, those that are learned from, hold blended but no shuffled ones: as
    where the targets hold what was predicted, they are blended.
    """
    try:
        return relabelled(items, generator)
    except UsageError:
        blends = "blended" in sources and "shuffled" not in sources
        return (blended if blends else shuffled)(items, generator)


def _are_scores(items: Items) -> bool:
    return (
        items.outputs.shape == items.targets.shape
        and items.outputs.dim() == 2
        and bool(((items.targets == 0) | (items.targets == 1)).all())
    )


def _per_item(largest: float, outputs: Tensor, generator: torch.Generator) -> Tensor:
    """Return one number for each item, uniform on [0, largest], to multiply the outputs with."""
    sizes = torch.rand(len(outputs), generator=generator) * largest
    return sizes.to(outputs.device).view(-1, *[1] * (outputs.dim() - 1))
