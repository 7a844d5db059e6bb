"""The tracker that mirrors a run to Weights & Biases.

W&B runs in a process of its own, `reloss.tracking.worker`, and the run writes calls into its pipe without waiting for
an answer. So whatever fails or hangs in W&B is reported once, and neither stops nor delays the run. W&B is offline
unless a key is set.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reloss.experiment.config import Experiment
from reloss.experiment.tracker import Tracker
from reloss.runtime.files import short_hash
from reloss.runtime.progress import say
from reloss.tracking.artifacts import Artifact, bank_artifact, result_artifact, surrogate_artifact

if TYPE_CHECKING:
    from reloss.learning.bank import PredictionBank

DEADLINE = 60
"""Seconds W&B gets at the end of a run to write or upload what is left."""
FAILURE_DEADLINE = 10
"""The same after a failure or an interruption: whoever interrupted the run may kill it soon."""
BROKEN_PIPE_DEADLINE = 5
"""Seconds for the answer of a worker that has closed its input."""

MAX_TAG, MAX_NAME = 64, 128
"""Characters that W&B allows in a tag and in an artifact's name."""


def describe_run(config: Experiment, stage: str, commit: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the name, group, job_type, tags and config of a W&B run.

    Args:
        config: the resolved experiment; its sections become those of W&B's config.
        stage: baseline, learn or train.
        commit: commit of the checkout, with `+changes` appended if files differ from it.
        facts: more entries of W&B's config: loss, variant, seed, record and so on.
    """
    loss = "@".join(filter(None, (facts["loss"], facts.get("variant"))))
    checkout = "changes" if "+" in commit else "unknown" if commit == "unknown" else "clean"
    tags = [config.name.partition("/")[0], facts["loss"], facts.get("variant"), config.scope_text(), f"git: {checkout}"]
    return {
        "name": f"{config.name} {loss} " + (f"seed {facts['seed']}" if "seed" in facts else stage),
        "group": config.name,
        "job_type": stage,
        "tags": [_shorten(tag, MAX_TAG) for tag in tags if tag],
        "config": {**config.model_dump(mode="json"), **facts, "stage": stage, "commit": commit},
    }


def _shorten(text: str, max_length: int) -> str:
    """Return `text`, cut and marked by a hash if it is too long."""
    return text if len(text) <= max_length else f"{text[: max_length - 9]}-{short_hash(text, 8)}"


def kill_tree(process: subprocess.Popen[Any]) -> None:
    """Kill a process that is still running, and its children where the system lists them."""
    if process.poll() is not None:
        return
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    with suppress(OSError):
        for child in children.read_text().split():
            os.kill(int(child), signal.SIGKILL)
    process.kill()
    process.wait()


def report_problem(problem: str) -> None:
    """Print that W&B failed a run."""
    say(f"W&B failed ({problem}); the run continues, and its own files are complete")


class WandbTracker(Tracker):
    """Mirrors a run to W&B, and does nothing once that fails.

    Args:
        on_problem: receives what failed, at most once.
    """

    enabled = True

    def __init__(self, on_problem: Callable[[str], None] = report_problem) -> None:
        super().__init__()
        self._on_problem = on_problem
        self._process: subprocess.Popen[bytes] | None = None
        self._unsent = b""

    def start(self, folder: Path, config: Experiment, stage: str, commit: str, facts: Mapping[str, Any]) -> None:
        """Start a W&B run for a record or a fit; see the base class."""
        self.start_run(folder, **describe_run(config, stage, commit, facts))

    def start_run(self, folder: Path, **settings: Any) -> None:
        """Start a W&B run whose files lie below `folder`; for `settings` see `Worker.start`."""
        with self._timed():
            self._start_worker()
        self._send("start", folder=str(folder.resolve()), pid=os.getpid(), **settings)

    def _start_worker(self) -> None:
        words = [sys.executable, "-m", "reloss.tracking.worker"]
        pipe, null = subprocess.PIPE, subprocess.DEVNULL
        try:
            # In a session of its own, since Ctrl-C is meant for the run, which then reports how it ended.
            self._process = subprocess.Popen(
                words, stdin=pipe, stdout=pipe, stderr=null, bufsize=0, start_new_session=True
            )
        except OSError as error:
            self._report(f"{type(error).__name__}: {error}")
            return
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)

    def log(self, values: dict[str, Any]) -> None:
        """Log one row of metrics."""
        self._send("log", values=values)

    def replay(self, path: Path, lines: int) -> None:
        """Log the first `lines` rows of a metrics file, written by an earlier session of the run."""
        if lines:
            self._send("replay", path=str(path.resolve()), lines=lines)

    def figure(self, name: str, path: Path, step: int) -> None:
        """Log a PNG file."""
        self._send("figure", name=name, path=str(path.resolve()), step=step)

    def log_bank(self, experiment: str, bank: PredictionBank, *, used: bool = False) -> None:
        """Log a bank as an output of the run or, if `used`, as its input."""
        self.log_artifact(bank_artifact(experiment, bank), used=used)

    def log_surrogate(self, experiment: str, folder: Path, *, used: bool = False) -> None:
        """Log a fitted surrogate as an output of the run or, if `used`, as its input."""
        self.log_artifact(surrogate_artifact(experiment, folder), used=used)

    def log_result(self, folder: Path, record: str, scores: Mapping[str, float]) -> None:
        """Log a record's files and scores as an output of the run."""
        self.log_artifact(result_artifact(folder, record, scores))

    def log_artifact(self, artifact: Artifact, *, used: bool = False) -> None:
        """Log an artifact as an output of the run or, if `used`, as its input."""
        self._send(
            "artifact",
            name=_shorten(re.sub(r"[^\w.-]", "-", artifact.name), MAX_NAME),
            type=artifact.type,
            files={name: str(path.resolve()) for name, path in artifact.files.items()},
            references=dict(artifact.references),
            metadata=dict(artifact.metadata),
            table=dict(artifact.table),
            used=used,
        )

    def finish(self, summary: dict[str, Any], failed: bool) -> None:
        """Log the final scores, and wait until W&B has written everything or its deadline is over."""
        self._send("finish", summary=summary, exit_code=int(failed))
        with self._timed():
            self._close(FAILURE_DEADLINE if failed else DEADLINE)

    def _send(self, call: str, **arguments: Any) -> None:
        """Queue a call, and write as much of the queue as the worker's pipe takes at once."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        with self._timed():
            self._unsent += json.dumps({"call": call, **arguments}).encode() + b"\n"
            try:
                while self._unsent:
                    self._unsent = self._unsent[os.write(self._process.stdin.fileno(), self._unsent) :]
            except BlockingIOError:
                pass  # the worker is busy; the next call sends the rest
            except OSError:  # the worker has ended
                self._close(BROKEN_PIPE_DEADLINE)

    def _close(self, timeout: float) -> None:
        """Write the rest of the queue, wait for the worker's answer, report problems, and leave no process behind."""
        process, self._process = self._process, None
        if process is None:
            return
        problems = [f"no answer within {timeout:.0f} seconds"]
        with suppress(subprocess.TimeoutExpired):
            output, _ = process.communicate(self._unsent, timeout=timeout)
            try:
                answer = json.loads(output)
                problems = answer["problems"]
                self.cpu_seconds += answer["cpu_seconds"]
            except ValueError:
                problems = [f"its process ended with code {process.returncode}"]
        kill_tree(process)
        self._report("; ".join(problems))

    def _report(self, problem: str) -> None:
        if problem:
            self._on_problem(problem)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Add the duration of the block to `seconds`."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds += time.monotonic() - start
