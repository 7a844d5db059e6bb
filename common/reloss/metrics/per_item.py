"""A vectorised metric from a function of one item.

Many metrics exist only as a Python function or a torchmetrics object for one batch. `PerItem` turns such a function
into a metric of N items by calling it N times. It measures the first calls: a fast function stays in this process, and
a slow one moves to worker processes, which take seconds to start but then use all cores.
"""

from __future__ import annotations

import pickle
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reloss.runtime.errors import RelossError, UsageError
from reloss.runtime.progress import progress

Metric = Callable[[Any, Any], Tensor]  # outputs and targets are tensors; only for bleu they are lists of strings

FEW_ITEMS = 8  # no progress bar for so few items, and no workers for so few remaining ones
PATIENCE = 2.0  # seconds of work in this process before workers start, about the time that they take to start
TASK_SECONDS = 0.2  # seconds of work that a worker gets at a time


class PerItem:
    """A metric (outputs [N, B, ...], targets [N, B, ...]) -> [N] that calls a function for each item.

    The first items are computed in this process. If they take longer than starting workers would, the remaining items
    are computed in worker processes with one thread each. The function can be a lambda, a closure, or defined in
    `__main__`.

    Args:
        function: (outputs [B, ...], targets [B, ...]) -> a number. Both tensors are on the CPU, and the function may
            modify them. Or a torchmetrics object: a copy of it is reset for each item.
        name: the name in messages; by default the function's name.
        workers: number of worker processes; by default the number of cores. With 1, everything runs in this process.

    Attributes:
        higher_is_better: the attribute of that name of a torchmetrics object, otherwise None.

    Raises:
        UsageError: the function cannot be called, or `workers` is not positive.
    """

    def __init__(
        self, function: Callable[[Tensor, Tensor], Any], *, name: str | None = None, workers: int | None = None
    ) -> None:
        _check_callable(function)
        if workers is not None and workers < 1:
            raise UsageError(f"workers must be at least 1, not {workers}")
        self.__name__ = name or str(getattr(function, "__name__", type(function).__name__))
        self.function = _TorchmetricsFunction(function) if is_torchmetrics(function) else function
        self.higher_is_better: bool | None = getattr(function, "higher_is_better", None)
        self.workers = workers
        self._started = False
        self._computed, self._seconds = 0, 0.0  # number of items computed in this process, and their total time

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the metric of each item: outputs [N, B, ...], targets [N, B, ...] -> [N] in float32.

        Raises:
            RelossError: the function failed for an item or did not return a number. The message names the metric, the
                item and the cause.
            ValueError: the numbers of outputs and targets differ.
        """
        try:
            return torch.tensor(list(self.values(outputs, targets)), dtype=torch.float32, device=outputs.device)
        finally:
            self.close()

    def values(
        self, outputs: Tensor, targets: Tensor, labels: Sequence[str] | None = None
    ) -> Generator[float, None, None]:
        """Yield the metric of each item, in order. Workers keep running for the next call, until `close`.

        Args:
            outputs: [N, B, ...].
            targets: [N, B, ...].
            labels: names of the N items in messages; by default "item 0" and so on.

        Raises:
            RelossError: see `__call__`.
            ValueError: the numbers of outputs and targets differ.
        """
        count = len(targets)
        if len(outputs) != count:
            raise ValueError(f"{len(outputs)} outputs, but {count} targets")
        outputs, targets = outputs.detach().cpu(), targets.detach().cpu()
        bar = progress(count, f"metric {self.__name__}") if count > FEW_ITEMS else nullcontext(lambda: None)
        with bar as advance:
            for number, value in enumerate(self._outcomes(outputs, targets)):
                if isinstance(value, _Failure):
                    label = labels[number] if labels else f"item {number}"
                    raise RelossError(f"metric {self.__name__} failed for {label}: {value.cause}") from value.error()
                advance()
                yield value

    def close(self) -> None:
        """Stop the worker processes. A later call starts new ones, which see the code of that time."""
        if self._started:
            from joblib.externals.loky import get_reusable_executor

            get_reusable_executor(reuse=True).shutdown(wait=True)
        self._started = False
        self._computed, self._seconds = 0, 0.0

    def _outcomes(self, outputs: Tensor, targets: Tensor) -> Iterator[float | _Failure]:
        count = len(targets)
        for number in range(count):
            if self.workers != 1 and self._seconds > PATIENCE and count - number > FEW_ITEMS:
                size = max(1, int(TASK_SECONDS * self._computed / self._seconds))
                yield from self._in_workers(outputs[number:].split(size), targets[number:].split(size))
                return
            start = time.perf_counter()
            value = _evaluate(self.function, outputs[number].clone(), targets[number].clone())
            self._computed += 1
            self._seconds += time.perf_counter() - start
            yield value

    def _in_workers(self, outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> Iterator[float | _Failure]:
        import cloudpickle
        from joblib import Parallel, cpu_count, delayed, parallel_config

        remedy = "use PerItem(function, workers=1) to compute it in this process"
        try:
            function = cloudpickle.dumps(self.function)
        except Exception as error:
            raise RelossError(
                f"metric {self.__name__} cannot be sent to worker processes ({error}); {remedy}"
            ) from error
        self._started = True
        # Cloned, because the pickle of a view contains the whole tensor.
        tasks = (
            delayed(_evaluate_all)(function, tuple(sys.path), part.clone(), target.clone())
            for part, target in zip(outputs, targets, strict=True)
        )
        with parallel_config("loky", n_jobs=self.workers or cpu_count(), inner_max_num_threads=1):
            parallel = Parallel(return_as="generator", batch_size=1, max_nbytes=None)
        results = parallel(tasks)
        try:
            for values in results:
                yield from values
        except BrokenProcessPool as error:
            raise RelossError(
                f"metric {self.__name__}: a worker process died, probably out of memory or in compiled code; {remedy}"
            ) from error
        finally:
            with warnings.catch_warnings():  # about results that are no longer needed
                warnings.simplefilter("ignore")
                results.close()


def as_metric(metric: Metric) -> Metric:
    """Return `metric`, or `PerItem(metric)` for a torchmetrics object.

    Raises:
        UsageError: the metric is a class, or cannot be called.
    """
    _check_callable(metric)
    return PerItem(metric) if is_torchmetrics(metric) else metric


def is_torchmetrics(value: Any) -> bool:
    """Return whether `value` is an instance of torchmetrics.Metric, without importing torchmetrics."""
    torchmetrics = sys.modules.get("torchmetrics")
    return torchmetrics is not None and isinstance(value, torchmetrics.Metric)


def _check_callable(metric: Any) -> None:
    if isinstance(metric, type):
        raise UsageError(f"{metric.__name__} is a class, not a metric; pass an instance: {metric.__name__}(...)")
    if not callable(metric):
        raise UsageError(f"{metric!r} is not a metric: it cannot be called with outputs and targets")


class _TorchmetricsFunction:
    """A function of one item, made from a copy of a torchmetrics object."""

    def __init__(self, metric: Any) -> None:
        self.metric = metric.clone().cpu()
        self.metric.reset()
        for part in self.metric.modules():
            part.distributed_available_fn = _not_distributed  # only one process measures; the others would not answer

    def __call__(self, outputs: Tensor, targets: Tensor) -> Any:
        self.metric.reset()
        self.metric.update(outputs, targets)
        return self.metric.compute()


def _not_distributed() -> bool:
    return False


class _Failure(NamedTuple):
    """An exception as text, because not every exception can be sent from one process to another."""

    cause: str
    trace: str

    def error(self) -> Exception:
        """Return an exception with the traceback as its message, to raise another one from."""
        return RuntimeError(self.trace)


@torch.no_grad()
def _evaluate(function: Callable[[Tensor, Tensor], Any], outputs: Tensor, targets: Tensor) -> float | _Failure:
    try:
        return float(function(outputs, targets))
    except Exception as error:
        return _Failure(f"{type(error).__name__}: {error}{tensor_hint(error)}", traceback.format_exc())


def tensor_hint(error: Exception) -> str:
    """Return a remedy where a metric failed because it expects NumPy arrays, else an empty string."""
    if isinstance(error, AttributeError) and isinstance(error.obj, Tensor):
        return "; a metric receives torch tensors: .numpy() turns them into NumPy arrays"
    return ""


def _evaluate_all(
    function: bytes, search_path: tuple[str, ...], outputs: Tensor, targets: Tensor
) -> list[float | _Failure]:
    """Return the values of the items [n, B, ...]. Runs in a worker.

    Args:
        function: the pickled function.
        search_path: `sys.path` of the main process.
        outputs: [n, B, ...].
        targets: [n, B, ...].
    """
    try:
        loaded = _load(function, search_path)
    except Exception as error:
        cause = f"it cannot be loaded in a worker process: {type(error).__name__}: {error}"
        return [_Failure(cause, traceback.format_exc())]
    return [_evaluate(loaded, *item) for item in zip(outputs, targets, strict=True)]


@lru_cache(maxsize=1)
def _load(function: bytes, search_path: tuple[str, ...]) -> Callable[[Tensor, Tensor], Any]:
    sys.path[:] = search_path
    loaded: Callable[[Tensor, Tensor], Any] = pickle.loads(function)
    return loaded
