"""The states of the runs of a sweep, read from their records, locks and notes. Changes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from reloss.experiment.record_parts import LiveFolder, PackedLine, damage, name_order, packed_runs
from reloss.experiment.records import RunRecord, experiment_of, read_run
from reloss.experiment.run_spec import Stage
from reloss.experiment.status import Status
from reloss.experiment.workspace import Workspace
from reloss.runtime.errors import RelossError
from reloss.runtime.lock import is_locked
from reloss.runtime.progress import say
from reloss.sweep.job import Job, read_note
from reloss.sweep.local import is_running
from reloss.sweep.plan import Plan, is_bank_complete
from reloss.sweep.slurm import queued_jobs

BROKEN = (Status.FAILED, Status.DAMAGED)


@dataclass(frozen=True)
class Row:
    """The state of one run, or of a bank (stage baseline) or surrogate (stage learn) that several runs share.

    Attributes:
        experiment: name of the experiment.
        loss: name of the loss, with its variant.
        seed: seed of the run.
        stage: all for a run.
        state: the state.
        progress: the last epoch or update recorded, and the total.
        updated: when that was recorded, in local time.
        reason: why the run failed, is queued or was not run.
        record: folder of the record, relative to RUNS.
    """

    experiment: str
    loss: str
    seed: int
    stage: Stage = "all"
    state: Status = Status.NOT_RUN
    progress: str = ""
    updated: str = ""
    reason: str = ""
    record: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the row as plain values."""
        return asdict(self)

    @property
    def label(self) -> str:
        """The row's name in the reason of another row."""
        return f"{self.loss} " + (f"seed {self.seed}" if self.stage == "all" else f"--stage {self.stage}")


def of_plan(plan: Plan, workspace: Workspace) -> list[Row]:
    """Return the states of all jobs of a plan, in its order."""
    queued, packed = _queued(plan, workspace), _packed(workspace)
    rows: dict[Job, Row] = {}
    for job in plan:
        rows[job] = _row(job, plan, [rows[need] for need in plan.needs[job]], workspace, queued, packed)
    return list(rows.values())


def of_records(plan: Plan, losses: Sequence[str], workspace: Workspace) -> list[Row]:
    """Return the states of all records of a plan's experiments, and one `not run` row for each loss without any.

    Args:
        plan: a plan with the experiments and losses.
        losses: only records of these losses, if any are named.
        workspace: where the records lie.
    """
    rows: list[Row] = []
    runs = [job.run for job in plan if job.stage == "all"]
    packed = _packed(workspace)
    for experiment in dict.fromkeys(run.experiment for run in runs):
        recorded = []
        names = {workspace.name(folder) for folder in workspace.records(experiment)}
        names |= {name for name in packed if experiment_of(name) == experiment}
        for name in sorted(names, key=name_order):
            *_, loss, folder = name.split("/")
            number = folder.removeprefix("seed")
            if number.isdecimal() and (not losses or loss.partition("@")[0] in losses):
                recorded.append(_with_record(Row(experiment, loss, int(number)), name, workspace, packed))
        recorded_losses = {row.loss.partition("@")[0] for row in recorded}
        missing = [run.loss for run in runs if run.experiment == experiment and run.loss not in recorded_losses]
        rows += recorded + [Row(experiment, loss, 0) for loss in dict.fromkeys(missing)]
    return rows


def _queued(plan: Plan, workspace: Workspace) -> set[str]:
    """Return the ids of the Slurm jobs that wait or run, if any were submitted."""
    if not any("job" in read_note(job, workspace) for job in plan):
        return set()
    try:
        return queued_jobs()
    except RelossError as error:
        say(f"{error}; queued runs are shown as not run")
        return set()


def _packed(workspace: Workspace) -> dict[str, PackedLine]:
    """Return the packed records of the workspace by name; damaged ones are reported and skipped."""
    damaged: list[str] = []
    packed = {line.name: line for line in packed_runs(workspace.runs, damaged)}
    for message in damaged:
        say(f"skipped: {message}")
    return packed


def _row(
    job: Job,
    plan: Plan,
    needed: Sequence[Row],
    workspace: Workspace,
    queued: set[str],
    packed: Mapping[str, PackedLine],
) -> Row:
    """Return the state of one job, given the rows of the jobs that it needs."""
    row = Row(job.run.experiment, job.run.loss_with_variant, job.run.seed, job.stage)
    note = read_note(job, workspace)
    if job.stage == "all":
        row = _with_record(row, workspace.name(workspace.record(job.run)), workspace, packed)
    elif plan.is_done(job, workspace) or note.get("state") == Status.FINISHED:
        row = replace(row, state=Status.FINISHED)
    elif is_running(job, workspace):
        row = replace(row, state=Status.RUNNING)
    elif job.stage == "baseline":
        row = _with_bank(row, job, workspace)
    if row.state in (Status.FINISHED, Status.RUNNING, Status.DAMAGED):
        return row
    if note.get("job") in queued:
        return replace(row, state=Status.QUEUED, reason=f"job {note['job']}")
    if note.get("state") in BROKEN:
        return replace(row, state=Status(note["state"]), reason=note.get("reason", ""))
    if row.state == Status.NOT_RUN:
        return replace(row, reason=_obstacle(needed))
    return row


def _obstacle(needed: Sequence[Row]) -> str:
    """Return why a job cannot run, given the rows of the jobs that it needs; the empty string if it can."""
    for row in needed:
        if row.state in BROKEN:
            return f"needs {row.label}, which {'failed' if row.state == Status.FAILED else 'is damaged'}"
        if row.reason.startswith("needs "):
            return row.reason
    return ""


def _with_bank(row: Row, job: Job, workspace: Workspace) -> Row:
    """Return the row of a bank that is not complete."""
    try:
        is_bank_complete(job, workspace)
    except RelossError as error:
        return replace(row, state=Status.DAMAGED, reason=str(error))
    return row


def _with_record(row: Row, name: str, workspace: Workspace, packed: Mapping[str, PackedLine]) -> Row:
    """Return the row with the state in the record called `name`, live or packed."""
    try:
        record = read_run(packed.get(name) or LiveFolder(name, workspace.runs / name))
        if record is None:
            return row
        progress, updated = _progress(record)
    except RelossError as error:
        return replace(row, state=Status.DAMAGED, reason=str(error), record=name)
    state = Status(record.status)
    if state == Status.RUNNING and not (record.folder and is_locked(record.folder)):
        state = Status.KILLED
    return replace(row, state=state, progress=progress, updated=updated, reason=record.cause, record=name)


def _progress(record: RunRecord) -> tuple[str, str]:
    """Return the last epoch or update with the total, and when it was recorded; an empty string if unknown."""
    entries = record.metrics()
    if not entries:
        return "", ""
    recipe = record.config().get("train", {})
    if not isinstance(recipe, dict):
        raise damage(record.source.where("config"), "wrong: train")
    updated = ""
    if record.folder is not None:  # a packed record has no time
        seconds = (record.folder / "metrics.jsonl").stat().st_mtime
        updated = datetime.fromtimestamp(seconds).isoformat(" ", "seconds")
    if "updates" in recipe:
        return f"update {entries[-1].get('step', 0)}/{recipe['updates']}", updated
    return f"epoch {entries[-1].get('epoch', 0):g}/{recipe.get('epochs', '?')}", updated
