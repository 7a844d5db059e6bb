"""`reloss sweep`: start the jobs of a plan with a launcher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from reloss.experiment.workspace import Workspace
from reloss.runtime.errors import UsageError
from reloss.runtime.progress import say
from reloss.runtime.signals import terminable
from reloss.sweep.estimate import estimate
from reloss.sweep.lines import docker_lines, plain_lines
from reloss.sweep.local import check, run_local, visible_gpus
from reloss.sweep.plan import Plan

Launcher = Literal["local", "slurm", "print"]


def launch(
    plan: Plan,
    workspace: Workspace,
    launcher: Launcher,
    options: Sequence[str],
    *,
    slots: int = 1,
    slurm: Sequence[str] = (),
    image: str = "reloss",
) -> None:
    """Start the jobs of a plan.

    Args:
        plan: the jobs.
        workspace: the folders of records and data.
        launcher: local: processes on this machine; slurm: one job per run; print: only print the commands.
        options: further words of every `reloss run` command.
        slots: number of local processes at a time.
        slurm: resources of each Slurm job, as `key=value`.
        image: image of the printed `docker run` lines; `none` prints plain commands.

    Raises:
        UsageError: an option does not fit the launcher.
        RelossError: runs failed, or Slurm refused a job.
    """
    if slots < 1:
        raise UsageError("--slots must be at least 1")
    if slurm and launcher != "slurm":
        raise UsageError("--slurm needs --launcher slurm")
    words = ["--data", str(workspace.data), "--runs", str(workspace.runs), *options]
    if launcher == "print":
        plain = image == "none"
        lines = plain_lines(plan, words, workspace) if plain else docker_lines(plan, image, workspace, options)
        print("\n".join(lines))
    elif launcher == "slurm":
        from reloss.sweep.resources import Resources
        from reloss.sweep.slurm import submit

        submit(plan, words, workspace, Resources.parse(slurm))
    else:
        say(estimate(plan, workspace, slots))
        with terminable():
            failed = run_local(plan, words, workspace, slots, visible_gpus())
        check(failed, plan, workspace)
