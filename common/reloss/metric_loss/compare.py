"""Training with each loss, and the paired differences: the test that decides whether a learned loss is worth it.

Rank correlations are a promise. So the same training is run with the ordinary, the expected and the learned loss, with
the same seeds, and with a learning rate chosen for each loss on validation data. Two classes have a simple rival: the
ordinary loss with a threshold that is tuned on validation data.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from reloss.learning.items import Items
from reloss.learning.measure import Measure
from reloss.metric_loss.kinds import Batch, as_tensor, check_labels
from reloss.metric_loss.loss import MixedLoss
from reloss.report.statistics import Difference, describe, paired_difference
from reloss.report.table import Number, Table
from reloss.runtime.errors import UsageError
from reloss.runtime.progress import progress

if TYPE_CHECKING:
    from reloss.metric_loss.result import LearnedLoss

THRESHOLDS = 101  # quantiles of the validation scores among which the threshold is chosen
ORDINARY = "ordinary"


class Predicted(NamedTuple):
    """Prepared predictions of one training: for choosing (None without validation data) and for the result."""

    validation: Batch | None
    test: Batch


@dataclass(frozen=True)
class Comparison:
    """Scores of each loss by seed; `print` shows the table.

    Attributes:
        scores: the metric on test data, by loss and seed, in the order of the table.
        rates: the chosen learning rate of each loss; empty if none were tried.
        metric: name of the metric.
        higher_is_better: its direction.
    """

    scores: Mapping[str, Mapping[int, float]]
    rates: Mapping[str, float]
    metric: str
    higher_is_better: bool

    def difference(self, loss: str, other: str = ORDINARY) -> Difference:
        """Return the paired difference of two losses, loss - other, with its 95 % interval.

        Raises:
            KeyError: there is no such loss.
        """
        difference = paired_difference(self.scores[loss], self.scores[other])
        assert difference is not None  # all losses have the same seeds
        return difference

    def best(self) -> str:
        """Return the loss with the best mean score."""
        sign = 1 if self.higher_is_better else -1
        return max(self.scores, key=lambda loss: sign * float(np.mean(list(self.scores[loss].values()))))

    def table(self) -> Table:
        """Return mean and deviation of each loss, and the paired difference to the ordinary loss."""
        headers = ("loss", self.metric, "difference to ordinary", *(("learning rate",) if self.rates else ()))
        rows = []
        for loss, scores in self.scores.items():
            sample, difference = describe(list(scores.values())), self.difference(loss)
            mean = Number(
                sample.mean, f"{sample.mean:.3f}" + (f" ± {sample.std:.3f}" if sample.std is not None else "")
            )
            rate = [Number(self.rates[loss], f"{self.rates[loss]:g}")] if self.rates else []
            rows.append([loss, mean, "" if loss == ORDINARY else _described(difference), *rate])
        return Table(headers, rows)

    def __str__(self) -> str:
        seeds = len(self.scores[ORDINARY])
        return f"{self.table().plain()}\n{seeds} seeds; paired differences with 95 % intervals"


def compare(
    learned: LearnedLoss, train: Callable[..., Any], seeds: int | Sequence[int] = 5, rates: Sequence[float] = ()
) -> Comparison:
    """Train with each loss and compare the results on separate data.

    The losses are the ordinary one; the expected metric, if it has a formula, and the learned loss, alone and added to
    the ordinary loss; and, for scores of two classes, the ordinary loss with a threshold tuned on validation data.

    Args:
        learned: the result of `learn`.
        train: `train(loss, seed)` or `train(loss, seed, lr)` trains a model from scratch and returns its predictions,
            `((outputs, targets), (outputs, targets))` on validation and on test data; or the latter alone, if there
            is nothing to tune. The seed decides everything that is random.
        seeds: their number, or the seeds.
        rates: learning rates to try, if `train` takes `lr`; each loss gets the one with the best mean on validation.
            They may be missing if `lr` has a default.

    Raises:
        UsageError: `train` cannot be called so, or returns no predictions.
    """
    _check_signature(train, bool(rates))
    numbers = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not numbers:
        raise UsageError("seeds is empty or 0; pass at least one, such as seeds=5 or seeds=[0, 1, 2]")
    losses = _losses(learned)
    judge = _Judge(learned)
    scores: dict[str, dict[int, float]] = {}
    chosen: dict[str, float] = {}
    with progress(len(losses) * len(numbers) * max(len(rates), 1), "training with each loss") as advance:
        for name, loss in losses.items():
            runs: dict[float, dict[int, Predicted]] = {}
            for rate in rates or (0.0,):
                arguments = {"lr": rate} if rates else {}
                runs[rate] = {}
                for seed in numbers:
                    runs[rate][seed] = judge.prepared(train(loss, seed, **arguments), len(rates) > 1)
                    advance()
            best = max(runs, key=lambda rate: judge.validation_mean(runs[rate])) if len(runs) > 1 else next(iter(runs))
            chosen[name] = best
            scores[name] = {seed: judge.score(*predicted.test) for seed, predicted in runs[best].items()}
            if name == ORDINARY and judge.tunes_threshold(runs[best]):
                tuned = f"{ORDINARY}, tuned threshold"
                scores[tuned] = {seed: judge.tuned(predicted) for seed, predicted in runs[best].items()}
                chosen[tuned] = best
    metric = learned.metric
    return Comparison(scores, chosen if rates else {}, metric.name, metric.higher_is_better)


def _check_signature(train: Callable[..., Any], with_rates: bool) -> None:
    """Check that `train` can be called with a loss and a seed, and with a learning rate if there are rates to try.

    Raises:
        UsageError: it cannot.
    """
    try:
        signature = inspect.signature(train)
        rate = signature.parameters.get("lr")
        signature.bind(None, 0, **({"lr": 0.0} if rate else {}))
    except TypeError as error:
        raise UsageError(f"train must be a function train(loss, seed) or train(loss, seed, lr): {error}") from None
    if with_rates and rate is None:
        raise UsageError("rates are given, but train does not take lr: train(loss, seed, lr)")
    if not with_rates and rate is not None and rate.default is rate.empty:
        raise UsageError("train takes lr, so pass the learning rates to try: compare(train, rates=[0.03, 0.1])")


def _losses(learned: LearnedLoss) -> dict[str, nn.Module]:
    """Return the losses to train with, by name."""
    losses: dict[str, nn.Module] = {ORDINARY: learned.ordinary}
    if learned.expected is not None:
        losses |= {"expected": learned.expected, "expected + ordinary": MixedLoss(learned.ordinary, learned.expected)}
    return losses | {"learned": learned.loss, "learned + ordinary": learned.mixed()}


class _Judge:
    """The metric, applied to predictions of trained models."""

    def __init__(self, learned: LearnedLoss) -> None:
        self.kind, self.metric = learned.loss.kind, learned.metric
        self.measure = Measure(self.metric.metric, self.metric.higher_is_better)

    def prepared(self, predictions: Any, needs_validation: bool) -> Predicted:
        """Return what `train` returned, prepared.

        Raises:
            UsageError: these are no predictions.
        """
        try:
            first, second = predictions
            pairs = [first, second] if isinstance(first, list | tuple) else [None, (first, second)]
            validation, test = (None if pair is None else self._batch(*pair) for pair in pairs)
        except (TypeError, ValueError) as error:
            raise UsageError(
                "train must return ((outputs, targets), (outputs, targets)) of validation and test data, or (outputs, "
                f"targets) of test data: {error}"
            ) from None
        if needs_validation and validation is None:
            raise UsageError("to choose a learning rate, train must return predictions on validation data as well")
        assert test is not None
        return Predicted(validation, test)

    def _batch(self, outputs: Any, targets: Any) -> Batch:
        tensors = (as_tensor(outputs, "outputs").detach().float().cpu(), as_tensor(targets, "targets").cpu())
        if len(tensors[0]) != len(tensors[1]):
            raise ValueError(f"{len(tensors[0])} outputs, but {len(tensors[1])} targets")
        check_labels(tensors[1], self.kind)
        return self.kind.prepare(*tensors)

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        """Return the metric of all examples together: outputs [E, ...], targets [E, ...]."""
        return self.measure.sign * float(self.measure(Items(outputs[None], targets[None]), "test data")[0])

    def validation_mean(self, runs: Mapping[int, Predicted]) -> float:
        """Return the mean metric on validation data, higher is better."""
        return float(np.mean([self._rated(predicted.validation) for predicted in runs.values()]))

    def _rated(self, batch: Batch | None) -> float:
        assert batch is not None
        return self.measure.sign * self.score(*batch)

    def tunes_threshold(self, runs: Mapping[int, Predicted]) -> bool:
        """Return whether the metric depends on a threshold that validation data can choose."""
        return self.kind.thresholded and all(predicted.validation is not None for predicted in runs.values())

    def tuned(self, predicted: Predicted) -> float:
        """Return the metric on test data at the threshold that is best on validation data."""
        assert predicted.validation is not None
        scores, labels = predicted.validation
        thresholds = torch.quantile(scores.float(), torch.linspace(0, 1, THRESHOLDS))
        items = Items((scores[None] - thresholds[:, None]), labels.expand(THRESHOLDS, -1))
        best = thresholds[self.measure(items, "threshold").argmax()]
        outputs, targets = predicted.test
        return self.score(outputs - best, targets)


def _described(difference: Difference) -> Number:
    interval = "" if difference.low is None else f" [{difference.low:+.3f}, {difference.high:+.3f}]"
    return Number(difference.mean, f"{difference.mean:+.3f}{interval}")
