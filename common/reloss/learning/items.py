"""Items, and the sources that make the items of a learning step.

Recorded items alone show the surrogate only what its model happened to predict: early ones are all bad, late ones all
good. The other sources turn recorded items into items of other qualities, by drawing other targets or by changing the
outputs, so that the surrogate learns to rank the whole range.

Every source takes N recorded items and a generator on the CPU, and returns N items. Outputs [N, B, C] are class logits
with targets [N, B]; outputs [N, B] are scores, above 0 for the positive class, with targets in {0, 1}. Sources that
draw targets (`relabelled`, `random`) need one of the two. `shifted`, which moves a threshold, also takes labels and
masks with one score for each target. The other sources take outputs [N, B, ...] of any kind. No source changes which
targets count.
"""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from reloss.metrics import is_open
from reloss.runtime.errors import UsageError


class Items(NamedTuple):
    """N items of B examples: outputs [N, B, ...], targets [N, B, ...].

    `statistics` [N, B, S] are the numbers that the surrogate computes from the outputs alone
    (`SurrogateLoss.statistics`); None where they are not computed yet, or the surrogate has none.
    """

    outputs: Tensor
    targets: Tensor
    statistics: Tensor | None = None

    def select(self, index: Tensor) -> "Items":
        """Return the items at `index`."""
        statistics = None if self.statistics is None else self.statistics[index]
        return Items(self.outputs[index], self.targets[index], statistics)

    def examples(self, index: Tensor) -> "Items":
        """Return items of the examples at `index` [N, B], which counts the examples of all items."""
        statistics = None if self.statistics is None else self.statistics.flatten(0, 1)[index]
        return Items(self.outputs.flatten(0, 1)[index], self.targets.flatten(0, 1)[index], statistics)

    @staticmethod
    def concatenate(parts: "Sequence[Items]") -> "Items":
        """Return the items of all parts; either all parts have statistics, or none has."""
        statistics = [part.statistics for part in parts if part.statistics is not None]
        return Items(
            torch.cat([part.outputs for part in parts]),
            torch.cat([part.targets for part in parts]),
            torch.cat(statistics) if statistics else None,
        )


Source = Callable[[Items, torch.Generator], Items]


def recorded(items: Items, generator: torch.Generator) -> Items:
    """Return the items unchanged, with their true targets."""
    return items


def relabelled(items: Items, generator: torch.Generator) -> Items:
    """Return items whose metric varies from worst to best; accuracy becomes uniform on [0, 1], as in the release.

    Examples are shuffled across the items, and every target becomes the class of the largest logit. Then a suffix of
    each item, of uniform length, gets random classes. With scores, the highest scores become positive, as many as the
    item has positives, and the targets of the suffix are shuffled.

    Source: the label augmentation of the released training script.

    Raises:
        UsageError: the outputs are neither class logits nor scores.
    """
    n, b = items.outputs.shape[:2]
    device = items.outputs.device
    items = items.examples(torch.randperm(n * b, generator=generator).view(n, b).to(device))
    start = torch.randint(b + 1, (n, 1), generator=generator)  # of the suffix
    outputs, targets = items.outputs, items.targets
    if are_scores(items):
        positives = targets.sum(-1, keepdim=True)
        best = (outputs.argsort(-1, descending=True).argsort(-1) < positives).to(targets.dtype)
        place = torch.arange(b).expand(n, b)
        order = torch.where(place < start, place, b + torch.rand(n, b, generator=generator)).argsort(-1)
        return items._replace(targets=best.gather(-1, order.to(device)))
    if outputs.dim() != 3 or targets.dim() != 2 or targets.is_floating_point():
        raise UsageError(
            f"outputs {list(outputs.shape)} with targets {list(targets.shape)} of {targets.dtype} are neither class "
            "logits with whole numbers nor scores of two classes, so they cannot be relabelled; choose mixture=shuffled"
        )
    random = torch.randint(outputs.shape[-1], (n, b), generator=generator).to(device)
    suffix = (torch.arange(b) >= start).to(device)
    return items._replace(targets=torch.where(suffix, random, outputs.argmax(-1)).to(targets.dtype))


def noisy(items: Items, generator: torch.Generator) -> Items:
    """Add normal noise of up to twice the outputs' standard deviation, one size per item, except to masked ones."""
    outputs = items.outputs
    noise = torch.randn(outputs.shape, generator=generator).to(outputs.device)
    unmasked = is_open(outputs)
    sizes = _per_item(2, outputs, generator) * outputs[unmasked].std(correction=0)
    return Items(torch.where(unmasked, outputs + sizes * noise, outputs), items.targets)


def tempered(items: Items, generator: torch.Generator) -> Items:
    """Divide the outputs by a temperature between 1/4 and 4, one per item."""
    exponent = _per_item(4, items.outputs, generator) - 2
    return Items(items.outputs * torch.exp2(exponent), items.targets)


def shifted(items: Items, generator: torch.Generator) -> Items:
    """Add a constant to all scores of an item, or to one class's logits: as if the threshold were another one.

    The constant puts the threshold at the score of a random example. In half of the items with positives (members of
    the class), this example is one of them. So shifted items trade precision for recall, which recorded items hardly
    do. And some of them have right predictions, even if the model predicts no positive at all.

    Raises:
        UsageError: the outputs are neither class logits nor scores.
    """
    outputs, targets = items.outputs, items.targets
    if are_decisions(items):
        return _shifted_decisions(items, generator)
    if outputs.dim() == 2:
        margins, members = outputs, targets == 1
    elif outputs.dim() == 3 and targets.dim() == 2:
        classes = torch.randint(outputs.shape[-1], (len(outputs), 1, 1), generator=generator).to(outputs.device)
        is_class = torch.arange(outputs.shape[-1], device=outputs.device) == classes
        rest = outputs.masked_fill(is_class, -torch.inf).amax(-1)
        margins, members = (
            outputs.gather(-1, classes.expand_as(outputs[..., :1]))[..., 0] - rest,
            targets == classes[..., 0],
        )
    else:
        raise UsageError(
            f"outputs {list(outputs.shape)} are neither class logits nor scores of two classes, so they cannot be "
            "shifted; choose mixture=perturbed"
        )
    wants_member = (torch.rand(len(outputs), 1, generator=generator) < 0.5).to(outputs.device)
    chances = torch.rand(targets.shape, generator=generator).to(outputs.device) + (members & wants_member)
    constants = -margins.gather(-1, chances.argmax(-1, keepdim=True))
    if outputs.dim() == 3:
        constants = constants[..., None] * is_class
    return Items(outputs + constants, targets)


def _shifted_decisions(items: Items, generator: torch.Generator) -> Items:
    """Return `shifted` items of labels or masks: one constant for all scores of an item."""
    scores, targets = items.outputs.flatten(1), items.targets.flatten(1)
    wants_positive = (torch.rand(len(scores), 1, generator=generator) < 0.5).to(scores.device)
    chances = torch.rand(targets.shape, generator=generator).to(scores.device) + ((targets == 1) & wants_positive)
    chances = chances.where(((targets == 0) | (targets == 1)) & is_open(scores), -1)
    constants = -scores.gather(1, chances.argmax(1, keepdim=True)).nan_to_num(neginf=0)
    return Items((scores + constants).view(items.outputs.shape), items.targets)


def blended(items: Items, generator: torch.Generator) -> Items:
    """Replace a random share of each item's examples with those of another item, which blends two training steps."""
    n, b = items.outputs.shape[:2]
    partner = (torch.arange(n) + torch.randint(1, max(n, 2), (n,), generator=generator)) % n
    unchanged = torch.rand(n, b, generator=generator) < torch.rand(n, 1, generator=generator)
    index = torch.where(unchanged, torch.arange(n)[:, None], partner[:, None]) * b + torch.arange(b)
    return items.examples(index.to(items.outputs.device))


def random(items: Items, generator: torch.Generator) -> Items:
    """Draw normal outputs of up to four times the recorded outputs' standard deviation, and relabel them."""
    outputs = items.outputs
    noise = torch.randn(outputs.shape, generator=generator).to(outputs.device)
    generated = _per_item(4, outputs, generator) * outputs.std(correction=0) * noise
    return relabelled(Items(generated, items.targets), generator)


def shuffled(items: Items, generator: torch.Generator) -> Items:
    """Give a suffix of each item, of uniform length, the targets of other examples in the suffix.

    This is the counterpart of `relabelled` for predictions without classes: the metric varies from its recorded value
    down to chance.
    """
    n, b = items.outputs.shape[:2]
    place = torch.arange(b).expand(n, b)
    start = torch.randint(b + 1, (n, 1), generator=generator)  # of the suffix
    rotated = start + (place - start + 1) % (b - start).clamp(min=1)  # the suffix, rotated by one
    order = torch.where(place < start, place, rotated)
    index = (torch.arange(n)[:, None] * b + order).to(items.targets.device)
    return items._replace(targets=items.targets.flatten(0, 1)[index])


SOURCES: dict[str, Source] = {
    source.__name__: source for source in (recorded, relabelled, shuffled, noisy, tempered, shifted, blended, random)
}


def synthetic(items: Items, generator: torch.Generator, sources: Collection[str] = ()) -> Items:
    """Return the items for validation on synthetic items: relabelled if possible, else shuffled, or blended.

    If the fit uses `shifted`, they are shifted instead: a model that predicts no positive gives relabelled items that
    all have the same metric.

    Args:
        items: recorded items.
        generator: decides the result.
        sources: the sources of the fit. Items that cannot be relabelled are blended if the fit uses `blended` but not
            `shuffled`, as for targets that contain the prediction, which must stay together with their outputs.
    """
    if "shifted" in sources:
        return shifted(items, generator)
    try:
        return relabelled(items, generator)
    except UsageError:
        blends = "blended" in sources and "shuffled" not in sources
        return (blended if blends else shuffled)(items, generator)


def are_scores(items: Items) -> bool:
    """Return whether the outputs are scores [N, B] of two classes, with targets in {0, 1}."""
    return (
        items.outputs.shape == items.targets.shape
        and items.outputs.dim() == 2
        and bool(((items.targets == 0) | (items.targets == 1)).all())
    )


def are_decisions(items: Items) -> bool:
    """Return whether the outputs are scores of labels or of a foreground, [N, B, ...], one for each target.

    The targets are 0 and 1, some of them 1; those that do not count are negative or 255.
    """
    outputs, targets = items.outputs, items.targets
    if outputs.dim() < 3 or outputs.numel() != targets.numel():
        return False
    positive = targets == 1
    return bool(positive.any() and ((targets <= 0) | positive | (targets == 255)).all())


def _per_item(largest: float, outputs: Tensor, generator: torch.Generator) -> Tensor:
    """Return one number per item, uniform on [0, largest], shaped to multiply the outputs."""
    sizes = torch.rand(len(outputs), generator=generator) * largest
    return sizes.to(outputs.device).view(-1, *[1] * (outputs.dim() - 1))
