"""`reloss sync`: upload the W&B runs that were recorded offline, each once and under its own id.

W&B's own command does the upload. If part of an upload fails, that command still exits with 0, marks the run as
uploaded and removes the copies of artifacts that it should upload (observed with version 0.26.1). So we read its log,
keep the copies until the whole upload succeeds, and set the mark ourselves. A second call then uploads nothing, and an
incomplete upload can be repeated.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from reloss.experiment.record import read_summary, skipping_damage
from reloss.runtime.errors import RelossError, UsageError
from reloss.runtime.extras import install_command
from reloss.runtime.progress import say
from reloss.tracking.client import kill_tree
from reloss.tracking.worker import obstacle, read_run, run_folders

SERIOUS = ("sender:", "file transfer:", "filestream:")
"""Beginnings of the errors in W&B's log that mean lost data."""

CUT_OFF = "transactionlog:"
"""Part of the error for a run whose process was killed. Its rows up to then are uploaded, so it is no failure."""


def sync(runs: Path, deadline: float) -> None:
    """Upload the runs below `runs` that have ended and are not uploaded yet, oldest first, and report each.

    Args:
        runs: folder of the records.
        deadline: seconds that one upload may take.

    Raises:
        UsageError: there is no such folder, or no key.
        RelossError: W&B does not answer, or some uploads failed; the same command tries them again.
    """
    if not runs.is_dir():
        raise UsageError(f"no folder of records at {runs}; name it with --runs")
    files = list(wandb_files(runs))
    pending = [path for path in files if not _mark(path).exists()]
    ended = sorted(filter(_has_ended, pending), key=lambda path: path.parent.name.partition("run-")[2])
    if ended and not has_key():
        raise UsageError(
            f"{len(ended)} runs wait for upload, but there is no W&B key: set WANDB_API_KEY, or call `wandb login`"
        )
    if ended and (problem := obstacle(address := _server())):
        raise RelossError(
            f"W&B does not answer at {address} ({problem}); {len(ended)} runs wait for upload: run the same command "
            "again when it answers"
        )
    failed = 0
    for path in ended:
        problem = _upload(path, deadline)
        say(f"FAILED    {path.parent} ({problem})" if problem else f"uploaded  {path.parent}")
        failed += bool(problem)
    say(
        f"{len(ended) - failed} uploaded, {failed} failed, {len(pending) - len(ended)} not ended yet, "
        f"{len(files) - len(pending)} uploaded before"
    )
    if failed:
        raise RelossError(f"{failed} of {len(ended)} uploads failed; the same command tries them again")


def wandb_files(runs: Path) -> Iterator[Path]:
    """Yield the files of all W&B runs below `runs`."""
    for folder in runs.glob("**/wandb"):
        for run in run_folders(folder.parent):
            yield from run.glob("run-*.wandb")


def _mark(path: Path) -> Path:
    """Return the file whose presence marks a run as uploaded; W&B's commands use the same one."""
    return path.with_name(path.name + ".synced")


def _has_ended(path: Path) -> bool:
    """Return whether a W&B run is complete: it has an exit code, a later run resumed it, or its record has ended.

    A damaged record is reported, and its run counts as not ended.
    """
    record = path.parents[2]
    if run_folders(record)[-1] != path.parent or read_run(path)["exit_code"] is not None:
        return True
    with skipping_damage():
        return (record / "surrogate.json").exists() or read_summary(record).get("status", "running") != "running"
    return False


def has_key() -> bool:
    """Return whether there is a W&B key, in the environment or from `wandb login`; never prompts for one."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        from wandb.apis import InternalApi
    except ImportError:
        raise RelossError(f"W&B is not installed: `{install_command('tracking')}`") from None
    return bool(InternalApi().api_key)


def _server() -> str:
    """Return the address of W&B's server, from the environment or from W&B's own settings."""
    from wandb.apis import InternalApi

    return str(InternalApi().settings("base_url"))


def _upload(path: Path, deadline: float) -> str:
    """Upload a run and mark it; return the problem, or the empty string if there is none."""
    staged = path.parents[1] / "data" / "artifacts" / "staging"
    backup = staged.with_name("kept")
    _copy_missing(backup, staged)  # from an upload that was interrupted
    _copy_missing(staged, backup)
    problem = _run_wandb(path, deadline)
    if problem:
        _mark(path).unlink(missing_ok=True)
        _copy_missing(backup, staged)
    else:
        _mark(path).touch()
        for copy in backup.glob("*"):
            if not (staged / copy.name).exists():  # it is uploaded
                copy.unlink()
    return problem


def _copy_missing(source: Path, target: Path) -> None:
    """Copy the files of `source` that `target` lacks, as hard links where the file system supports them."""
    for path in source.glob("*"):
        copy = target / path.name
        if not copy.exists():
            target.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, copy)
            except OSError:
                shutil.copy2(path, copy)


def _run_wandb(path: Path, deadline: float) -> str:
    """Run W&B's upload of one run; return the problem, or the empty string if there is none."""
    with TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", "wandb", "beta", "sync", str(path.resolve())],
            env={**os.environ, "WANDB_DIR": folder, "WANDB_CACHE_DIR": folder, "WANDB_SILENT": "false"},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            output, _ = process.communicate(timeout=deadline)
        except subprocess.TimeoutExpired:
            return f"no end within {deadline:g} seconds"
        finally:
            kill_tree(process)
        errors = [*_printed_errors(output), *_logged_errors(Path(folder))]
    if not errors and process.returncode != 0:
        errors = output.strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
    return errors[0] if errors else ""


def _printed_errors(output: str) -> list[str]:
    """Return the errors that W&B's command printed."""
    lines = [line for line in output.splitlines() if "wandb: ERROR" in line and CUT_OFF not in line]
    return [line.partition("ERROR")[2].strip() for line in lines]


def _logged_errors(folder: Path) -> list[str]:
    """Return the errors in the logs of W&B's command that mean lost data."""
    logs = (log.read_text(encoding="utf-8") for log in folder.glob("**/debug-sync*.log"))
    entries = (json.loads(line) for text in logs for line in text.splitlines())
    return [entry["msg"] for entry in entries if entry["level"] == "ERROR" and entry["msg"].startswith(SERIOUS)]
