"""A vectorised metric out of a Python function of one item, which runs in worker processes where it takes long."""

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

Metric = Callable[[Any, Any], Tensor]  # of two tensors; bleu alone takes lists of strings

HANDFUL = 8  # items, for which there is neither a progress bar nor a worker
PATIENCE = 2.0  # seconds of computing in this process before workers, which take as long to start
TASK_SECONDS = 0.2  # of computing, handed to a worker at a time


class PerItem:
    """A metric (outputs [N, B, ...], targets [N, B, ...]) -> [N] that calls a function for each item.

    The first items are computed in this process. If that takes longer than a worker takes to start, the others are
    computed in worker processes of one thread each. The function may be a lambda, a closure or one of `__main__`.

    Args:
        function: (outputs [B, ...], targets [B, ...]) -> a number, of tensors on the CPU that it may change; or a
            torchmetrics object, of which a copy is reset for each item.
        name: for messages; the function's own by default.
        workers: processes; by default as many as there are cores. With 1, all is computed in this process.

    Attributes:
        higher_is_better: what a torchmetrics object says of itself, else None.

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
        self.function = _OfTorchmetrics(function) if is_torchmetrics(function) else function
        self.higher_is_better: bool | None = getattr(function, "higher_is_better", None)
        self.workers = workers
        self._started = False
        self._computed, self._seconds = 0, 0.0  # items in this process, and what they took

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the metric of each item: outputs [N, B, ...], targets [N, B, ...] -> [N] in float32.

        Raises:
            RelossError: the function failed for an item or gave no number; the message names metric, item and cause.
            ValueError: there are not as many outputs as targets.
        """
        try:
            return torch.tensor(list(self.values(outputs, targets)), dtype=torch.float32, device=outputs.device)
        finally:
            self.close()

    def values(
        self, outputs: Tensor, targets: Tensor, labels: Sequence[str] | None = None
    ) -> Generator[float, None, None]:
        """Yield the metric of each item, in their order; workers stay for another call, until `close`.

        Args:
            outputs: [N, B, ...].
            targets: [N, B, ...].
            labels: what messages call the N items; "item 0" and so on by default.

        Raises:
            RelossError: see `__call__`.
            ValueError: there are not as many outputs as targets.
        """
        count = len(targets)
        if len(outputs) != count:
            raise ValueError(f"{len(outputs)} outputs, but {count} targets")
        outputs, targets = outputs.detach().cpu(), targets.detach().cpu()
        bar = progress(count, f"metric {self.__name__}") if count > HANDFUL else nullcontext(lambda: None)
        with bar as advance:
            for number, value in enumerate(self._outcomes(outputs, targets)):
                if isinstance(value, _Failure):
                    label = labels[number] if labels else f"item {number}"
                    raise RelossError(f"metric {self.__name__} failed for {label}: {value.cause}") from value.error()
                advance()
                yield value

    def close(self) -> None:
        """End the worker processes; the next ones see the code as it is then."""
        if self._started:
            from joblib.externals.loky import get_reusable_executor

            get_reusable_executor(reuse=True).shutdown(wait=True)
        self._started = False
        self._computed, self._seconds = 0, 0.0

    def _outcomes(self, outputs: Tensor, targets: Tensor) -> Iterator[float | _Failure]:
        count = len(targets)
        for number in range(count):
            if self.workers != 1 and self._seconds > PATIENCE and count - number > HANDFUL:
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

        way_out = "PerItem(function, workers=1) computes it in this process"
        try:
            function = cloudpickle.dumps(self.function)
        except Exception as error:
            raise RelossError(
                f"metric {self.__name__} cannot be sent to worker processes ({error}); {way_out}"
            ) from error
        self._started = True
        # A clone, for the pickle of a view holds all that it is a view of.
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
                f"metric {self.__name__}: a worker process died, out of memory or in compiled code; {way_out}"
            ) from error
        finally:
            with warnings.catch_warnings():  # of results that are no longer wanted
                warnings.simplefilter("ignore")
                results.close()


def as_metric(metric: Metric) -> Metric:
    """Return `metric`, or `PerItem(metric)` of a torchmetrics object.

    Raises:
        UsageError: it is a class, or cannot be called.
    """
    _check_callable(metric)
    return PerItem(metric) if is_torchmetrics(metric) else metric


def is_torchmetrics(value: Any) -> bool:
    """Return whether `value` is an object of torchmetrics.Metric, without importing torchmetrics."""
    torchmetrics = sys.modules.get("torchmetrics")
    return torchmetrics is not None and isinstance(value, torchmetrics.Metric)


def _check_callable(metric: Any) -> None:
    if isinstance(metric, type):
        raise UsageError(f"{metric.__name__} is a class, not a metric; make an object of it: {metric.__name__}(...)")
    if not callable(metric):
        raise UsageError(f"{metric!r} is not a metric: it cannot be called with outputs and targets")


class _OfTorchmetrics:
    """A function of one item out of a copy of a torchmetrics object."""

    def __init__(self, metric: Any) -> None:
        self.metric = metric.clone().cpu()
        self.metric.reset()
        for part in self.metric.modules():
            part.distributed_available_fn = _not_distributed  # one process alone learns; no other would answer

    def __call__(self, outputs: Tensor, targets: Tensor) -> Any:
        self.metric.reset()
        self.metric.update(outputs, targets)
        return self.metric.compute()


def _not_distributed() -> bool:
    return False


class _Failure(NamedTuple):
    """An exception, in words: not every exception can be sent from one process to another."""

    cause: str
    trace: str

    def error(self) -> Exception:
        """Return an exception to show as the cause of another."""
        return RuntimeError(self.trace)


@torch.no_grad()
def _evaluate(function: Callable[[Tensor, Tensor], Any], outputs: Tensor, targets: Tensor) -> float | _Failure:
    try:
        return float(function(outputs, targets))
    except Exception as error:
        return _Failure(f"{type(error).__name__}: {error}", traceback.format_exc())


def _evaluate_all(
    function: bytes, search_path: tuple[str, ...], outputs: Tensor, targets: Tensor
) -> list[float | _Failure]:
    """Return the values of the items [n, B, ...], in a worker."""
    try:
        load = _load(function, search_path)
    except Exception as error:
        return [_Failure(f"not found in a worker process: {type(error).__name__}: {error}", traceback.format_exc())]
    return [_evaluate(load, *item) for item in zip(outputs, targets, strict=True)]


@lru_cache(maxsize=1)
def _load(function: bytes, search_path: tuple[str, ...]) -> Callable[[Tensor, Tensor], Any]:
    sys.path[:] = search_path
    loaded: Callable[[Tensor, Tensor], Any] = pickle.loads(function)
    return loaded
