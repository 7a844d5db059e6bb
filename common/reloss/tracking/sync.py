"""`reloss sync`: upload the W&B runs that were recorded offline, each once, under the ids that they have.

W&B's own command does the upload. Where it fails in part it still ends well, marks the run as uploaded and removes the
copies of artifacts that are to be uploaded (seen with 0.26.1). So its log is read, the copies are kept until all is
well, and the mark is ours: a second call uploads nothing, and an upload that broke off can be repeated.
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

from reloss.experiment.record import leaving_out, read_summary
from reloss.runtime.errors import RelossError, UsageError
from reloss.runtime.progress import say
from reloss.tracking.client import kill_tree
from reloss.tracking.worker import read_run, run_folders

SERIOUS = ("sender:", "file transfer:", "filestream:")  # beginnings of errors in W&B's log that lose something

CUT_OFF = "transactionlog:"  # said of a run whose process was killed: what it wrote before is uploaded


def sync(runs: Path, deadline: float) -> None:
    """Upload what has ended below `runs` and was not uploaded, the oldest first; says what became of each.

    Args:
        runs: folder of the records.
        deadline: seconds that one upload may take.

    Raises:
        UsageError: no such folder, or no key.
        RelossError: some uploads failed; to be repeated.
    """
    if not runs.is_dir():
        raise UsageError(f"no folder of records at {runs}; name it with --runs")
    everything = list(_wandb_files(runs))
    left = [path for path in everything if not _mark(path).exists()]
    waiting = sorted((path for path in left if _ended(path)), key=lambda path: path.parent.name.partition("run-")[2])
    if waiting and not has_key():
        raise UsageError(
            f"{len(waiting)} runs wait for upload, but there is no key of W&B: set WANDB_API_KEY, or call `wandb login`"
        )
    failed = 0
    for path in waiting:
        problem = _upload(path, deadline)
        say(f"FAILED    {path.parent} ({problem})" if problem else f"uploaded  {path.parent}")
        failed += bool(problem)
    say(
        f"{len(waiting) - failed} uploaded, {failed} failed, {len(left) - len(waiting)} not ended yet, "
        f"{len(everything) - len(left)} uploaded before"
    )
    if failed:
        raise RelossError(f"{failed} of {len(waiting)} uploads failed; the same command tries them again")


def _wandb_files(runs: Path) -> Iterator[Path]:
    """Yield the files of all W&B runs below `runs`."""
    for folder in runs.glob("**/wandb"):
        for run in run_folders(folder.parent):
            yield from run.glob("run-*.wandb")


def _mark(path: Path) -> Path:
    """Return the file that says that a run is uploaded; W&B's commands know it too."""
    return path.with_name(path.name + ".synced")


def _ended(path: Path) -> bool:
    """Return whether nothing will be added to a run: it says so, it was gone on with, or its record has ended.

    Of a record that is damaged, which is said, not.
    """
    record = path.parents[2]
    if run_folders(record)[-1] != path.parent or read_run(path)["exit_code"] is not None:
        return True
    with leaving_out():
        return (record / "surrogate.json").exists() or read_summary(record).get("status", "running") != "running"
    return False


def has_key() -> bool:
    """Return whether there is a key of W&B, in the environment or from `wandb login`; asks nobody."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        from wandb.apis import InternalApi
    except ImportError:
        raise RelossError("W&B is not installed: `make setup`, or `pip install wandb`") from None
    return bool(InternalApi().api_key)


def _upload(path: Path, deadline: float) -> str:
    """Upload a run and mark it; returns what went wrong, the empty string if nothing did."""
    staged = path.parents[1] / "data" / "artifacts" / "staging"
    kept = staged.with_name("kept")
    _copy_missing(kept, staged)  # of an upload that broke off
    _copy_missing(staged, kept)
    problem = _run_wandb(path, deadline)
    if problem:
        _mark(path).unlink(missing_ok=True)
        _copy_missing(kept, staged)
    else:
        _mark(path).touch()
        for copy in kept.glob("*"):
            if not (staged / copy.name).exists():  # it has arrived
                copy.unlink()
    return problem


def _copy_missing(source: Path, target: Path) -> None:
    """Put those files of a folder that another one lacks there too, without a second copy on disk where links work."""
    for path in source.glob("*"):
        other = target / path.name
        if not other.exists():
            target.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, other)
            except OSError:
                shutil.copy2(path, other)


def _run_wandb(path: Path, deadline: float) -> str:
    """Run W&B's upload of one run; returns what went wrong."""
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
            said, _ = process.communicate(timeout=deadline)
        except subprocess.TimeoutExpired:
            return f"no end within {deadline:g} seconds"
        finally:
            kill_tree(process)
        errors = [
            line.partition("ERROR")[2].strip()
            for line in said.splitlines()
            if "wandb: ERROR" in line and CUT_OFF not in line
        ]
        errors += [
            entry["msg"]
            for log in Path(folder).glob("**/debug-sync*.log")
            for entry in map(json.loads, log.read_text(encoding="utf-8").splitlines())
            if entry["level"] == "ERROR" and entry["msg"].startswith(SERIOUS)
        ]
    if not errors and process.returncode != 0:
        errors = said.strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
    return errors[0] if errors else ""
