"""One run in several processes, as torchrun starts them: which process writes, and which processes wait.

Every function also works in a single process, where it does nothing or returns the trivial answer, so callers need no
special case.
"""

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
    """Return the number of this process among the processes of the run."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Return whether this process writes the record: rank 0, or the only process."""
    return rank() == 0


def processes() -> int:
    """Return the number of processes of the run."""
    if torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_batch_size(batch_size: int) -> int:
    """Return how many examples of each batch this process trains on.

    Args:
        batch_size: the number of examples in a batch over all processes.

    Raises:
        UsageError: the batch cannot be divided evenly among the processes.
    """
    size, remainder = divmod(batch_size, processes())
    if remainder:
        raise UsageError(
            f"train.batch_size={batch_size} counts the examples of all processes together; it must be a multiple of "
            f"the number of processes, {processes()}"
        )
    return size


def start() -> None:
    """Join the process group that torchrun describes; does nothing if already joined, or with a single process."""
    if processes() > 1 and not torch.distributed.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        if backend == "nccl":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        torch.distributed.init_process_group(backend, timeout=timedelta(days=1))  # rank 0 may fit a surrogate first


def barrier() -> None:
    """Wait until every process has reached this call."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def mean(values: Tensor) -> Tensor:
    """Return the mean of `values` over all processes; every process gets the same."""
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(values := values.clone())
        values /= processes()
    return values


def gather_objects(value: T) -> list[T]:
    """Return the `value` of every process, in the order of their ranks."""
    if not torch.distributed.is_initialized():
        return [value]
    values: list[T] = [value] * processes()
    torch.distributed.all_gather_object(values, value)
    return values


@contextmanager
def main_first() -> Iterator[None]:
    """Run the block in the main process first, then in the other processes, which can reuse its files."""
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()


@dataclass(frozen=True)
class Share:
    """The part of a computation that one of `size` processes does; the default is all of it, in one process.

    Attributes:
        rank: the number of this process.
        size: the number of processes: all processes of the default process group, or 1.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def of_this_process(cls) -> "Share":
        """Return the share of this process in the run."""
        return cls(rank(), processes())

    def indices(self, count: int) -> Tensor:
        """Return the indices of the values, out of `count`, that this process computes."""
        return torch.arange(self.rank, count, self.size)

    def gather(self, values: Tensor, count: int) -> Tensor:
        """Return all `count` values, given the values of this process. Gradients flow only to the latter."""
        if self.size == 1:
            return values
        indices = self.indices(count).to(values.device)
        total = values.new_zeros(count).index_copy(0, indices, values.detach())
        torch.distributed.all_reduce(total)
        return total.index_copy(0, indices, values)

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace the gradient of each parameter with the sum of its gradients over all processes."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.size > 1:
            flat = parameters_to_vector(gradients)
            torch.distributed.all_reduce(flat)
            vector_to_parameters(flat, gradients)


SINGLE_PROCESS = Share()
