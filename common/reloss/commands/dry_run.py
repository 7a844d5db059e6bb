"""`reloss run --dry-run`: print what the command would do and what it lacks."""

from __future__ import annotations

from contextlib import suppress

from reloss.experiment.run_spec import RunSpec, Stage
from reloss.experiment.workspace import Workspace
from reloss.pipeline.context import Context, Resume
from reloss.pipeline.dry_run import obstacles, steps
from reloss.report.table import Table
from reloss.runtime.errors import RelossError
from reloss.runtime.progress import say
from reloss.tracking.trackers import check_track

HEADERS = ("step", "state", "folder")


def dry_run(spec: RunSpec, workspace: Workspace, stage: Stage, track: str, resume: Resume) -> None:
    """Print the steps of a run; nothing is written.

    Raises:
        UsageError: an unknown experiment, setting or tracker.
        RelossError: the run cannot start; the message holds every reason.
    """
    check_track(track)
    context = Context(spec, *spec.load(), workspace, stage, track, resume)
    missing = obstacles(context)
    with suppress(RelossError):  # reported in `missing`
        cells = [(step.name, step.state, str(step.folder)) for step in steps(context)]
        print(Table(HEADERS, cells).plain(), flush=True)
    if missing:
        raise RelossError("the run cannot start:\n" + "\n".join(f"- {reason}" for reason in missing))
    say("nothing is missing, and nothing was written; the command without --dry-run does this")
