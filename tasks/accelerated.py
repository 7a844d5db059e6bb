"""What the tasks that train with accelerate share."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from reloss.experiment.task import Run
from reloss.runtime.errors import RelossError, UsageError


@contextmanager
def open_accelerator(precision: str) -> Iterator[Accelerator]:
    """Yield an Accelerator and clear its process-wide state after, so that the next run may be of another precision.

    Raises:
        UsageError: the precision does not work on this machine.
    """
    try:
        # Without cpu=True, accelerate takes processes that torchrun starts on a machine without GPU for single ones.
        accelerator = Accelerator(mixed_precision=precision, cpu=not torch.cuda.is_available())
    except ValueError as error:  # fp16 without a GPU
        raise UsageError(f"train.precision={precision} does not work here: {error}; choose bf16 or no") from error
    try:
        yield accelerator
    finally:
        accelerator.free_memory()
        AcceleratorState._reset_state()


class FiniteLoss:
    """Finds the first training step whose loss is not finite, without waiting for the device in each step."""

    EVERY = 50  # steps between two looks

    def __init__(self, device: torch.device) -> None:
        self._first = torch.tensor(math.inf, device=device)

    def see(self, loss: Tensor, step: int) -> None:
        """Take note of the loss of a step.

        Raises:
            RelossError: see `check`.
        """
        self._first = self._first.minimum(torch.where(loss.detach().isfinite(), math.inf, float(step)))
        if step % self.EVERY == 0:
            self.check()

    def check(self) -> None:
        """Raise RelossError if a loss was not finite; the message names the step."""
        if (step := self._first.item()) < math.inf:
            raise RelossError(
                f"the loss of step {step:.0f} is not finite: training diverged; the checkpoint before it is kept. "
                "Try a smaller train.lr, or train.clip_norm"
            )


def check_outputs(outputs: Tensor, when: str) -> None:
    """Raise RelossError if what a network gives for validation or test is not finite; `when` goes into the message."""
    if not outputs.isfinite().all():
        raise RelossError(f"the network's outputs{when} are not finite: training diverged; try a smaller train.lr")


def save_state(run: Run, accelerator: Accelerator, model: nn.Module, optimizer: Any, step: int, **place: int) -> None:
    """Write what training goes on from into the record.

    Args:
        run: the run.
        accelerator: that prepared the model and the optimizer.
        model: prepared.
        optimizer: prepared.
        step: the next one.
        place: how far the training is, such as epoch=3.
    """
    scaler = accelerator.scaler
    run.record.save_checkpoint(
        {
            **place,
            "step": step,
            "model": accelerator.unwrap_model(model).state_dict(),
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
        }
    )


def load_state(run: Run, accelerator: Accelerator, model: nn.Module, optimizer: Any) -> dict[str, Any] | None:
    """Go on from what `save_state` wrote last, and return it; None, with an empty bank, if there is nothing.

    Raises:
        RelossError: it does not fit the model.
    """
    state = run.record.load_checkpoint()
    bank = run.bank
    if state is None:
        if bank is not None:
            bank.resume(0)
        return None
    try:
        accelerator.unwrap_model(model).load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise RelossError(f"the checkpoint in {run.record.path} does not fit the model: {error}") from error
    if accelerator.scaler is not None and state["scaler"] is not None:
        accelerator.scaler.load_state_dict(state["scaler"])
    if bank is not None:
        bank.resume(state["step"])
    return state
