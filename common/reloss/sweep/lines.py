"""The launcher `print`: the commands of a sweep as lines of text, to be run elsewhere."""

from __future__ import annotations

import csv
import io
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from reloss.experiment.workspace import Workspace
from reloss.sweep.job import Job
from reloss.sweep.plan import Plan

ENVIRONMENT = (
    *("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_ENTITY", "WANDB_MODE", "WANDB_PROJECT", "HF_TOKEN"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
)
"""Variables of the environment that a container needs; docker/compose.yaml passes them on too."""


def plain_lines(plan: Plan, options: Sequence[str], workspace: Workspace) -> list[str]:
    """Return the commands of the unfinished jobs of a plan; a comment before each phase."""
    pending = [[job for job in phase if not plan.is_done(job, workspace)] for phase in plan.phases]
    return _with_comments([[shlex.join(job.command(options)) for job in phase] for phase in pending])


def docker_lines(plan: Plan, image: str, workspace: Workspace, options: Sequence[str]) -> list[str]:
    """Return a plan as `docker run` lines; in the image, the data lie in /data and the records in /runs.

    All jobs are listed, since the records in a volume are not visible here; the commands skip what is finished. To
    docker, a plain name such as `runs` is a volume, and any other path is a folder of this machine. A folder must
    exist before docker can mount it, and its files belong to the user who runs the line. The variables of ENVIRONMENT
    that are set here are passed on by name, without their values.
    """
    mounts = {"/data": workspace.data, "/runs": workspace.runs}
    folders = [path.absolute() for path in mounts.values() if not _is_volume(path)]
    words = [word for inside, path in mounts.items() for word in _mount(path, inside)]
    words += [word for name in ENVIRONMENT if name in os.environ for word in ("-e", name)]
    start = shlex.join(["docker", "run", "--rm", "--gpus", "all", "--ipc", "host", *words])
    user = ' --user "$(id -u):$(id -g)"' if folders else ""

    def line(job: Job) -> str:
        return f"{start}{user} {shlex.join([image, *job.command(options)[1:]])}"

    create = [f"mkdir -p {shlex.join(map(str, folders))}"] if folders else []
    return [*create, *_with_comments([[line(job) for job in phase] for phase in plan.phases])]


def _is_volume(path: Path) -> bool:
    """Return whether docker takes the path for the name of a volume."""
    return re.fullmatch(r"[a-zA-Z0-9][\w.-]+", str(path), re.ASCII) is not None


def _mount(path: Path, inside: str) -> list[str]:
    """Return the words that mount a volume or a folder; the short form `-v` cannot name a folder with a colon."""
    source = str(path if _is_volume(path) else path.absolute())
    if ":" not in source:
        return ["-v", f"{source}:{inside}"]
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(["type=bind", f"source={source}", f"target={inside}"])
    return ["--mount", text.getvalue()]


def _with_comments(phases: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of all phases, with a comment before each phase that has some."""
    lines: list[str] = []
    for phase in filter(None, phases):
        order = "after those before have ended" if lines else "at any time"
        lines += [f"# {order}, in any order or in parallel:", *phase]
    return lines
