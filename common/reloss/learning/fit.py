"""Learn a surrogate on a prediction bank."""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from reloss.learning.bank import PredictionBank
from reloss.learning.items import SOURCES, Items, synthetic
from reloss.learning.measure import Measure
from reloss.learning.objective import ALONE, check_finite, rank_objective, value_objective
from reloss.learning.options import LearnOptions
from reloss.metrics import Metric, get_metric
from reloss.ranking import spearman
from reloss.runtime.checkpoint import load_checkpoint, previous, save_checkpoint
from reloss.runtime.distributed import Share, barrier, main_first
from reloss.runtime.errors import RelossError, UsageError, unknown
from reloss.runtime.progress import progress, say
from reloss.surrogates import SurrogateLoss
from reloss.surrogates.base import gradient_norms

MAX_VALIDATION_ITEMS = 1024
FEW = 20  # held-out items, below which a rank correlation says little
CHUNK = 256
POOL = 1024  # items made beforehand for a metric that is computed item by item


@dataclass(frozen=True)
class FitResult:
    """A learned surrogate and how it was learned.

    The weights kept are those of the validation with the best rank correlation (least error, of objective `value`) on
    the held-out items: recorded ones if they are learned from, else synthetic ones. So the correlation on these, being
    the best of many, flatters a little; the fewer they are, the more. That of the ordinary loss is not so chosen.

    Attributes:
        surrogate: frozen, with its best weights.
        history: one entry a validation: step, objective, correlation, penalty, and the held-out figures below.
        spearman: of minus the loss with the metric, on held-out recorded items with their true targets.
        spearman_synthetic: the same on held-out synthetic items.
        spearman_ordinary: of the ordinary loss, on the same recorded items.
        validation_items: how many held-out items these figures rest on.
        step: at which the best weights were found.
        seconds: that the fit took, of all its sessions if it was interrupted.
    """

    surrogate: SurrogateLoss
    history: list[dict[str, float]]
    spearman: float
    spearman_synthetic: float
    spearman_ordinary: float
    validation_items: int
    step: int
    seconds: float

    def summary(self) -> dict[str, float]:
        """Return the figures without surrogate and history, for a record."""
        names = ("spearman", "spearman_synthetic", "spearman_ordinary", "validation_items", "step", "seconds")
        return {name: getattr(self, name) for name in names}


def fit_surrogate(
    surrogate: SurrogateLoss,
    bank: PredictionBank,
    metric: Metric | str,
    *,
    higher_is_better: bool = True,
    options: LearnOptions | None = None,
    device: str | torch.device = "cpu",
    checkpoint: Path | None = None,
    on_validation: Callable[[dict[str, float]], None] | None = None,
    distributed: bool = False,
    **settings: Any,
) -> FitResult:
    """Learn `surrogate` so that its loss ranks items as the metric does; returns it frozen, with its best weights.

    Args:
        surrogate: to be learned, in place.
        bank: recorded predictions; a share of its items is held out for validation.
        metric: (outputs [N, B, ...], targets [N, B, ...]) -> [N]; or `reloss.metrics.PerItem(function)` of a function
            of one item, or a torchmetrics object, whose values are kept in the bank's folder; or a name that
            `reloss.metrics.get_metric` knows.
        higher_is_better: whether a larger metric is a better prediction.
        options: how; `settings` are single options, such as fidelity="released" or steps=200.
        device: where to learn.
        checkpoint: a file in which the state is kept at each validation, and from which an interrupted fit goes on.
        on_validation: called with each entry of the history, those before an interruption among them.
        distributed: all processes of torch.distributed's default group call this and share the items of each step; each
            returns the same surrogate, which is that of one process but for rounding and, in a network that has it,
            dropout. The first one alone writes the checkpoint and the metric's values.

    Raises:
        UsageError: surrogate or bank is something else, options and settings are both given or wrong, the metric has no
            such name or says itself that it is better the other way, or a step has fewer items than there are
            processes.
        RelossError: a bank that is not of the surrogate's kind of predictions, has too few items or one target alone; a
            metric that is not one finite value an item, or the same for all; or a checkpoint that cannot be read or
            belongs to another fit.
    """
    if options is not None and settings:
        raise UsageError("give fit_surrogate either options or single settings, not both")
    if not isinstance(surrogate, SurrogateLoss):
        raise UsageError(f"the surrogate must be an object of a surrogate's class, not {surrogate!r}")
    if not isinstance(bank, PredictionBank):
        raise UsageError(
            f"the bank must be a PredictionBank, not {bank!r}; PredictionBank.open reads one from a folder"
        )
    options = options or _options(settings)
    share = Share.of_this_process() if distributed else ALONE
    with main_first() if distributed else nullcontext():  # so that a slow metric is computed once, and read by the rest
        measure = Measure(
            get_metric(metric) if isinstance(metric, str) else metric, higher_is_better, bank.path / "metrics"
        )
        try:
            fit = Fit(surrogate, bank, measure, options, device, share)
        finally:
            measure.close()
    if len(fit.held_out) < FEW:
        say(
            f"warning: only {len(fit.held_out)} held-out items are ranked, so that their correlation says little; "
            "record longer, or with a smaller item_size"
        )
    if checkpoint is not None and (checkpoint.exists() or previous(checkpoint).exists()):
        fit.load(checkpoint)
        if distributed:
            barrier()  # nobody is so far ahead that it replaces what others still read
        say(f"learning goes on from step {fit.step}")
        if on_validation is not None:
            for entry in fit.history:
                on_validation(entry)
    with progress(fit.options.steps, "learn surrogate", fit.step) as advance:
        while fit.step < fit.options.steps:
            parts = fit.learn_step()
            advance()
            if fit.step % fit.options.validate_every == 0 or fit.step == fit.options.steps:
                entry = fit.validate(parts)
                if checkpoint is not None and share.rank == 0:
                    fit.save(checkpoint)
                if on_validation is not None:
                    on_validation(entry)
    result = fit.result()
    if result.spearman <= 0:
        say(fit.warning())
    return result


def _options(settings: dict[str, Any]) -> LearnOptions:
    """Return the options with these settings.

    Raises:
        UsageError: there is no such option, or its value does not fit.
    """
    for name in settings:
        if name not in LearnOptions.model_fields:
            raise unknown("option of the fit", name, LearnOptions.model_fields)
    try:
        return LearnOptions(**settings)
    except ValidationError as error:
        found = "; ".join(
            f"{'.'.join(map(str, each['loc']))}: {each['msg']}, not {each['input']!r}" for each in error.errors()
        )
        raise UsageError(f"options of the fit: {found}") from None


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
            f"{options.validation_fraction:.0%}; record longer, or with a smaller item_size, and end the recording "
            "with bank.finish()"
        )
    return order[held:], order[:held].sort().values


class Fit:
    """The state of one fit: everything that a checkpoint holds, and the held-out items.

    Raises:
        RelossError: see `fit_surrogate`.
    """

    def __init__(
        self,
        surrogate: SurrogateLoss,
        bank: PredictionBank,
        measure: Measure,
        options: LearnOptions,
        device: str | torch.device,
        share: Share = ALONE,
    ) -> None:
        if options.items < share.size:
            raise UsageError(f"{options.items} items of a step cannot be shared by {share.size} processes")
        self.share = share
        self.began, self.seconds_before = time.monotonic(), 0.0
        self.surrogate = surrogate.to(device).requires_grad_().train()  # one that was loaded comes frozen
        self.bank, self.measure, self.options, self.device = bank, measure, options, device
        bank.verify()
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
        self.validation = {"spearman": real, "spearman_synthetic": synthetic(real, generator, options.shares())}
        self.validation_metric = {
            "spearman": self.metric[self.held_out.to(device)],
            "spearman_synthetic": measure(self.validation["spearman_synthetic"], "synthetic item"),
        }
        self._check_varied()
        if options.objective == "value" and not surrogate.reaches_any_value:
            with torch.no_grad():
                self.surrogate.scale *= float((1 - self.metric).mean() / self.surrogate.per_item(*real[:2]).mean())
        pool = options.pool or (POOL if measure.by_item else None)
        self.pool = self._make_pool(pool, generator) if pool else None

    def _check_kind(self, items: Items) -> None:
        try:
            self.surrogate.check(items.outputs, items.targets)
        except ValueError as error:
            shapes = f"outputs [N, {_sizes(items.outputs)}] and targets [N, {_sizes(items.targets)}]"
            raise RelossError(
                f"{type(self.surrogate).__name__} cannot learn from the bank {self.bank.path}, which holds {shapes}: "
                f"{error}"
            ) from error

    def _check_varied(self) -> None:
        """Raise RelossError if the metric of all that is learned from is the same."""
        shares = self.options.shares()
        learned_from = [self.metric] if "recorded" in shares else []
        learned_from += [self.validation_metric["spearman_synthetic"]] if shares.keys() - {"recorded"} else []
        values = torch.cat(learned_from)
        if (values == values[0]).all():
            raise RelossError(
                f"metric {self.measure.name} gives the same value for every item, {self.measure.sign * values[0]:g}: "
                "there is nothing to rank; record predictions of all qualities, early ones too, or items of another "
                "item_size"
            )

    def _read_bank(self) -> None:
        """Compute the metric of every recorded item, and what the surrogate needs of it, once: [len(bank), ...]."""
        metric, statistics = [], []
        extremes: list[Tensor] = []
        chunks = torch.arange(len(self.bank)).split(CHUNK)
        with progress(len(chunks), "reading the bank") as advance, torch.no_grad():
            for indices in chunks:
                items = Items(*self.bank.items(indices, self.device))
                self._check_kind(items)
                metric.append(self.measure(items, first=int(indices[0])))
                statistics.append(self.surrogate.statistics(items.outputs))
                extremes += items.targets.aminmax()
                advance()
        if items.targets.dim() == 2 and min(extremes) == max(extremes):
            raise RelossError(
                f"all targets in the bank {self.bank.path} are {extremes[0].item()}: nothing can be ranked by what is "
                "right; record predictions for targets of all classes"
            )
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
        recorded = name == "recorded"
        return items, self.metric[indices.to(self.device)] if recorded else self.measure(items, f"{name} item")

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
        """Take one step of the optimiser; returns the parts of the objective."""
        items, metric = self.sample()
        if self.options.objective == "rank":
            parts = rank_objective(self.surrogate, items, metric, self.options, self.share)
        else:
            parts = value_objective(self.surrogate, items, metric, self.share)
        self.optimizer.zero_grad(set_to_none=True)
        parts.total.backward()
        self.share.sum_gradients(self.surrogate.parameters())
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
        """Return the surrogate with its best weights, frozen and calibrated, and its figures."""
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
            seconds=round(self._seconds(), 1),
        )

    def warning(self) -> str:
        """Return what to say of a surrogate that does not rank the held-out recorded items as the metric does."""
        metric = self.validation_metric["spearman"]
        if (metric == metric[0]).all():
            return (
                f"warning: metric {self.measure.name} is {self.measure.sign * metric[0]:g} for all held-out recorded "
                "items, so they do not tell how well the surrogate ranks; record predictions of all qualities"
            )
        tries = ["higher_is_better the other way", "a longer recording, with early predictions"]
        if "recorded" not in self.options.shares():
            tries.insert(1, "mixture=half")
        if self.surrogate.options().get("output", "monotone") != "monotone":
            tries.insert(1, "output=monotone")
        return (
            f"warning: the surrogate does not rank held-out recorded items as {self.measure.name} does (Spearman "
            f"<= 0); try {', '.join(tries[:-1])} or {tries[-1]}"
        )

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.began

    def _identity(self) -> str:
        metric = [round(value, 5) for value in self.validation_metric["spearman"].tolist()]  # a name can mislead
        described = [self.options.model_dump_json(), self.bank.fingerprint(), str(self.surrogate.options()), metric]
        return hashlib.sha256(repr(described).encode()).hexdigest()

    def save(self, path: Path) -> None:
        """Write the state to `path`."""
        state = {
            "identity": self._identity(),
            "step": self.step,
            "history": self.history,
            "best": self.best,
            "seconds": self._seconds(),
            "weights": self.surrogate.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "dropout": torch.get_rng_state(),
        }
        save_checkpoint(path, state)

    def load(self, path: Path) -> None:
        """Go on from the state in `path`.

        Raises:
            RelossError: it cannot be read, or belongs to another fit.
        """
        state = load_checkpoint(path, "to learn anew")
        assert state is not None
        if state["identity"] != self._identity():
            raise RelossError(
                f"{path} belongs to a fit with other options, another metric or another bank; remove it to learn anew"
            )
        self.surrogate.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["dropout"])
        self.step, self.history, self.best = state["step"], state["history"], state["best"]
        self.seconds_before = state["seconds"]


def _calibration(surrogate: SurrogateLoss, outputs: Tensor, targets: Tensor) -> float:
    """Return the constant that makes the mean gradient norm of the surrogate that of the ordinary loss."""
    outputs = outputs.detach().requires_grad_()
    learned = gradient_norms(surrogate.per_item(outputs, targets), outputs).mean()
    ordinary = gradient_norms(surrogate.ordinary_loss(outputs, targets), outputs).mean()
    return float(ordinary / learned.clamp_min(1e-12))


def _sizes(values: Tensor) -> str:
    return ", ".join(map(str, values.shape[1:]))


def split_counts(total: int, shares: dict[str, float]) -> dict[str, int]:
    """Return whole numbers in the proportion of `shares` that sum to `total`; none is 0 if all can have one."""
    counts, left, weight = {}, total, sum(shares.values())
    for number, (name, share) in enumerate(shares.items()):
        rest = len(shares) - number - 1
        counts[name] = min(max(round(left * share / weight), 1), max(left - rest, 0)) if rest else left
        left, weight = left - counts[name], weight - share
    return {name: count for name, count in counts.items() if count}
