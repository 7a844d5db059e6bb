"""`reloss sync`: the offline runs, and the results tables, on Weights & Biases.

The tables and the figures of the diagnostics are one artifact, logged by a W&B run of its own if they changed.
"""

from pathlib import Path

from reloss.experiment import environment
from reloss.experiment.task import tasks
from reloss.experiment.workspace import Workspace
from reloss.report.tables import read_table
from reloss.runtime.errors import RelossError, UsageError
from reloss.runtime.files import read_json, sha256_of, short_hash, write_json, write_text
from reloss.tracking import sync as runs
from reloss.tracking.artifacts import Artifact
from reloss.tracking.client import WandbTracker
from reloss.tracking.sync import has_key
from reloss.tracking.worker import destination

FORMATS = ("md", "csv", "json")


def sync(workspace: Workspace, deadline: float) -> None:
    """Record the tables if they changed, then upload all runs that W&B recorded offline.

    Args:
        workspace: the folder of the records.
        deadline: seconds that the upload of one run may take.

    Raises:
        UsageError: there is no folder of records or no key, or the deadline is not positive.
        RelossError: W&B does not answer, or some uploads failed; the same command tries them again.
    """
    if deadline <= 0:
        raise UsageError("--deadline must be more than 0")
    if has_key() and workspace.runs.is_dir():
        record_tables(workspace)
    runs.sync(workspace.runs, deadline)


def record_tables(workspace: Workspace) -> None:
    """Write the tables of all tasks with records to the workspace, and record them for W&B if they changed.

    They are recorded offline, as a run in each project that holds some of the records' runs, and uploaded like those.
    Damaged records are named below the tables, and skipped.

    Raises:
        UsageError: there is no folder of records.
        RelossError: W&B does not record them.
    """
    files = {**_write_tables(workspace), **_figures(workspace)}
    if not files:
        return
    logged = workspace.tables / "uploaded.json"
    projects = _projects(workspace)
    current = short_hash({"projects": projects, **{name: sha256_of(path) for name, path in files.items()}})
    if logged.exists() and read_json(logged) == current:
        return
    config = {"commit": environment.commit()}
    description = {"name": "results", "group": "results", "job_type": "table", "tags": ["table"], "config": config}
    for project in projects:
        problems: list[str] = []
        tracker = WandbTracker(problems.append)
        tracker.start_run(workspace.runs, mode="offline", **description, **project)
        tracker.log_artifact(Artifact("results", "result", files=files))
        tracker.finish({}, failed=False)
        if problems:
            raise RelossError(f"W&B does not record the results tables ({problems[0]}); the same command tries again")
    write_json(logged, current)


def _projects(workspace: Workspace) -> list[dict[str, str]]:
    """Return where the runs of the records belong on W&B; the default project if there are none."""
    files = [path for path in runs.wandb_files(workspace.runs) if path.parents[2] != workspace.runs]
    projects = {tuple(sorted(destination(path).items())) for path in files}
    return [dict(project) for project in sorted(projects)] or [{}]


def _write_tables(workspace: Workspace) -> dict[str, Path]:
    """Write the tables of all tasks with records; return the files by name."""
    files: dict[str, Path] = {}
    for task in tasks():
        table = read_table(task, workspace.runs, damaged=[])
        if not any(row["records"] for row in table.objects or []):
            continue
        for format in FORMATS:
            files[f"{task}.{format}"] = path = workspace.tables / f"{task}.{format}"
            write_text(path, table.render(format) + "\n")
    return files


def _figures(workspace: Workspace) -> dict[str, Path]:
    """Return the figures of the diagnostics of all experiments by name."""
    paths = sorted(workspace.runs.glob("*/*/diagnostics/*.png"))
    return {"-".join(path.relative_to(workspace.runs).parts): path for path in paths}
