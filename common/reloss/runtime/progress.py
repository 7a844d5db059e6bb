"""Progress of long work: a bar on a terminal, plain lines elsewhere, both on standard error."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from reloss.runtime.text import printable

MAIN = os.environ.get("RANK", "0") == "0"  # of several processes of one run, only the main one prints
console = Console(stderr=True, highlight=False, soft_wrap=True)


def say(message: str) -> None:
    """Print one line about the current work on standard error, above the progress bar if there is one."""
    if not MAIN:
        return
    message = printable(message)
    try:
        if console.is_terminal:
            console.print(message, markup=False)
        else:
            print(message, file=sys.stderr, flush=True)
    except BrokenPipeError:  # the reader, such as `head`, closed the pipe: that must not end hours of work
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


@contextmanager
def progress(total: int, description: str, start: int = 0) -> Iterator[Callable[[], None]]:
    """Yield a function to call after each step.

    Args:
        total: the number of steps.
        description: the text next to the bar.
        start: the number of steps that are already done.
    """
    if not (MAIN and console.is_terminal):
        yield lambda: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(description, total=total, completed=start)
        yield lambda: bar.advance(task)
