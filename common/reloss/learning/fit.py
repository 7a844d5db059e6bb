"""Fitting a surrogate on a prediction bank.

Each step draws items of all qualities, measures their metric, and moves the surrogate's weights so that its losses rank
the items as the metric does. At each validation the surrogate is measured on held-out items, the best weights so far
are remembered, and the whole state goes into a checkpoint; an interrupted fit resumes from it with the same numbers. In
the end the surrogate gets its best weights, is frozen, and is scaled so that its gradient has the size of the ordinary
loss's.
"""

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
from reloss.learning.items import Items, synthetic
from reloss.learning.local_diagnostics import LocalChanges
from reloss.learning.measure import Measure
from reloss.learning.objective import rank_objective, value_objective
from reloss.learning.options import LearnOptions
from reloss.learning.sampling import RecordedItems, Sampler, ScoredItems, split_items
from reloss.learning.validation import Validation
from reloss.metrics import Metric, get_metric
from reloss.runtime.checkpoint import load_checkpoint, previous, save_checkpoint
from reloss.runtime.distributed import SINGLE_PROCESS, Share, barrier, main_first
from reloss.runtime.errors import RelossError, UsageError, unknown
from reloss.runtime.progress import progress, say
from reloss.surrogates import SurrogateLoss
from reloss.surrogates.base import gradient_norms

OnValidation = Callable[[dict[str, float]], None]
LAST_ITEMS = 64  # items of the last recorded steps that local diagnostics draw from


@dataclass(frozen=True)
class FitResult:
    """A fitted surrogate, and how the fit went.

    The weights are those of the best validation: the highest rank correlation (with objective `value`, the smallest
    error) on held-out items, recorded ones if the fit learns from them, else synthetic ones. The best of many
    correlations is a little optimistic, the more so the fewer items there are. The ordinary loss's correlation involves
    no such choice.

    Attributes:
        surrogate: frozen, with its best weights.
        history: one entry per validation: step, objective, correlation, penalty, and the figures on held-out items.
        spearman: Spearman's correlation of minus the loss with the metric, on held-out recorded items.
        spearman_synthetic: the same on held-out synthetic items.
        spearman_ordinary: the correlation of the ordinary loss, on held-out recorded items.
        validation_items: the number of held-out recorded items.
        local: how loss and ordinary loss follow the metric near the last recorded predictions; see `LocalChanges`.
        step: the step of the best validation.
        seconds: the duration of the fit; over all sessions, if it was interrupted.
    """

    surrogate: SurrogateLoss
    history: list[dict[str, float]]
    spearman: float
    spearman_synthetic: float
    spearman_ordinary: float
    validation_items: int
    local: dict[str, float]
    step: int
    seconds: float

    def summary(self) -> dict[str, float]:
        """Return the figures, without surrogate and history, for a record."""
        names = ("spearman", "spearman_synthetic", "spearman_ordinary", "validation_items", "step", "seconds")
        return {**{name: getattr(self, name) for name in names}, **self.local}


def fit_surrogate(
    surrogate: SurrogateLoss,
    bank: PredictionBank,
    metric: Metric | str,
    *,
    higher_is_better: bool = True,
    options: LearnOptions | None = None,
    device: str | torch.device = "cpu",
    checkpoint: Path | None = None,
    on_validation: OnValidation | None = None,
    distributed: bool = False,
    quiet: bool = False,
    **settings: Any,
) -> FitResult:
    """Fit `surrogate`, in place, so that its loss ranks items as the metric does; return it frozen.

    Args:
        surrogate: the surrogate to fit.
        bank: recorded predictions; a share of the items is held out for validation.
        metric: (outputs [N, B, ...], targets [N, B, ...]) -> [N]; or `reloss.metrics.PerItem(function)` for a function
            of one item, or a torchmetrics object, whose values are stored in the bank's folder; or a name that
            `reloss.metrics.get_metric` knows.
        higher_is_better: whether a larger metric means a better prediction.
        options: the options of the fit; `settings` are single options, such as steps=200, in place of `options`.
        device: the device to fit on.
        checkpoint: the file for the state at each validation; an interrupted fit resumes from it.
        on_validation: called with each entry of the history, after a resume also with the earlier entries.
        distributed: all processes of torch.distributed's default group call this function and share the items of each
            step. They return the same surrogate, equal to that of one process except for rounding and, in networks
            with dropout, random numbers. Only rank 0 writes the checkpoint and the metric's values.
        quiet: whether to report warnings alone, not each validation.

    Raises:
        UsageError: surrogate or bank has the wrong type, both options and settings are given, an option or the metric's
            name is wrong, the metric declares the other direction as better, or a step has fewer items than processes.
        RelossError: the bank does not fit the surrogate, has too few items or a single target; the metric is not one
            finite value per item, or is the same for all; or the checkpoint is unreadable or belongs to another fit.
    """
    options = _check_arguments(surrogate, bank, options, settings).for_surrogate(surrogate.penalty)
    with torch.autocast(torch.device(device).type, enabled=False):
        # Rank 0 computes a slow metric, and the others read its values.
        with main_first() if distributed else nullcontext():
            metric = get_metric(metric) if isinstance(metric, str) else metric
            measure = Measure(metric, higher_is_better, bank.path / "metrics")
            try:
                share = Share.of_this_process() if distributed else SINGLE_PROCESS
                fit = Fit(surrogate, bank, measure, options, device, share, quiet)
            finally:
                measure.close()
        fit.run(checkpoint, on_validation)
        return fit.result()


def _check_arguments(
    surrogate: SurrogateLoss, bank: PredictionBank, options: LearnOptions | None, settings: dict[str, Any]
) -> LearnOptions:
    """Return the options of the fit, given as such or as single settings.

    Raises:
        UsageError: an argument has the wrong type, or a setting is unknown or has a wrong value.
    """
    if options is not None and settings:
        raise UsageError("give fit_surrogate either options or single settings, not both")
    if not isinstance(surrogate, SurrogateLoss):
        raise UsageError(f"the surrogate must be an instance of a surrogate class, not {surrogate!r}")
    if not isinstance(bank, PredictionBank):
        raise UsageError(
            f"the bank must be a PredictionBank, not {bank!r}; PredictionBank.open reads one from a folder"
        )
    for name in settings:
        if name not in LearnOptions.model_fields:
            raise unknown("option of the fit", name, LearnOptions.model_fields)
    try:
        return options or LearnOptions(**settings)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}, not {fault['input']!r}" for fault in error.errors()
        )
        raise UsageError(f"options of the fit: {faults}") from None


class Fit:
    """The state of one fit: everything that its checkpoint holds, and the held-out items.

    Raises:
        UsageError, RelossError: see `fit_surrogate`.
    """

    def __init__(
        self,
        surrogate: SurrogateLoss,
        bank: PredictionBank,
        measure: Measure,
        options: LearnOptions,
        device: str | torch.device,
        share: Share = SINGLE_PROCESS,
        quiet: bool = False,
    ) -> None:
        if options.items < share.size:
            raise UsageError(f"the {options.items} items of a step cannot be shared by {share.size} processes")
        self.started_at, self.earlier_seconds = time.monotonic(), 0.0
        self.surrogate = surrogate.to(device).unfreeze()  # a loaded surrogate is frozen
        self.bank, self.measure, self.options, self.share = bank, measure, options, share
        self.quiet = quiet
        bank.verify()
        self.optimizer = torch.optim.Adam(
            [{"params": list(surrogate.parameters())}], lr=options.learning_rate, weight_decay=options.weight_decay
        )
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Any] = {
            "score": -float("inf"),
            "step": 0,
            "weights": copy.deepcopy(surrogate.state_dict()),
        }
        indices, held_out = split_items(len(bank), options, str(bank.path))
        generator = torch.Generator().manual_seed(options.seed + 1)
        recorded = RecordedItems(bank, surrogate, measure, device)
        real = recorded.select(held_out)
        synthetic_items = synthetic(real.items, generator, options.shares())
        scored = ScoredItems(synthetic_items, measure(synthetic_items, "synthetic item"))
        self.validation = Validation(real, scored, options)
        self._check_varied(recorded.metric)
        if options.objective == "value" and not surrogate.reaches_any_value:
            self._scale_to_metric(recorded.metric)
        self.sampler = Sampler(recorded, indices, measure, options, generator)
        self.local_changes = LocalChanges(recorded.last(LAST_ITEMS).items, measure, options.seed)

    def _check_varied(self, metric: Tensor) -> None:
        """Raise RelossError if all items have the same metric.

        Args:
            metric: [len(bank)].
        """
        shares = self.options.shares()
        values = [metric] if "recorded" in shares else []
        values += [self.validation.synthetic.metric] if shares.keys() - {"recorded"} else []
        metric = torch.cat(values)
        if (metric == metric[0]).all():
            raise RelossError(
                f"metric {self.measure.name} is {self.measure.sign * metric[0]:g} for every item, so there is nothing "
                "to rank; record predictions of all qualities, early ones too, or items of another item_size"
            )

    @torch.no_grad()
    def _scale_to_metric(self, metric: Tensor) -> None:
        """Scale a surrogate of limited range so that its mean loss is the mean of 1 - metric."""
        items = self.validation.recorded.items
        losses = self.surrogate.per_item(items.outputs, items.targets)
        self.surrogate.scale *= float((1 - metric).mean() / losses.mean())

    def run(self, checkpoint: Path | None = None, on_validation: OnValidation | None = None) -> None:
        """Take the remaining steps, from the checkpoint if it exists. `patience` can end the fit earlier."""
        if warning := self.validation.few_items_warning():
            say(warning)
        notify = on_validation or (lambda entry: None)
        if checkpoint is not None and (checkpoint.exists() or previous(checkpoint).exists()):
            self.load(checkpoint)
            say(f"resuming the fit at step {self.step}")
            for entry in self.history:
                notify(entry)
        if self.options.objective == "none":
            notify(self.validate({}))
            return
        with progress(self.options.steps, "learn surrogate", self.step) as advance:
            while self.step < self.options.steps and not self.is_stale():
                parts = self.learn_step()
                advance()
                if self.step % self.options.validate_every == 0 or self.step == self.options.steps:
                    entry = self.validate(parts)
                    if checkpoint is not None and self.share.rank == 0:
                        self.save(checkpoint)
                    notify(entry)

    def is_stale(self) -> bool:
        """Return whether the last `patience` validations were no better than an earlier one."""
        patience = self.options.patience
        return patience is not None and self.step - self.best["step"] >= patience * self.options.validate_every

    def learn_step(self) -> dict[str, Tensor]:
        """Take one step of the optimiser; return the parts of the objective."""
        items, metric = self.sampler.draw()
        if self.options.objective == "rank":
            objective = rank_objective(self.surrogate, items, metric, self.options, self.share)
        else:
            objective = value_objective(self.surrogate, items, metric, self.share)
        self.optimizer.zero_grad(set_to_none=True)
        objective.total.backward()
        self.share.sum_gradients(self.surrogate.parameters())
        self.optimizer.step()
        self.step += 1
        return {
            "objective": objective.total.detach(),
            "correlation": objective.correlation,
            "penalty": objective.penalty,
        }

    def validate(self, parts: dict[str, Tensor]) -> dict[str, float]:
        """Measure the surrogate on the held-out items, and remember its weights if they are the best so far.

        Args:
            parts: the parts of the last step's objective.

        Returns:
            The new entry of the history.
        """
        figures = self.validation.measure(self.surrogate)
        score = self.validation.score(figures)
        if score > self.best["score"]:
            self.best = {"score": score, "step": self.step, "weights": copy.deepcopy(self.surrogate.state_dict())}
        values = {**{name: float(value) for name, value in parts.items()}, **figures}
        self.history.append({"step": self.step, **values})
        if not self.quiet:
            described = " ".join(f"{name} {value:.4f}" for name, value in values.items())
            say(f"step {self.step}/{self.options.steps}: {described}")
        return self.history[-1]

    def result(self) -> FitResult:
        """Return the surrogate with its best weights, frozen and calibrated; warn if it ranks badly."""
        self.surrogate.load_state_dict(self.best["weights"])
        self.surrogate.freeze()
        if self.options.calibrate:
            self.surrogate.scale *= calibration(self.surrogate, self.validation.recorded.items)
        best = next(entry for entry in self.history if entry["step"] == self.best["step"])
        if self.options.objective != "none" and not self.quiet:
            say(f"keeping the weights of step {self.best['step']} of {self.step}")
        if best["spearman"] <= 0:
            say(self.validation.bad_ranking_warning(self.surrogate, self.measure))
        if warning := self.validation.vanishing_positives_warning(self.surrogate):
            say(warning)
        return FitResult(
            surrogate=self.surrogate,
            history=self.history,
            spearman=best["spearman"],
            spearman_synthetic=best["spearman_synthetic"],
            spearman_ordinary=self.validation.measure_ordinary_loss(self.surrogate),
            validation_items=len(self.validation),
            local={
                **self.local_changes.diagnose(self.surrogate.per_item),
                **self.local_changes.diagnose(self.surrogate.ordinary_loss, "_ordinary"),
            },
            step=self.best["step"],
            seconds=round(self._seconds(), 1),
        )

    def _seconds(self) -> float:
        return self.earlier_seconds + time.monotonic() - self.started_at

    def _identity(self) -> str:
        """Return a hash of everything that decides the fit's result, to detect a checkpoint of another fit."""
        metric = [round(value, 5) for value in self.validation.recorded.metric.tolist()]  # names are not unique
        parts = [self.options.model_dump_json(), self.bank.fingerprint(), str(self.surrogate.options()), metric]
        return hashlib.sha256(repr(parts).encode()).hexdigest()

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
            "generator": self.sampler.generator.get_state(),
            "dropout": torch.get_rng_state(),
        }
        save_checkpoint(path, state)

    def load(self, path: Path) -> None:
        """Resume from the state in `path`.

        Raises:
            RelossError: the checkpoint cannot be read, or belongs to another fit.
        """
        state = load_checkpoint(path, "to learn from scratch")
        assert state is not None
        if state["identity"] != self._identity():
            raise RelossError(
                f"{path} belongs to a fit with other options, another metric or another bank; remove it to learn from "
                "scratch"
            )
        self.surrogate.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.sampler.generator.set_state(state["generator"])
        torch.set_rng_state(state["dropout"])
        self.step, self.history, self.best = state["step"], state["history"], state["best"]
        self.earlier_seconds = state["seconds"]
        if self.share.size > 1:
            barrier()  # rank 0 must not replace the checkpoint while another process reads it


def calibration(surrogate: SurrogateLoss, items: Items) -> float:
    """Return the factor that gives the surrogate's gradient the mean norm of the ordinary loss's gradient."""
    outputs, targets = items.outputs.detach().requires_grad_(), items.targets
    learned = gradient_norms(surrogate.per_item(outputs, targets), outputs).mean()
    ordinary = gradient_norms(surrogate.ordinary_loss(outputs, targets), outputs).mean()
    return float(ordinary / learned.clamp_min(1e-12))
