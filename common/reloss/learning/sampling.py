"""Sampling: the split of a bank into items to learn from and held-out items, and the items of each step.

Every step draws recorded items at random and passes them through the sources of the mixture. The metric of recorded
items is computed once, before the first step. The metric of other items is computed in every step, unless it is slow:
then these items come from a pool that is made, and measured, beforehand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from reloss.learning.bank import PredictionBank
from reloss.learning.items import SOURCES, Items
from reloss.learning.measure import Measure
from reloss.learning.options import LearnOptions
from reloss.runtime.errors import RelossError
from reloss.runtime.progress import progress
from reloss.surrogates import SurrogateLoss

MAX_VALIDATION_ITEMS = 1024
CHUNK = 256  # items read at a time
POOL = 1024  # default size of the pool for a metric that is computed item by item


class ScoredItems(NamedTuple):
    """N items and their metric [N], higher where predictions are better."""

    items: Items
    metric: Tensor

    def select(self, index: Tensor) -> ScoredItems:
        """Return the items at `index`."""
        return ScoredItems(self.items.select(index), self.metric[index])

    @staticmethod
    def concatenate(parts: Sequence[ScoredItems]) -> ScoredItems:
        """Return the items of all parts."""
        return ScoredItems(
            Items.concatenate([part.items for part in parts]), torch.cat([part.metric for part in parts])
        )


def split_items(total: int, options: LearnOptions, bank: str = "") -> tuple[Tensor, Tensor]:
    """Return the indices of the items to learn from, shuffled, and of the held-out items, sorted.

    Args:
        total: the number of items in the bank.
        options: the share of held-out items, and the seed.
        bank: the name of the bank, for the error message.

    Raises:
        RelossError: there are too few items to hold some out.
    """
    order = torch.randperm(total, generator=torch.Generator().manual_seed(options.seed))
    held_out = min(round(total * options.validation_fraction), MAX_VALIDATION_ITEMS)
    if held_out < 2 or total - held_out < 2:
        raise RelossError(
            f"the bank {bank} holds {total} items, too few to learn from and to hold out "
            f"{options.validation_fraction:.0%}; record longer, or with a smaller item_size, and end the recording "
            "with bank.finish()"
        )
    return order[held_out:], order[:held_out].sort().values


def split_counts(total: int, shares: dict[str, float]) -> dict[str, int]:
    """Return whole numbers that sum to `total`, in proportion to `shares`; each is at least 1 if `total` allows it."""
    counts, remainder, weight = {}, total, sum(shares.values())
    for number, (name, share) in enumerate(shares.items()):
        following = len(shares) - number - 1
        proportional = max(round(remainder * share / weight), 1)
        counts[name] = min(proportional, max(remainder - following, 0)) if following else remainder
        remainder, weight = remainder - counts[name], weight - share
    return {name: count for name, count in counts.items() if count}


class RecordedItems:
    """The items of a bank with their metric, and the surrogate's statistics of their outputs; both computed once.

    Attributes:
        metric: [len(bank)], higher where predictions are better.
        statistics: [len(bank), B, S], or None; see `Items`.

    Raises:
        RelossError: the surrogate cannot learn from the bank's predictions, or the metric cannot measure them.
    """

    def __init__(
        self, bank: PredictionBank, surrogate: SurrogateLoss, measure: Measure, device: str | torch.device
    ) -> None:
        self.bank, self.surrogate, self.device = bank, surrogate, device
        metric, statistics = [], []
        extremes: list[Tensor] = []
        chunks = torch.arange(len(bank)).split(CHUNK)
        with progress(len(chunks), "reading the bank") as advance, torch.no_grad():
            for indices in chunks:
                items = Items(*bank.items(indices, device))
                self._check_kind(items)
                metric.append(measure(items, first=int(indices[0])))
                statistics.append(surrogate.statistics(items.outputs))
                extremes += items.targets.aminmax()
                advance()
        if items.targets.dim() == 2 and min(extremes) == max(extremes):
            raise RelossError(
                f"all targets in the bank {bank.path} are {extremes[0].item()}, so no item is better than another; "
                "record predictions for targets of all classes"
            )
        self.metric = torch.cat(metric)
        self.statistics = None if statistics[0] is None else torch.cat(statistics)  # type: ignore[arg-type]

    def _check_kind(self, items: Items) -> None:
        """Raise RelossError unless the surrogate can learn from such items."""
        try:
            self.surrogate.check(items.outputs, items.targets)
        except ValueError as error:
            shapes = f"outputs [N, {_sizes(items.outputs)}] and targets [N, {_sizes(items.targets)}]"
            raise RelossError(
                f"{type(self.surrogate).__name__} cannot learn from the bank {self.bank.path}, which holds {shapes}: "
                f"{error}"
            ) from error

    def select(self, indices: Tensor) -> ScoredItems:
        """Return the items at `indices` [N], on the CPU, with their metric."""
        rows = indices.to(self.device)
        statistics = None if self.statistics is None else self.statistics[rows]
        return ScoredItems(Items(*self.bank.items(indices, self.device), statistics), self.metric[rows])

    def last(self, count: int) -> ScoredItems:
        """Return the `count` items of the last recorded steps, the last one first."""
        order = self.bank.steps().argsort(stable=True).flip(0)
        return self.select(order[:count])

    def with_statistics(self, items: Items) -> Items:
        """Return the items with their statistics, which are computed if they are missing and the surrogate has any."""
        if items.statistics is None and self.statistics is not None:
            return items._replace(statistics=self.surrogate.statistics(items.outputs))
        return items


class Sampler:
    """Draws the items of each step.

    Args:
        recorded: the items of the bank.
        indices: the indices of the items to learn from.
        measure: the metric, for items that are not recorded.
        options: the number of items of a step, the mixture and the size of the pool.
        pool_generator: decides the items of the pool.

    Attributes:
        generator: decides the items of each step; its state is part of a fit's checkpoint.
        pool: the items of each source that is not `recorded`; None if they are made in every step.
    """

    def __init__(
        self,
        recorded: RecordedItems,
        indices: Tensor,
        measure: Measure,
        options: LearnOptions,
        pool_generator: torch.Generator,
    ) -> None:
        self.recorded, self.indices, self.measure, self.options = recorded, indices, measure, options
        self.generator = torch.Generator().manual_seed(options.seed)
        size = options.pool or (POOL if measure.by_item else None)
        self.pool = self._make_pool(size, pool_generator) if size else None

    def draw(self) -> ScoredItems:
        """Return the items of one step; the mixture decides how many come from each source."""
        parts = []
        for source, count in split_counts(self.options.items, self.options.shares()).items():
            if self.pool is None or source == "recorded":
                parts.append(self._make(source, count, self.generator))
            else:
                pool = self.pool[source]
                index = torch.randint(len(pool.metric), (count,), generator=self.generator)
                parts.append(pool.select(index.to(self.recorded.device)))
        return ScoredItems.concatenate(parts)

    def _make(self, source: str, count: int, generator: torch.Generator) -> ScoredItems:
        """Return `count` items of a source."""
        choice = torch.randint(len(self.indices), (count,), generator=generator)
        recorded = self.recorded.select(self.indices[choice])
        items = self.recorded.with_statistics(SOURCES[source](recorded.items, generator))
        metric = recorded.metric if source == "recorded" else self.measure(items, f"{source} item")
        return ScoredItems(items, metric)

    def _make_pool(self, size: int, generator: torch.Generator) -> dict[str, ScoredItems]:
        """Return `size` items, by the sources other than `recorded`, in proportion to their shares."""
        shares = {source: share for source, share in self.options.shares().items() if source != "recorded"}
        return {source: self._make(source, count, generator) for source, count in split_counts(size, shares).items()}


def _sizes(values: Tensor) -> str:
    return ", ".join(map(str, values.shape[1:]))
