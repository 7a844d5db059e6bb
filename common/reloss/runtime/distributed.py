"""One run in several processes, as torchrun starts them: who writes, and who waits. In one process nothing happens."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from reloss.runtime.errors import UsageError

T = TypeVar("T")


def rank() -> int:
    """Return the number of this process among those of this run."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Return whether this process writes the record: rank 0, or the only one."""
    return rank() == 0


def processes() -> int:
    """Return the number of processes of this run."""
    if torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return int(os.environ.get("WORLD_SIZE", "1"))


def share_of(batch_size: int) -> int:
    """Return how many examples of a batch are this process's.

    Raises:
        UsageError: the batch cannot be shared evenly.
    """
    share, left_over = divmod(batch_size, processes())
    if left_over:
        raise UsageError(
            f"train.batch_size={batch_size} is of all processes together and must be a multiple of their number, "
            f"{processes()}"
        )
    return share


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


def gather_objects(own: T) -> list[T]:
    """Return what each process has, given what this one has, in the order of their ranks."""
    if not torch.distributed.is_initialized():
        return [own]
    found: list[T] = [own] * processes()
    torch.distributed.all_gather_object(found, own)
    return found


@contextmanager
def main_first() -> Iterator[None]:
    """Let the main process go through the block before the others do, so that they find what it made."""
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()


@dataclass(frozen=True)
class Share:
    """The share of one of `size` processes in what all of them compute; of a single one, everything.

    Attributes:
        rank: the number of this process.
        size: the number of processes, those of the default process group.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def of_this_process(cls) -> "Share":
        """Return the share of this process among those of this run."""
        return cls(rank(), processes())

    def own(self, count: int) -> Tensor:
        """Return which of `count` values are this process's."""
        return torch.arange(self.rank, count, self.size)

    def gather(self, values: Tensor, count: int) -> Tensor:
        """Return all `count` values of all processes, given this one's; only these can be differentiated."""
        if self.size == 1:
            return values
        own = self.own(count).to(values.device)
        whole = values.new_zeros(count).index_copy(0, own, values.detach())
        torch.distributed.all_reduce(whole)
        return whole.index_copy(0, own, values)

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Give each parameter the sum of its gradients in all processes."""
        gradients = [each.grad for each in parameters if each.grad is not None]
        if self.size > 1:
            flat = parameters_to_vector(gradients)
            torch.distributed.all_reduce(flat)
            vector_to_parameters(flat, gradients)
