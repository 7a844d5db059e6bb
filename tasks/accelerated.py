"""Shared by the tasks that train with accelerate: mixing losses, finding divergence, and resumable state."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from reloss.experiment.task import Run
from reloss.runtime.errors import RelossError, UsageError
from reloss.surrogates import SurrogateLoss
from reloss.surrogates.uncertainty import UncertaintyWeights

Loss = Callable[[Tensor, Tensor], Tensor]
"""(outputs [B, ...], targets [B, ...]) -> scalar."""


def learned_loss(run: Run, ordinary: Loss, device: torch.device | str) -> Loss:
    """Return the run's surrogate as a loss, plus `train.ordinary_weight` times the ordinary loss.

    With `learned` as weight, it is a `MixedLoss`, whose weights are learned.

    Raises:
        RelossError: the run has no surrogate.
        UsageError: the weights cannot be learned for this surrogate.
    """
    if run.surrogate is None:
        raise RelossError(f"loss '{run.loss}' needs a learned surrogate; run --stage learn (or all) first")
    surrogate, weight = run.surrogate.to(device), run.config.train.ordinary_weight
    if weight == "learned":
        return MixedLoss(surrogate, ordinary).to(device)
    if weight == 0:
        return surrogate
    return lambda outputs, targets: surrogate(outputs, targets) + weight * ordinary(outputs, targets)


class MixedLoss(nn.Module):
    """A surrogate and an ordinary loss with learned weights; see `reloss.surrogates.uncertainty`.

    Args:
        surrogate: the frozen surrogate.
        ordinary: the ordinary loss.

    Raises:
        UsageError: the weights cannot be learned for this surrogate.
    """

    def __init__(self, surrogate: SurrogateLoss, ordinary: Loss) -> None:
        super().__init__()
        self.surrogate, self.ordinary = surrogate, ordinary
        self.uncertainty = UncertaintyWeights.of(surrogate)

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the weighted sum, a scalar, and in training mode take a step on the weights."""
        return self.uncertainty(self.surrogate(outputs, targets), self.ordinary(outputs, targets))


def learned_weights(loss: Loss) -> dict[str, float]:
    """Return the current weights of a `MixedLoss`, for the metrics of an epoch; empty for other losses."""
    return loss.uncertainty.summary() if isinstance(loss, MixedLoss) else {}


@contextmanager
def open_accelerator(precision: str) -> Iterator[Accelerator]:
    """Yield an Accelerator. Its process-wide state is cleared at the end, so the next run can use another precision.

    Raises:
        UsageError: this machine does not support the precision.
    """
    try:
        # On a machine without GPU, accelerate ignores torchrun's process group unless cpu=True.
        accelerator = Accelerator(mixed_precision=precision, cpu=not torch.cuda.is_available())
    except ValueError as error:  # fp16 without a GPU
        raise UsageError(f"train.precision={precision} does not work here: {error}; choose bf16 or no") from error
    try:
        yield accelerator
    finally:
        accelerator.free_memory()
        AcceleratorState._reset_state()


class FiniteLoss:
    """Finds the first training step whose loss is not finite, without waiting for the device at every step."""

    EVERY = 50  # steps between two checks

    def __init__(self, device: torch.device) -> None:
        self._first = torch.tensor(math.inf, device=device)

    def update(self, loss: Tensor, step: int) -> None:
        """Take the loss of a step into account.

        Raises:
            RelossError: see `check`.
        """
        self._first = self._first.minimum(torch.where(loss.detach().isfinite(), math.inf, float(step)))
        if step % self.EVERY == 0:
            self.check()

    def check(self) -> None:
        """Raise RelossError, naming the step, if a loss was not finite."""
        if (step := self._first.item()) < math.inf:
            raise RelossError(
                f"the loss of step {step:.0f} is not finite: training diverged; the last checkpoint is kept. "
                "Try a smaller train.lr, or train.clip_norm"
            )


def check_outputs(outputs: Tensor, when: str) -> None:
    """Raise RelossError if validation or test outputs are not finite.

    Args:
        outputs: the network's outputs, of any shape.
        when: text for the message, such as ' after step 40', or empty.
    """
    if not outputs.isfinite().all():
        raise RelossError(f"the network's outputs{when} are not finite: training diverged; try a smaller train.lr")


def save_state(
    run: Run, accelerator: Accelerator, model: nn.Module, optimizer: Any, loss: Loss, step: int, **counters: int
) -> None:
    """Write a checkpoint from which training can resume.

    Args:
        run: the run whose record receives the checkpoint.
        accelerator: the accelerator that prepared the model and the optimizer.
        model: the prepared model.
        optimizer: the prepared optimizer.
        loss: the loss of the training, which may have learned weights.
        step: number of the next step.
        counters: other counters of the training, such as epoch=3.
    """
    scaler = accelerator.scaler
    run.record.save_checkpoint(
        {
            **counters,
            "step": step,
            "model": accelerator.unwrap_model(model).state_dict(),
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "loss": loss.uncertainty.state_dict() if isinstance(loss, MixedLoss) else None,
        }
    )


def load_state(
    run: Run, accelerator: Accelerator, model: nn.Module, optimizer: Any, loss: Loss
) -> dict[str, Any] | None:
    """Load the last checkpoint of `save_state` and return its content.

    The bank is rewound to the checkpoint. Without a checkpoint the bank is emptied and the result is None.

    Raises:
        RelossError: the checkpoint does not fit the model.
    """
    state = run.record.load_checkpoint()
    if state is not None:
        _restore(run, accelerator, model, optimizer, loss, state)
    if run.bank is not None:
        run.bank.resume(state["step"] if state is not None else 0)
    return state


def _restore(
    run: Run, accelerator: Accelerator, model: nn.Module, optimizer: Any, loss: Loss, state: dict[str, Any]
) -> None:
    try:
        accelerator.unwrap_model(model).load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if isinstance(loss, MixedLoss):
            loss.uncertainty.load_state_dict(state["loss"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise RelossError(
            f"the checkpoint in {run.record.path} does not fit the model: {error}; remove its folder checkpoint to "
            "train this run from scratch"
        ) from error
    if accelerator.scaler is not None and state["scaler"] is not None:
        accelerator.scaler.load_state_dict(state["scaler"])
