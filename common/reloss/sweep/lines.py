"""The launcher `print`: the commands of a sweep as lines of text, to be run elsewhere."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from reloss.experiment.workspace import Workspace
from reloss.sweep.plan import Plan


def plain_lines(plan: Plan, options: Sequence[str], workspace: Workspace) -> list[str]:
    """Return the commands of the unfinished jobs of a plan; a comment before each phase."""
    pending = [[job for job in phase if not plan.is_done(job, workspace)] for phase in plan.phases]
    return _with_comments([[shlex.join(job.command(options)) for job in phase] for phase in pending])


def docker_lines(plan: Plan, image: str, workspace: Workspace, options: Sequence[str]) -> list[str]:
    """Return a plan as `docker run` lines; in the image, the data lie in /data and the records in /runs.

    All jobs are listed, since the records in a volume are not visible here; the commands skip what is finished. To
    docker, a plain name such as `runs` is a volume, and any other path is a folder of this machine.
    """
    folders = [path if len(path.parts) == 1 else path.absolute() for path in (workspace.data, workspace.runs)]
    volumes = ["-v", f"{folders[0]}:/data", "-v", f"{folders[1]}:/runs"]
    start = ["docker", "run", "--rm", "--gpus", "all", "--ipc", "host", *volumes, image]
    return _with_comments([[shlex.join([*start, *job.command(options)[1:]]) for job in phase] for phase in plan.phases])


def _with_comments(phases: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of all phases, with a comment before each phase that has some."""
    lines: list[str] = []
    for phase in filter(None, phases):
        order = "after those before have ended" if lines else "at any time"
        lines += [f"# {order}, in any order or in parallel:", *phase]
    return lines
