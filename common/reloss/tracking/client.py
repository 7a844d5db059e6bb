"""Metrics as they come: appended to a local JSONL file, the truth, and mirrored to Weights & Biases.

W&B is offline unless a key is set. It works in a process of its own (`reloss.tracking.worker`): whatever fails or
hangs in it is said once and neither stops a run nor holds it up.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from reloss.experiment.config import Experiment
from reloss.runtime.files import short_hash
from reloss.runtime.progress import say

Track = Literal["wandb", "off"]
DEADLINE = 60  # seconds that W&B has at the end of a run to write, or to upload, what it was given
GRACE = 10  # the same of a run that was interrupted: who did that may kill it soon
MAX_TAG, MAX_NAME = 64, 128  # characters of a tag and of an artifact's name, as W&B allows


@dataclass(frozen=True)
class Artifact:
    """What W&B keeps of a run beside its metrics: files that are uploaded, or references to what stays where it is.

    The same content under the same name is the same version, whichever run logs it; so lines of descent join up.
    """

    name: str
    type: Literal["dataset", "model", "result"]
    files: Mapping[str, Path] = field(default_factory=dict)
    references: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    table: Mapping[str, float] = field(default_factory=dict)


def describe_run(config: Experiment, stage: str, commit: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return how W&B calls, groups and tags a run: name, group, job_type, tags and config.

    Args:
        config: of the experiment; the sections of W&B's config.
        stage: baseline, learn or train.
        commit: of the checkout, with `+changes` if files differ from it.
        facts: what else the config holds: loss, variant, seed, record and so on.
    """
    loss = "@".join(filter(None, (facts["loss"], facts.get("variant"))))
    state = "changes" if "+" in commit else "unknown" if commit == "unknown" else "clean"
    tags = [config.name.partition("/")[0], facts["loss"], facts.get("variant"), config.scope_text(), f"git: {state}"]
    return {
        "name": f"{config.name} {loss} " + (f"seed {facts['seed']}" if "seed" in facts else stage),
        "group": config.name,
        "job_type": stage,
        "tags": [_shortened(tag, MAX_TAG) for tag in tags if tag],
        "config": {**config.model_dump(mode="json"), **facts, "stage": stage, "commit": commit},
    }


def _shortened(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 9]}-{short_hash(text, 8)}"


def kill_tree(process: subprocess.Popen[Any]) -> None:
    """End a process that is running still, and those that it started, where the system tells which they are."""
    if process.poll() is not None:
        return
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    with suppress(OSError):
        for child in children.read_text().split():
            os.kill(int(child), signal.SIGKILL)
    process.kill()
    process.wait()


class WandbMirror:
    """Mirror a run to W&B, or do nothing once that fails.

    Attributes:
        seconds: that the run waited for W&B so far.
        cpu_seconds: processor time of W&B's processes, known after `finish`.
    """

    def __init__(self, track: Track, folder: Path, **settings: Any) -> None:
        """Start a W&B run below `folder`; `settings` are name, group, job_type, tags and config."""
        self.seconds = self.cpu_seconds = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._unsent = b""
        if track == "wandb":
            with self._timed():
                self._start()
            self._send("start", folder=str(folder.resolve()), pid=os.getpid(), **settings)

    def _start(self) -> None:
        words = [sys.executable, "-m", "reloss.tracking.worker"]
        pipe, null = subprocess.PIPE, subprocess.DEVNULL
        try:
            # A session of its own: Ctrl-C is for the run, which then says how it ended.
            self._process = subprocess.Popen(
                words, stdin=pipe, stdout=pipe, stderr=null, bufsize=0, start_new_session=True
            )
        except OSError as error:
            self._say(f"{type(error).__name__}: {error}")
            return
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)

    def log(self, values: dict[str, Any]) -> None:
        """Send one row."""
        self._send("log", values=values)

    def replay(self, path: Path, lines: int) -> None:
        """Send the first `lines` rows of a metrics file, which an earlier session of the run logged."""
        if lines:
            self._send("replay", path=str(path.resolve()), lines=lines)

    def figure(self, name: str, path: Path, step: int) -> None:
        """Send a PNG file."""
        self._send("figure", name=name, path=str(path.resolve()), step=step)

    def make(self, artifact: Artifact) -> None:
        """Send an artifact that the run made."""
        self._artifact(artifact, used=False)

    def use(self, artifact: Artifact) -> None:
        """Send an artifact that the run rests on."""
        self._artifact(artifact, used=True)

    def _artifact(self, artifact: Artifact, used: bool) -> None:
        self._send(
            "artifact",
            name=_shortened(re.sub(r"[^\w.-]", "-", artifact.name), MAX_NAME),
            type=artifact.type,
            files={name: str(path.resolve()) for name, path in artifact.files.items()},
            references=dict(artifact.references),
            metadata=dict(artifact.metadata),
            table=dict(artifact.table),
            used=used,
        )

    def finish(self, summary: dict[str, Any], failed: bool) -> None:
        """Send the final scores, and wait until W&B has written everything, but not beyond its deadline."""
        self._send("finish", summary=summary, exit_code=int(failed))
        with self._timed():
            self._end(GRACE if failed else DEADLINE)

    def cost(self, wall_seconds: float) -> dict[str, float]:
        """Return what W&B took so far: seconds that the run waited, their share of its wall time, processor time."""
        share = self.seconds / wall_seconds if wall_seconds else 0.0
        return {
            "seconds": round(self.seconds, 3),
            "share": round(share, 5),
            "cpu_seconds": round(self.cpu_seconds, 2),
        }

    def _send(self, call: str, **arguments: Any) -> None:
        """Hand a call to the process of W&B, or as much of all calls so far as its pipe takes at once."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        with self._timed():
            self._unsent += json.dumps({"call": call, **arguments}).encode() + b"\n"
            try:
                while self._unsent:
                    self._unsent = self._unsent[os.write(self._process.stdin.fileno(), self._unsent) :]
            except BlockingIOError:
                pass  # it is busy: the rest goes with the next call
            except OSError:  # it has ended
                self._end(timeout=5)

    def _end(self, timeout: float) -> None:
        """Send the rest, wait for the answer of the process, say what went wrong, and leave no process behind."""
        process, self._process = self._process, None
        if process is None:
            return
        problems = [f"no answer within {timeout:.0f} seconds"]
        with suppress(subprocess.TimeoutExpired):
            said, _ = process.communicate(self._unsent, timeout=timeout)
            try:
                answer = json.loads(said)
                problems = answer["problems"]
                self.cpu_seconds += answer["cpu_seconds"]
            except ValueError:
                problems = [f"its process ended with code {process.returncode}"]
        kill_tree(process)
        self._say("; ".join(problems))

    def _say(self, problem: str) -> None:
        if problem:
            say(f"W&B failed ({problem}); the run goes on, and its own files are complete")

    @contextmanager
    def _timed(self) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds += time.monotonic() - began
