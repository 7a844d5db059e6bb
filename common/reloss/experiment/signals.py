"""Signals that tell a process to end: as an exception, or noticed. Imports no torch."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Terminated(BaseException):
    """SIGTERM arrived."""


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end the block as `Terminated`."""

    def terminate(number: int, frame: Any) -> None:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, terminate)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
