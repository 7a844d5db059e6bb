"""Signals that ask a process to end: raised as an exception, noticed, or delayed. Imports no torch.

SIGTERM becomes the exception `Terminated`, so that a run can save its state and record that it was interrupted. A
signal to the process group also reaches forked workers, such as a data loader's. A worker that dies of it makes the run
fail before it can record anything, so workers ignore signals from everyone but their parent.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any


class Terminated(BaseException):
    """SIGTERM arrived."""


@contextmanager
def terminable() -> Iterator[None]:
    """Raise `Terminated` when SIGTERM arrives in the block; processes forked in it obey only their parent's signals."""
    with _handled(_terminate, signal.SIGTERM):
        yield


@contextmanager
def noticing(*signals: int) -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether one of the signals has arrived; their usual handlers still run."""
    arrived: list[int] = []

    def notice(number: int, frame: Any) -> None:
        arrived.append(number)
        handler = usual[number]
        if callable(handler):
            handler(number, frame)

    with _handled(notice, *signals) as usual:
        yield lambda: bool(arrived)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay SIGTERM and Ctrl-C until the end of the block: an interrupted torch.save fails or aborts the process."""
    arrived: list[int] = []
    try:
        with _handled(lambda number, frame: arrived.append(number), signal.SIGTERM, signal.SIGINT):
            yield
    finally:
        for number in dict.fromkeys(arrived):
            signal.raise_signal(number)


@contextmanager
def _handled(handler: Callable[[int, Any], None], *signals: int) -> Iterator[dict[int, Any]]:
    """Install `handler` for the signals during the block; yield the handlers it replaces, which return afterwards.

    Does nothing outside the main thread, because Python delivers signals only to the main thread.
    """
    replaced: dict[int, Any] = {}
    with suppress(ValueError):
        for number in signals:
            replaced[number] = signal.signal(number, handler) or signal.SIG_DFL
    try:
        yield replaced
    finally:
        for number, earlier in replaced.items():
            signal.signal(number, earlier)


def _terminate(number: int, frame: Any) -> None:
    raise Terminated


_fork = threading.local()
"""Its `mask` holds the signals that this thread blocks besides those blocked during a fork; it is absent otherwise."""


def _block_before_fork() -> None:
    """Block both signals until parent and worker are ready for them; a worker is born with the mask of its parent."""
    if signal.getsignal(signal.SIGTERM) is _terminate:
        _fork.mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})


def _unblock_in_parent() -> None:
    if hasattr(_fork, "mask"):
        signal.pthread_sigmask(signal.SIG_SETMASK, _fork.mask)
        del _fork.mask


def _obey_only_parent() -> None:
    """Make this worker, if it was forked inside `terminable`, ignore SIGINT, and SIGTERM unless the parent sends it.

    A parent ends its workers by SIGTERM, so that one must work. SIGTERM stays blocked rather than ignored because
    PyTorch installs a handler of its own in its workers later.
    """
    if not hasattr(_fork, "mask"):
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, _fork.mask | {signal.SIGTERM})
    del _fork.mask
    threading.Thread(target=_exit_on_signal_from, args=(os.getppid(),), daemon=True).start()
    sys.excepthook = _print_error


def _print_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the error of a worker, except when the connection to an interrupted parent broke."""
    if not isinstance(error, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


def _exit_on_signal_from(parent: int) -> None:
    """Wait for SIGTERM and exit when the parent sent it. Only `sigwaitinfo` tells who sent a signal."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


# For every process forked inside `terminable`, whichever framework forks it.
os.register_at_fork(before=_block_before_fork, after_in_parent=_unblock_in_parent, after_in_child=_obey_only_parent)
