import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `reloss` with the given words in a process of its own, which does not outlive the test."""
    started: list[subprocess.Popen[str]] = []

    def launch(*words: object, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        command = [sys.executable, *launcher, "-m", "reloss.cli", *map(str, words)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield launch
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def finish(start: Callable[..., subprocess.Popen[str]]) -> Callable[..., str]:
    """Runs `reloss` to its end, which must be a good one; returns what it said."""

    def run(*words: object, **more: object) -> str:
        process = start(*words, **more)
        said, _ = process.communicate(timeout=240)
        assert process.returncode == 0, said
        return said

    return run
