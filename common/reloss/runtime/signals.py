"""Signals that tell a process to end: as an exception, noticed, or put off. Imports no torch."""

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
    """Let SIGTERM end the block as `Terminated`; processes that are forked in it leave signals to this one."""
    with _handled(_terminate, signal.SIGTERM):
        yield


@contextmanager
def noticing(*signals: int) -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether one of the signals arrived during the block; their handlers are called too."""
    arrived: list[int] = []

    def notice(number: int, frame: Any) -> None:
        arrived.append(number)
        handler = before[number]
        if callable(handler):
            handler(number, frame)

    with _handled(notice, *signals) as before:
        yield lambda: bool(arrived)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Put SIGTERM and Ctrl-C off to the end of the block: torch.save, cut short, fails or aborts the process."""
    arrived: list[int] = []
    try:
        with _handled(lambda number, frame: arrived.append(number), signal.SIGTERM, signal.SIGINT):
            yield
    finally:
        for number in dict.fromkeys(arrived):
            signal.raise_signal(number)


@contextmanager
def _handled(handler: Callable[[int, Any], None], *signals: int) -> Iterator[dict[int, Any]]:
    """Let `handler` take the signals in the block; yields what took them before, which takes them again after it.

    Outside the main thread, the only one that signals interrupt, nothing happens.
    """
    before: dict[int, Any] = {}
    with suppress(ValueError):
        for number in signals:
            before[number] = signal.signal(number, handler) or signal.SIG_DFL
    try:
        yield before
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def _terminate(number: int, frame: Any) -> None:
    raise Terminated


def leave_signals_to_starter() -> None:
    """Let the process that forked this one, a worker such as a data loader's, decide what SIGTERM and Ctrl-C end.

    They may reach all processes of a run at once, and a worker that dies of one fails the run, which is about to record
    that it was interrupted. The starter itself ends workers by SIGTERM: that is obeyed. The signal is blocked rather
    than ignored because PyTorch gives its workers a handler after this.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()
    sys.excepthook = _complain


def _complain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an error of a worker, but not that the starter, which was interrupted, hung up on it."""
    if not isinstance(error, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


def _obey(starter: int) -> None:
    """End this process by the first SIGTERM that the starter sends; only who waits for a signal learns who sent it."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != starter:
        pass
    os._exit(0)


# Those that are forked while SIGTERM ends a block as `Terminated`, whichever framework forks them.
os.register_at_fork(
    after_in_child=lambda: leave_signals_to_starter() if signal.getsignal(signal.SIGTERM) is _terminate else None
)
