"""One job of a sweep: a run, or one stage of it that several runs share, with its log and its note.

A note is a small file next to the log. It holds what no record can say: that a job is queued, or why it failed before
there was a record. A job that ends well, or is interrupted, has no note; only a finished fit keeps one, since its
surrogate does not tell which sweep it belongs to.
"""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reloss.experiment.run_spec import RunSpec, Stage
from reloss.experiment.status import Status
from reloss.experiment.workspace import Workspace
from reloss.runtime.errors import RelossError
from reloss.runtime.files import read_object, write_json

TERMINATED = 128 + signal.SIGTERM
INTERRUPTED = (TERMINATED, 128 + signal.SIGINT)
"""Exit codes of a run that was interrupted; the same command resumes it."""

Start = Callable[[list[str], Any, Mapping[str, str]], int]
"""Starts words with an open log and an environment, waits, and returns the exit code.

It returns TERMINATED if this process was told to end and ended the started one, whatever that one's code (torchrun's
is 1).
"""


@dataclass(frozen=True)
class Job:
    """One command of a sweep; the stage is `all` for a run, and `baseline` or `learn` for what several runs share."""

    run: RunSpec
    stage: Stage = "all"

    @property
    def label(self) -> str:
        """The name of the job in messages."""
        return self.run.label(self.stage)

    @property
    def file_name(self) -> str:
        """The name of its log and its note, without ending."""
        return self.run.file_name(self.stage)

    def command(self, options: Sequence[str]) -> list[str]:
        """Return the words of its `reloss run` command, with options such as `--runs` and its value."""
        return self.run.command(self.stage, options)


def read_note(job: Job, workspace: Workspace) -> dict[str, Any]:
    """Return the note on a job, empty if there is none: state, reason, code, log, and the scheduler's job id.

    A damaged note has the state `damaged`, and the reason.
    """
    try:
        return read_object(workspace.sweep_note(job.file_name), {"state": str})
    except RelossError as error:
        return {"state": Status.DAMAGED, "reason": str(error)}


def write_note(job: Job, workspace: Workspace, state: Status, /, **facts: Any) -> None:
    """Write the note on a job."""
    write_json(workspace.sweep_note(job.file_name), {"state": state, **facts})


def remove_note(job: Job, workspace: Workspace) -> None:
    """Remove the note on a job, if there is one."""
    workspace.sweep_note(job.file_name).unlink(missing_ok=True)


def log_of(job: Job, workspace: Workspace, node: int = 0) -> Path:
    """Return the log of a job; on several nodes, each has its own."""
    return workspace.sweep_log(job.file_name, node)


def failure_reason(log: Path, code: int) -> str:
    """Return why a command that wrote `log` ended with `code`.

    That is the signal that killed it (or the first of torchrun's processes), else the last line that `reloss` printed
    about it, else the last line of the log.
    """
    text = log.read_text(encoding="utf-8", errors="replace")
    killed = re.search(r"failed \(exitcode: (-\d+)\)", text)  # torchrun reports the code of a process, and ends with 1
    number = -code if code < 0 else -int(killed[1]) if killed else 0
    if number:
        return f"killed by signal {number}" + (" (out of memory?)" if number == signal.SIGKILL else "")
    lines = [line for line in text.splitlines() if line.strip()]
    messages = [line.removeprefix("reloss: ") for line in lines if line.startswith("reloss: ")]
    return (messages or lines or ["it printed nothing"])[-1]


def run_job(
    job: Job,
    options: Sequence[str],
    workspace: Workspace,
    environment: Mapping[str, str],
    start: Start,
    launcher: Sequence[str] = (),
    node: int = 0,
) -> int:
    """Run a job's command to its end, update its note, and return the exit code.

    Args:
        job: the job.
        options: options that every command of the sweep gets.
        workspace: where records, logs and notes lie.
        environment: environment of the process.
        start: starts the process and waits for it.
        launcher: words between `python` and `-m reloss.cli`, such as torchrun's.
        node: number of this node, if a run has several; all of them run the command, and the first writes the note.
    """
    log = log_of(job, workspace, node)
    log.parent.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, *launcher, "-m", "reloss.cli", *job.command(options)[1:]]
    with log.open("w") as output:
        code = start(words, output, environment)
    if node == 0:
        _update_note(job, workspace, code, log)
    return code


def _update_note(job: Job, workspace: Workspace, code: int, log: Path) -> None:
    if code == 0 and job.stage == "learn":
        write_note(job, workspace, Status.FINISHED)
    elif code == 0 or code in INTERRUPTED:
        remove_note(job, workspace)
    else:
        write_note(job, workspace, Status.FAILED, code=code, reason=failure_reason(log, code), log=str(log))
