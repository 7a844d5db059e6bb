"""The results tables on W&B, with the figures of the diagnostics: an artifact of a run of their own."""

from pathlib import Path

from reloss.experiment import environment
from reloss.experiment.task import tasks
from reloss.report.tables import read_table
from reloss.runtime.files import read_json, sha256_of, short_hash, write_json, write_text
from reloss.tracking.client import Artifact, WandbMirror

FORMATS = ("md", "csv", "json")


def mirror_tables(runs: Path) -> None:
    """Write the tables of the tasks that have records below `runs` into RUNS/tables; W&B gets them if they changed.

    Damaged records are named below the tables, and left out.

    Raises:
        UsageError: no folder `runs`.
    """
    folder = runs / "tables"
    files: dict[str, Path] = {}
    for name in tasks():
        table = read_table(name, runs, damaged=[])
        if any(row["records"] for row in table.objects or []):
            for format in FORMATS:
                files[f"{name}.{format}"] = folder / f"{name}.{format}"
                write_text(files[f"{name}.{format}"], table.render(format) + "\n")
    for path in sorted(runs.glob("*/*/diagnostics/*.png")):
        files["-".join(path.relative_to(runs).parts)] = path
    if not files:
        return
    given, known = folder / "given.json", short_hash({name: sha256_of(path) for name, path in files.items()})
    if given.exists() and read_json(given) == known:
        return
    commit = environment.commit()
    mirror = WandbMirror(
        "wandb", runs, name="results", group="results", job_type="table", tags=["table"], config={"commit": commit}
    )
    mirror.make(Artifact("results", "result", files=files))
    mirror.finish({}, failed=False)
    write_json(given, known)
