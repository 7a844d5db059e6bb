"""Where the runs of a sweep are, read from their records, locks and notes. Changes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from reloss.experiment.record_parts import LiveFolder, PackedLine, damage, name_order, packed_runs
from reloss.experiment.records import RunRecord, experiment_of, read_run
from reloss.runtime.errors import RelossError
from reloss.runtime.lock import is_locked
from reloss.runtime.progress import say
from reloss.sweep.local import is_running, note_of
from reloss.sweep.plan import Cell, Plan, has_bank, is_done, needs
from reloss.sweep.slurm import queued_jobs

NO_PROGRESS = ("", "")


@dataclass(frozen=True)
class Row:
    """One run, or what several share: its bank (stage baseline) or its surrogate (stage learn).

    Attributes:
        experiment: its name.
        loss: with what the settings changed.
        seed: of the run.
        stage: all for a run.
        state: finished, running, queued, interrupted, killed, failed, damaged or not run.
        progress: the last epoch or update recorded, and of how many.
        updated: when that was, in local time.
        reason: why it failed or was not run.
        record: its folder below RUNS.
    """

    experiment: str
    loss: str
    seed: int
    stage: str = "all"
    state: str = "not run"
    progress: str = ""
    updated: str = ""
    reason: str = ""
    record: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


def of_plan(plan: Plan, runs: Path) -> list[Row]:
    """Return the states of all cells of a plan, in its order."""
    queued, packed = _queued(plan, runs), _packed(runs)
    rows: dict[Cell, Row] = {}
    for phase in plan:
        for cell in phase:
            rows[cell] = _row(cell, plan, [rows[need] for need in needs(cell, plan)], runs, queued, packed)
    return list(rows.values())


def of_records(plan: Plan, losses: Sequence[str], runs: Path) -> list[Row]:
    """Return the states of all records of a plan's experiments, and one `not run` for each loss without any.

    Args:
        plan: says which experiments and losses.
        losses: if any were chosen, only their records.
        runs: folder of the records.
    """
    rows = []
    wanted = [cell for phase in plan for cell in phase if cell.stage == "all"]
    packed = _packed(runs)
    for experiment in dict.fromkeys(cell.experiment for cell in wanted):
        found = []
        names = {folder.relative_to(runs).as_posix() for folder in (runs / experiment).glob("*/seed*")}
        names |= {name for name in packed if experiment_of(name) == experiment}
        for name in sorted(names, key=name_order):
            *_, loss, number = name.split("/")
            number = number.removeprefix("seed")
            if number.isdigit() and (not losses or loss.partition("@")[0] in losses):
                found.append(_recorded(Row(experiment, loss, int(number)), name, runs, packed))
        seen = {row.loss.partition("@")[0] for row in found}
        missing = [cell.loss for cell in wanted if cell.experiment == experiment and cell.loss not in seen]
        rows += found + [Row(experiment, loss, 0) for loss in dict.fromkeys(missing)]
    return rows


def _queued(plan: Plan, runs: Path) -> set[str]:
    """Return the jobs that wait or run, if any were submitted."""
    if not any("job" in note_of(cell, runs) for phase in plan for cell in phase):
        return set()
    try:
        return queued_jobs()
    except RelossError as error:
        say(f"{error}; what is queued is shown as not run")
        return set()


def _packed(runs: Path) -> dict[str, PackedLine]:
    """Return the packed records below `runs` by name; damaged ones are named."""
    damaged: list[str] = []
    packed = {line.name: line for line in packed_runs(runs, damaged)}
    for message in damaged:
        say(f"skipped: {message}")
    return packed


def _row(
    cell: Cell, plan: Plan, needed: Sequence[Row], runs: Path, queued: set[str], packed: Mapping[str, PackedLine]
) -> Row:
    row = Row(cell.experiment, cell.changed_loss, cell.seed, cell.stage)
    note = note_of(cell, runs)
    if cell.stage == "all":
        row = _recorded(row, cell.record(runs).relative_to(runs).as_posix(), runs, packed)
    elif is_done(cell, plan, runs) or note.get("state") == "finished":
        row = _with(row, state="finished")
    elif is_running(cell, runs):
        row = _with(row, state="running")
    elif cell.stage == "baseline":
        row = _bank(row, cell, runs)
    if row.state in ("finished", "running", "damaged"):
        return row
    if note.get("job") in queued:
        return _with(row, state="queued", reason=f"job {note['job']}")
    if note.get("state") in ("failed", "damaged"):
        return _with(row, state=note["state"], reason=note.get("reason", ""))
    broken = [need for need in needed if need.state in ("failed", "damaged") or need.reason.startswith("needs ")]
    if row.state == "not run" and broken:
        first = broken[0]
        how = "which failed" if first.state == "failed" else "which is damaged"
        why = first.reason if first.reason.startswith("needs ") else f"needs {_name(first)}, {how}"
        return _with(row, reason=why)
    return row


def _bank(row: Row, cell: Cell, runs: Path) -> Row:
    """Return the row of a bank that is not complete."""
    try:
        has_bank(cell, runs)
    except RelossError as error:
        return _with(row, state="damaged", reason=str(error))
    return row


def _recorded(row: Row, name: str, runs: Path, packed: Mapping[str, PackedLine]) -> Row:
    """Return the row with what the record called `name` holds, be it live or packed."""
    try:
        record = read_run(packed.get(name) or LiveFolder(name, runs / name))
        if record is None:
            return row
        progress, updated = _progress(record)
    except RelossError as error:
        return _with(row, state="damaged", reason=str(error), record=name)
    state: str = record.status
    if state == "running" and not (record.folder and is_locked(record.folder)):
        state = "killed"
    return _with(row, state=state, progress=progress, updated=updated, reason=record.cause, record=name)


def _progress(record: RunRecord) -> tuple[str, str]:
    """Return the last epoch or update and of how many, and when it was recorded; a packed record has no time."""
    lines = record.metrics()
    if not lines:
        return NO_PROGRESS
    recipe = record.config().get("train", {})
    if not isinstance(recipe, dict):
        raise damage(record.source.where("config"), "wrong: train")
    updated = ""
    if record.folder is not None:
        seconds = (record.folder / "metrics.jsonl").stat().st_mtime
        updated = datetime.fromtimestamp(seconds).isoformat(" ", "seconds")
    if "updates" in recipe:
        return f"update {lines[-1].get('step', 0)}/{recipe['updates']}", updated
    return f"epoch {lines[-1].get('epoch', 0):g}/{recipe.get('epochs', '?')}", updated


def _with(row: Row, **changes: str) -> Row:
    return Row(**{**asdict(row), **changes})


def _name(row: Row) -> str:
    return f"{row.loss} " + (f"seed {row.seed}" if row.stage == "all" else f"--stage {row.stage}")


def render(rows: Sequence[Row]) -> str:
    """Return the rows as a table in plain text, and a line that counts the states."""
    header = ("experiment", "loss", "seed", "state", "progress", "updated", "why")
    lines = [header]
    for row in rows:
        seed = str(row.seed) if row.stage == "all" else row.stage
        lines.append((row.experiment, row.loss, seed, row.state, row.progress, row.updated, row.reason))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    counts = Counter(row.state for row in rows if row.stage == "all")
    total = ", ".join(f"{number} {state}" for state, number in counts.items())
    return "\n".join([*text, "", f"{counts.total()} runs: {total}"])
