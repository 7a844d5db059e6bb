"""Waiting for something that another process does."""

import subprocess
import time
from collections.abc import Callable
from typing import TypeVar

from forked import Forked

T = TypeVar("T")


def wait_for(
    condition: Callable[[], T], process: "Forked | subprocess.Popen[str] | None" = None, seconds: float = 240
) -> T:
    """Return the first true value of `condition`; `process` must run until then, and it may take `seconds`."""
    limit = time.monotonic() + seconds
    while not (value := condition()):
        assert process is None or process.poll() is None, process.communicate()[0]
        assert time.monotonic() < limit, f"the condition was not met within {seconds} seconds"
        time.sleep(0.01)
    return value
