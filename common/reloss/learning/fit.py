"""Learn a surrogate on a prediction bank."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reloss.errors import RelossError, UsageError
from reloss.files import atomic
from reloss.learning.bank import PredictionBank
from reloss.learning.items import SOURCES, Items, synthetic
from reloss.learning.measure import Measure
from reloss.learning.objective import check_finite, rank_objective, value_objective
from reloss.learning.options import LearnOptions
from reloss.metrics import Metric
from reloss.progress import progress, say
from reloss.ranking import spearman
from reloss.surrogates import SurrogateLoss
from reloss.surrogates.base import gradient_norms

MAX_VALIDATION_ITEMS = 1024
CHUNK = 256


@dataclass(frozen=True)
class FitResult:
    """A learned surrogate and how it was learned.

    Attributes:
        surrogate: frozen, with its best weights.
        history: one entry a validation: step, objective, correlation, penalty, and the held-out figures below.
        spearman: of minus the loss with the metric, on held-out recorded items with their true targets.
        spearman_synthetic: the same on held-out synthetic items.
        spearman_ordinary: of the ordinary loss, on the same recorded items.
        validation_items: how many held-out items these figures rest on.
        step: at which the best weights were found.
    """

    surrogate: SurrogateLoss
    history: list[dict[str, float]]
    spearman: float
    spearman_synthetic: float
    spearman_ordinary: float
    validation_items: int
    step: int

    def summary(self) -> dict[str, float]:
        """Return the figures without surrogate and history, for a record."""
        names = ("spearman", "spearman_synthetic", "spearman_ordinary", "validation_items", "step")
        return {name: getattr(self, name) for name in names}


def fit_surrogate(
    surrogate: SurrogateLoss,
    bank: PredictionBank,
    metric: Metric,
    *,
    higher_is_better: bool = True,
    options: LearnOptions | None = None,
    device: str | torch.device = "cpu",
    checkpoint: Path | None = None,
    on_validation: Callable[[dict[str, float]], None] | None = None,
    **settings: Any,
) -> FitResult:
    """Learn `surrogate` so that its loss ranks items as the metric does; returns it frozen, with its best weights.

    Args:
        surrogate: to be learned, in place.
        bank: recorded predictions; a share of its items is held out for validation.
        metric: (outputs [N, B, ...], targets [N, B, ...]) -> [N].
        higher_is_better: whether a larger metric is a better prediction.
        options: how; `settings` are single options, such as fidelity="released" or steps=200.
        device: where to learn.
        checkpoint: a file in which the state is kept at each validation, and from which an interrupted fit goes on.
        on_validation: called with each entry of the history.

    Raises:
        UsageError: options and settings are both given.
        RelossError: too few items in the bank, a metric that is not one finite value an item, or a checkpoint that
            cannot be read or belongs to another fit.
    """
    if options is not None and settings:
        raise UsageError("give fit_surrogate either options or single settings, not both")
    measure = Measure(metric, higher_is_better)
    fit = _Fit(surrogate, bank, measure, options or LearnOptions(**settings), device)
    if checkpoint is not None and checkpoint.exists():
        fit.load(checkpoint)
        say(f"learning goes on from step {fit.step}")
    with progress(fit.options.steps, "learn surrogate", fit.step) as advance:
        while fit.step < fit.options.steps:
            parts = fit.learn_step()
            advance()
            if fit.step % fit.options.validate_every == 0 or fit.step == fit.options.steps:
                entry = fit.validate(parts)
                if checkpoint is not None:
                    fit.save(checkpoint)
                if on_validation is not None:
                    on_validation(entry)
    return fit.result()


def split_items(total: int, options: LearnOptions, where: str = "") -> tuple[Tensor, Tensor]:
    """Return the indices of the items to learn from, shuffled, and of the held-out ones, in order.

    Raises:
        RelossError: `total` items are too few to hold some out.
    """
    order = torch.randperm(total, generator=torch.Generator().manual_seed(options.seed))
    held = min(round(total * options.validation_fraction), MAX_VALIDATION_ITEMS)
    if held < 2 or total - held < 2:
        raise RelossError(
            f"the bank {where} holds {total} items, too few to learn from and to hold out "
            f"{options.validation_fraction:.0%}; record longer, or with a smaller item_size"
        )
    return order[held:], order[:held].sort().values


class _Fit:
    """The state of one fit: everything that a checkpoint holds, and the held-out items."""

    def __init__(
        self,
        surrogate: SurrogateLoss,
        bank: PredictionBank,
        measure: Measure,
        options: LearnOptions,
        device: str | torch.device,
    ) -> None:
        self.surrogate = surrogate.to(device).requires_grad_().train()  # one that was loaded comes frozen
        self.bank, self.measure, self.options, self.device = bank, measure, options, device
        self.optimizer = torch.optim.Adam(
            surrogate.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
        )
        self.generator = torch.Generator().manual_seed(options.seed)
        self.train_items, self.held_out = split_items(len(bank), options, where=str(bank.path))
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Any] = {
            "score": -float("inf"),
            "step": 0,
            "weights": copy.deepcopy(surrogate.state_dict()),
        }
        generator = torch.Generator().manual_seed(options.seed + 1)
        self._read_bank()
        real = self._recorded(self.held_out)
        self.validation = {"spearman": real, "spearman_synthetic": synthetic(real, generator)}
        self.validation_metric = {
            "spearman": self.metric[self.held_out.to(device)],
            "spearman_synthetic": measure(self.validation["spearman_synthetic"]),
        }
        self.pool = self._make_pool(options.pool, generator) if options.pool else None

    def _read_bank(self) -> None:
        """Compute the metric of every recorded item, and what the surrogate needs of it, once: [len(bank), ...]."""
        metric, statistics = [], []
        chunks = torch.arange(len(self.bank)).split(CHUNK)
        with progress(len(chunks), "reading the bank") as advance, torch.no_grad():
            for indices in chunks:
                items = Items(*self.bank.items(indices, self.device))
                metric.append(self.measure(items))
                statistics.append(self.surrogate.statistics(items.outputs))
                advance()
        self.metric = torch.cat(metric)
        self.statistics = None if statistics[0] is None else torch.cat(statistics)  # type: ignore[arg-type]

    def _recorded(self, indices: Tensor) -> Items:
        statistics = None if self.statistics is None else self.statistics[indices.to(self.device)]
        return Items(*self.bank.items(indices, self.device), statistics)

    def _draw(self, count: int, generator: torch.Generator) -> Tensor:
        return self.train_items[torch.randint(len(self.train_items), (count,), generator=generator)]

    def _from_source(self, name: str, count: int, generator: torch.Generator) -> tuple[Items, Tensor]:
        """Return `count` items of a source, and their metric."""
        indices = self._draw(count, generator)
        items = SOURCES[name](self._recorded(indices), generator)
        if items.statistics is None and self.statistics is not None:
            items = items._replace(statistics=self.surrogate.statistics(items.outputs))
        return items, self.metric[indices.to(self.device)] if name == "recorded" else self.measure(items)

    def _make_pool(self, size: int, generator: torch.Generator) -> dict[str, tuple[Items, Tensor]]:
        """Return the items from which those that are not recorded are drawn, by source."""
        shares = {name: share for name, share in self.options.shares().items() if name != "recorded"}
        return {name: self._from_source(name, count, generator) for name, count in split_counts(size, shares).items()}

    def sample(self) -> tuple[Items, Tensor]:
        """Draw the items of one step, as many of each source as its share says, and return them with their metric."""
        parts = []
        for name, count in split_counts(self.options.items, self.options.shares()).items():
            if self.pool is None or name == "recorded":
                parts.append(self._from_source(name, count, self.generator))
            else:
                items, metric = self.pool[name]
                index = torch.randint(len(metric), (count,), generator=self.generator).to(self.device)
                parts.append((items.select(index), metric[index]))
        return Items.concatenate([items for items, _ in parts]), torch.cat([metric for _, metric in parts])

    def learn_step(self) -> dict[str, Tensor]:
        items, metric = self.sample()
        if self.options.objective == "rank":
            parts = rank_objective(self.surrogate, items, metric, self.options)
        else:
            parts = value_objective(self.surrogate, items, metric)
        self.optimizer.zero_grad(set_to_none=True)
        parts.total.backward()
        self.optimizer.step()
        self.step += 1
        return {"objective": parts.total.detach(), "correlation": parts.correlation, "penalty": parts.penalty}

    @torch.no_grad()
    def _correlation(self, name: str) -> float:
        """Return Spearman's correlation of minus the loss with the metric, on held-out items."""
        items = self.validation[name]
        losses = self.surrogate.per_item(items.outputs, items.targets)
        check_finite(losses)
        return float(spearman(-losses, self.validation_metric[name]))

    @torch.no_grad()
    def validate(self, parts: dict[str, Tensor]) -> dict[str, float]:
        """Measure on the held-out items, and keep the weights if they are the best so far."""
        entry: dict[str, float] = {"step": self.step, **{name: float(value) for name, value in parts.items()}}
        for name, items in self.validation.items():
            entry[name] = self._correlation(name)
            if self.options.objective == "value":
                losses = self.surrogate.per_item(items.outputs, items.targets)
                entry[name.replace("spearman", "squared_error")] = float(
                    (losses - 1 + self.validation_metric[name]).square().mean()
                )
        # Validate on what is learned from: recorded items where they take part, else synthetic ones.
        suffix = "" if "recorded" in self.options.shares() else "_synthetic"
        score = -entry["squared_error" + suffix] if self.options.objective == "value" else entry["spearman" + suffix]
        if score > self.best["score"]:
            self.best = {"score": score, "step": self.step, "weights": copy.deepcopy(self.surrogate.state_dict())}
        self.history.append(entry)
        say(
            f"step {self.step}/{self.options.steps}: "
            + " ".join(f"{k} {v:.4f}" for k, v in entry.items() if k != "step")
        )
        return entry

    def result(self) -> FitResult:
        self.surrogate.load_state_dict(self.best["weights"])
        self.surrogate.freeze()
        outputs, targets, _ = self.validation["spearman"]
        if self.options.calibrate:
            self.surrogate.scale *= _calibration(self.surrogate, outputs, targets)
        with torch.no_grad():
            ordinary = spearman(-self.surrogate.ordinary_loss(outputs, targets), self.validation_metric["spearman"])
        best = next(entry for entry in self.history if entry["step"] == self.best["step"])
        return FitResult(
            surrogate=self.surrogate,
            history=self.history,
            spearman=best["spearman"],
            spearman_synthetic=best["spearman_synthetic"],
            spearman_ordinary=float(ordinary),
            validation_items=len(self.held_out),
            step=self.best["step"],
        )

    def _identity(self) -> str:
        metric = [round(value, 5) for value in self.validation_metric["spearman"].tolist()]  # a name can mislead
        described = [self.options.model_dump_json(), self.bank.fingerprint(), str(self.surrogate.options()), metric]
        return hashlib.sha256(repr(described).encode()).hexdigest()

    def save(self, path: Path) -> None:
        state = {
            "identity": self._identity(),
            "step": self.step,
            "history": self.history,
            "best": self.best,
            "weights": self.surrogate.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
        }
        with atomic(path) as temporary:
            torch.save(state, temporary)

    def load(self, path: Path) -> None:
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
        except Exception as error:
            raise RelossError(f"cannot read the learning checkpoint {path}; remove it to learn anew") from error
        if state["identity"] != self._identity():
            raise RelossError(
                f"{path} belongs to a fit with other options, another metric or another bank; remove it to learn anew"
            )
        self.surrogate.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"].cpu())
        self.step, self.history, self.best = state["step"], state["history"], state["best"]


def _calibration(surrogate: SurrogateLoss, outputs: Tensor, targets: Tensor) -> float:
    """Return the constant that makes the mean gradient norm of the surrogate that of the ordinary loss."""
    outputs = outputs.detach().requires_grad_()
    learned = gradient_norms(surrogate.per_item(outputs, targets), outputs).mean()
    ordinary = gradient_norms(surrogate.ordinary_loss(outputs, targets), outputs).mean()
    return float(ordinary / learned.clamp_min(1e-12))


def split_counts(total: int, shares: dict[str, float]) -> dict[str, int]:
    """Return whole numbers in the proportion of `shares` that sum to `total`; none is 0 if all can have one."""
    counts, left, weight = {}, total, sum(shares.values())
    for number, (name, share) in enumerate(shares.items()):
        rest = len(shares) - number - 1
        counts[name] = min(max(round(left * share / weight), 1), max(left - rest, 0)) if rest else left
        left, weight = left - counts[name], weight - share
    return {name: count for name, count in counts.items() if count}
