"""How long a sweep will take, from the runs that are finished and from what the ablation states."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence

from reloss.experiment.record import read_summary
from reloss.experiment.run_spec import RunSpec
from reloss.experiment.task import ablations
from reloss.experiment.workspace import Workspace
from reloss.sweep.plan import Plan, is_finished

START_SECONDS = 6.0
"""Seconds that a process takes before the run's own clock starts."""


def estimate(plan: Plan, workspace: Workspace, slots: int) -> str:
    """Return one line: the number of runs, how many are finished, and the time that the rest takes if it is known.

    The time of a run is the median of the finished records of its experiment in the plan, else the time that the
    ablation states for a run with the same settings.
    """
    runs = [job.run for job in plan if job.stage == "all"]
    pending = [job.run for job in plan if job.stage == "all" and not is_finished(job, workspace)]
    line = f"{len(runs)} runs, {len(runs) - len(pending)} finished"
    measured = _measured([run for run in runs if run not in pending], workspace)
    stated = _stated()
    times = [measured.get(run.experiment) or stated.get((run.experiment, run.loss, run.settings)) for run in pending]
    if not pending or not all(times):
        return line
    minutes = sum(filter(None, times)) / slots / 60
    duration = f"about {minutes:.0f} minutes" if minutes >= 1.5 else "a minute or less"
    return f"{line}; the rest takes {duration} in {slots} processes"


def _measured(finished: Sequence[RunSpec], workspace: Workspace) -> dict[str, float]:
    """Return the median seconds of finished runs, by experiment."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for run in finished:
        wall_seconds = read_summary(workspace.record(run)).get("wall_seconds", 0.0)
        seconds[run.experiment].append(wall_seconds + START_SECONDS)
    return {experiment: statistics.median(values) for experiment, values in seconds.items()}


def _stated() -> dict[tuple[str, str, tuple[str, ...]], float]:
    """Return the seconds that the ablations state for a run, by experiment, loss and settings."""
    stated = {}
    for ablation in ablations():
        for experiment, minutes in ablation.experiments.items():
            for variant in ablation.variants:
                run = RunSpec.resolve(experiment, variant.loss, 0, variant.settings)
                stated[experiment, run.loss, run.settings] = 60 * minutes
    return stated
