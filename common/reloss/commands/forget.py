"""`reloss forget`: remove the records of runs, such as failed ones, so that no table counts them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reloss.commands.status import read_status
from reloss.experiment.run_spec import file_name
from reloss.experiment.status import Status
from reloss.experiment.workspace import Workspace
from reloss.runtime.errors import RelossError, UsageError, unknown
from reloss.runtime.files import remove_folder
from reloss.runtime.lock import locked
from reloss.sweep.status import Row

REMOVABLE = (Status.FAILED, Status.DAMAGED, Status.INTERRUPTED, Status.KILLED, Status.FINISHED)


def find_records(
    name: str, losses: str, seeds: str, settings: Sequence[str], states: str, workspace: Workspace
) -> list[Row]:
    """Return the runs in the given states that have a folder or a sweep's note, as `reloss status` describes them.

    Args:
        name: a task, an experiment, or `ablation`.
        losses: comma-separated losses; all if empty.
        seeds: seeds of a sweep; every record that exists if empty.
        settings: settings of the sweep.
        states: comma-separated states, of REMOVABLE.
        workspace: where the records lie.

    Raises:
        UsageError: an unknown name, loss, setting or state, or there is no folder of records.
    """
    known = {str(state): state for state in REMOVABLE}
    words = [word.strip() for word in states.split(",") if word.strip()]
    for word in words:
        if word not in known:
            raise unknown("state", word, known)
    if not words:
        raise UsageError(f"--states takes a list such as failed,damaged, not '{states}'")
    rows = read_status(name, losses, seeds, settings, workspace)
    return [row for row in rows if row.state in words and (_folder(row, workspace) or _note(row, workspace).exists())]


def forget(rows: Sequence[Row], workspace: Workspace) -> None:
    """Remove the folders and the notes of runs. Banks and surrogates stay.

    Raises:
        UsageError: another process writes one of the records; those before it are removed.
        RelossError: a folder cannot be removed.
    """
    for row in rows:
        try:
            if folder := _folder(row, workspace):
                with locked(folder):
                    remove_folder(folder)
            _note(row, workspace).unlink(missing_ok=True)
        except OSError as error:
            raise RelossError(
                f"cannot remove {error.filename}: {error.strerror or error}; make its folder writable, then run the "
                "same command again"
            ) from error


def _folder(row: Row, workspace: Workspace) -> Path | None:
    """Return the folder of a run's record, or None if there is none; packed records have none."""
    folder = workspace.runs / row.record
    return folder if row.record and folder.is_dir() else None


def _note(row: Row, workspace: Workspace) -> Path:
    return workspace.sweep_note(file_name(row.experiment, row.loss, row.seed, row.stage))
