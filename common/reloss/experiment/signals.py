"""Signals that tell a process to end: as an exception, or noticed. Imports no torch."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import TracebackType
from typing import Any


class Terminated(BaseException):
    """SIGTERM arrived."""


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end the block as `Terminated`; processes that are forked in it leave signals to this one."""

    def terminate(number: int, frame: Any) -> None:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, terminate)
    except ValueError:  # not in the main thread
        yield
        return
    _watch_forks()
    _blocks.append(None)
    try:
        yield
    finally:
        _blocks.pop()
        signal.signal(signal.SIGTERM, before)


_blocks: list[None] = []  # those that are open


@cache
def _watch_forks() -> None:
    """Make forked processes call `leave_signals_to_starter` from now on; nothing takes that back."""
    os.register_at_fork(after_in_child=lambda: leave_signals_to_starter() if _blocks else None)


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
    if not isinstance(error, ConnectionError):
        sys.__excepthook__(kind, error, trace)


def _obey(starter: int) -> None:
    """End this process by the first SIGTERM that the starter sends; only who waits for a signal learns who sent it."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != starter:
        pass
    os._exit(0)


@contextmanager
def noticing(*signals: int) -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether one of the signals arrived during the block; their handlers are called too."""
    arrived: list[int] = []

    def notice(number: int, frame: Any) -> None:
        arrived.append(number)
        handler = before[number]
        if callable(handler):
            handler(number, frame)

    before = {number: signal.signal(number, notice) for number in signals}
    try:
        yield lambda: bool(arrived)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
