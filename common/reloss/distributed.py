"""One run in several processes, as torchrun starts them: who writes, and who waits. In one process nothing happens."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch


def rank() -> int:
    """Return the number of this process among those of this run."""
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Return whether this process writes the record: rank 0, or the only one."""
    return rank() == 0


def processes() -> int:
    """Return the number of processes of this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def start() -> None:
    """Join the process group that torchrun describes, unless that is done or there is only one process."""
    if processes() > 1 and not torch.distributed.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        if backend == "nccl":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        torch.distributed.init_process_group(backend, timeout=timedelta(days=1))  # others wait while one learns


def barrier() -> None:
    """Wait until all processes have come here."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


@contextmanager
def main_first() -> Iterator[None]:
    """Let the main process go through the block before the others do, so that they find what it made."""
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()
