"""From predictions and a metric to a loss: every choice that the two do not determine is made here.

The kind of predictions decides the surrogate, the ordinary loss it is compared with, and the sources of items. An item
has about the size of a training batch, since that is what the loss will rank. All choices are reported in one line and
can be overridden.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reloss.learning import FitResult, PredictionBank, fit_surrogate
from reloss.metric_loss.kinds import KINDS, Kind, as_tensor, detect, surrogate_of
from reloss.metric_loss.loss import MetricLoss, OrdinaryLoss
from reloss.metric_loss.plain_metrics import MetricForItems, Predictions, resolve_metric
from reloss.metric_loss.result import LearnedLoss
from reloss.runtime.errors import UsageError, unknown
from reloss.runtime.progress import say
from reloss.surrogates import SurrogateLoss, build
from reloss.surrogates.options import kind_for
from reloss.surrogates.registry import EXPECTED_KINDS

SMALLEST_ITEM, LARGEST_ITEM = 16, 256
FEWEST_ITEMS = 150  # items that predictions are divided into; smaller ones where there are fewer examples
MOST_ITEMS = 2048  # items of a recording; more cost time and hardly change the fit
STEP_ELEMENTS = 1 << 22  # numbers that the items of one step may hold; fewer where they are compared in pairs
MOST_STEP_ITEMS = 64  # more of them sharpen the correlation of a step little
DEFAULTS: dict[str, Any] = {"steps": 200, "patience": 5}


def learn_loss(
    outputs: Any,
    targets: Any,
    metric: Any,
    *,
    kind: str | None = None,
    item_size: int | None = None,
    ordinary: nn.Module | None = None,
    seed: int = 0,
    **options: Any,
) -> LearnedLoss:
    """Return a loss for `metric`, learned from predictions that exist already.

    Args:
        outputs: [E, ...] of one checkpoint, a tensor or an array; or a list with those of several checkpoints, early to
            late, which show the surrogate more. Logits rather than probabilities.
        targets: [E, ...]; or a list with one entry for each checkpoint. See `KINDS` for the forms.
        metric: a function of one batch, (outputs, targets) or (y_true, y_pred), of tensors or arrays, that returns a
            number; a torchmetrics object; or a name such as "f1".
        kind: kind of the predictions, a key of `KINDS`; recognised from shapes and values by default.
        item_size: number of examples that are scored together; by default a batch, of 16 to 128.
        ordinary: the ordinary loss, for the comparison; by default the usual one for the kind.
        seed: seed of the items' composition and of the fit.
        options: `predictions` ("outputs", "labels", "scores", "probabilities": what a plain function takes),
            `higher_is_better`, and options of the fit such as `steps`; see `reloss.learning.options`.

    Raises:
        UsageError: the kind, the metric or an option is wrong.
        RelossError: there are too few examples, or the metric cannot rank them; see `fit_surrogate`.
    """
    batches = _checkpoints(outputs, targets)
    recognised = find_kind(kind) if kind else KINDS[detect(*batches[0])]
    batches = [recognised.prepare(*batch) for batch in batches]
    folder = tempfile.TemporaryDirectory(prefix="reloss-")
    examples = sum(len(labels) for _, labels in batches)
    size = item_size or recognised.item_size or min(max(examples // FEWEST_ITEMS, SMALLEST_ITEM), LARGEST_ITEM // 2)
    bank = PredictionBank.create(
        Path(folder.name) / "bank", item_size=size, seed=seed, full_precision=recognised.full_precision
    )
    generator = torch.Generator().manual_seed(seed)
    for step, (checkpoint, labels) in enumerate(batches):
        order = torch.randperm(len(labels), generator=generator)
        bank.append(checkpoint[order], labels[order], step)
    bank.finish()
    return learn_from_bank(bank, recognised, ordinary, metric, recording=folder, seed=seed, **options)


def learn_from_bank(
    bank: PredictionBank,
    kind: Kind,
    ordinary: nn.Module | None,
    metric: Any,
    *,
    recording: Any = None,
    distributed: bool = False,
    predictions: Predictions | None = None,
    higher_is_better: bool | None = None,
    **options: Any,
) -> LearnedLoss:
    """Return a loss for `metric`, learned from the predictions in a bank.

    Args:
        bank: the recording, of prepared predictions.
        kind: their kind.
        ordinary: the ordinary loss; None for the usual one of the kind.
        metric: see `learn_loss`.
        recording: what holds the bank's folder, such as a temporary folder; it lives as long as the result.
        distributed: whether all processes of torch.distributed call this function, and share the work.
        predictions: what a plain function takes; None to recognise it.
        higher_is_better: the direction; None for what the metric declares, or higher.
        options: options of the fit.

    Raises:
        UsageError, RelossError: see `learn_loss`.
    """
    items = bank.items(torch.arange(min(len(bank), 8)))
    resolved = resolve_metric(metric, kind, items, predictions, higher_is_better)
    shape = bank.output_shape()
    name = kind_for(surrogate_of(kind, shape), resolved.vectorised)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.get("seed", 0))  # the initial weights
        surrogate = _build(name, shape, bank)
    settings = {"mixture": dict(kind.mixture), "items": _items(bank, shape), **DEFAULTS, **options}
    settings |= {"distributed": distributed, "quiet": True}
    say(
        f"learning a loss for {resolved}{resolved.call()} from {len(bank)} items of {bank.meta['item_size']} examples: "
        f"{kind.title} (kind={kind.name}), compared with {kind.ordinary}"
    )
    _report_cost(resolved, items, len(bank))
    fit = _fit(surrogate, bank, resolved, settings)
    expected = None
    if resolved.vectorised in EXPECTED_KINDS[name].EXPECTED:
        formula = _build(name, shape, bank, metric=resolved.vectorised)
        expected = _fit(formula, bank, resolved, {**settings, "objective": "none"})
    return LearnedLoss(
        loss=MetricLoss(fit.surrogate, kind),
        expected=None if expected is None else MetricLoss(expected.surrogate, kind),
        ordinary=ordinary or OrdinaryLoss(fit.surrogate, kind),
        metric=resolved,
        fit=fit,
        expected_fit=expected,
        recording=recording,
    )


def find_kind(name: str) -> Kind:
    """Return the kind of predictions called `name`.

    Raises:
        UsageError: it is unknown; the message names the nearest ones.
    """
    if name not in KINDS:
        raise unknown("kind of predictions", name, KINDS)
    return KINDS[name]


def item_size_for(kind: Kind, batch_size: int) -> int:
    """Return the number of examples in an item, given the size of the first batch."""
    return kind.item_size or min(max(batch_size, SMALLEST_ITEM), LARGEST_ITEM)


def bank_bytes(outputs: Tensor, targets: Tensor, item_size: int) -> int:
    """Return the bytes of MOST_ITEMS items of such examples."""
    example = sum(part[0].numel() * part.element_size() for part in (outputs, targets))
    return MOST_ITEMS * item_size * (example + 16)


def _checkpoints(outputs: Any, targets: Any) -> list[tuple[Tensor, Tensor]]:
    """Return one batch for each checkpoint.

    Raises:
        UsageError: there are no examples, their numbers differ, or the outputs are no scores.
    """
    is_list = isinstance(outputs, list | tuple)
    all_outputs: Sequence[Any] = outputs if is_list else [outputs]
    all_targets = targets if isinstance(targets, list | tuple) and is_list else [targets] * len(all_outputs)
    if not len(all_outputs) or len(all_outputs) != len(all_targets):
        raise UsageError(f"{len(all_outputs)} outputs and {len(all_targets)} targets: pass one of each per checkpoint")
    batches = [
        (_scores(as_tensor(output, "outputs").detach().cpu()), as_tensor(target, "targets").detach().cpu())
        for output, target in zip(all_outputs, all_targets, strict=True)
    ]
    for checkpoint, labels in batches:
        if not checkpoint.dim() or not labels.dim():
            raise UsageError(
                "outputs and targets must be tensors or arrays [E, ...], or lists of them, one for each checkpoint; "
                "these are lists of numbers: pass torch.tensor(outputs) and torch.tensor(targets)"
            )
        if not len(checkpoint) or len(checkpoint) != len(labels):
            raise UsageError(f"{len(checkpoint)} outputs, but {len(labels)} targets: pass one of each per example")
    return batches


def _scores(outputs: Tensor) -> Tensor:
    """Return the outputs in float32.

    Raises:
        UsageError: they are decisions, not scores.
    """
    if not outputs.is_floating_point():
        raise UsageError(
            f"outputs have the type {outputs.dtype}: pass scores such as logits, not predicted labels; if these are "
            "scores, pass outputs.float()"
        )
    return outputs.float()


def _build(name: str, shape: Sequence[int], bank: PredictionBank, **options: Any) -> SurrogateLoss:
    """Return a fresh surrogate; one for regression gets the spread of the bank's targets."""
    if name == "regression":
        targets = bank.items(torch.arange(len(bank)))[1].flatten(0, 1).reshape(-1, math.prod(shape))
        spread = torch.stack([column[column.isfinite()].std(correction=0) for column in targets.unbind(1)])
        options["spread"] = [float(value) or 1.0 for value in spread]
    return build(name, shape, features="expected", **options)


def _items(bank: PredictionBank, shape: Sequence[int]) -> int:
    """Return the number of items of a step of the fit, so that a step takes a fraction of a second."""
    size = bank.meta["item_size"]
    pairs = size if len(shape) < 2 else 16  # features of sets and lists compare scores in pairs
    return min(max(16 * STEP_ELEMENTS // (size * math.prod(shape) * max(pairs, 16)), 16), MOST_STEP_ITEMS)


def _fit(surrogate: SurrogateLoss, bank: PredictionBank, metric: MetricForItems, settings: dict[str, Any]) -> FitResult:
    higher_is_better = metric.higher_is_better
    return fit_surrogate(surrogate, bank, metric.metric, higher_is_better=higher_is_better, **settings)


def _report_cost(metric: MetricForItems, items: tuple[Tensor, Tensor], count: int) -> None:
    """Report how long a slow metric will take, measured on one item."""
    if metric.plain is None:
        return
    started = time.perf_counter()
    metric.plain(items[0][0].clone(), items[1][0].clone())
    seconds = time.perf_counter() - started
    total = count + 1024 + 256  # recorded items, the pool of other items, and local changes
    if seconds * total > 5:
        say(f"{metric.name} takes {seconds * 1e3:.0f} ms per item: about {seconds * total:.0f} s for {total} items")
