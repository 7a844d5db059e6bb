"""What the tasks that train with accelerate share."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from reloss.errors import UsageError


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
