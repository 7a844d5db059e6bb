"""`reloss` in a process of its own, forked from a server that has imported everything: it starts in a moment.

A new interpreter takes eight seconds of processor time to import torch, torch's compiler and scikit-learn.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

from reloss.cli import main

SERVER = multiprocessing.get_context("forkserver")
TRAINING = ("reloss.cli", "reloss.pipeline.stages", "reloss_tasks.classification.training")
SERVER.set_forkserver_preload([*TRAINING, "torch._dynamo", "sklearn.datasets"])


def print_to(output: Path) -> None:
    """Let this process, just forked, print into a file."""
    with output.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1, closefd=False) for stream in (1, 2))


def _run(words: list[str], environment: dict[str, str], folder: str, output: Path) -> None:
    os.setsid()
    print_to(output)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["reloss", *words]
    main(words)


class Forked:
    """A process that runs `reloss` with these words, in a session of its own; it has the methods of `Popen`."""

    def __init__(self, words: list[str], output: Path) -> None:
        arguments = (words, {**os.environ, "OMP_NUM_THREADS": "1"}, os.getcwd(), output)
        self._process = SERVER.Process(target=_run, args=arguments)
        self._output = output
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("reloss", timeout or 0)
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Wait for the end; return what it printed."""
        self.wait(timeout)
        return self._output.read_text(), None

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
