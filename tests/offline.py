"""Reads W&B's offline run files, with W&B's own reader."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class OfflineRun:
    path: Path
    id: str = ""
    group: str = ""
    job_type: str = ""
    name: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    wandb_steps: list[int] = field(default_factory=list)
    step_metrics: dict[str, str] = field(default_factory=dict)
    artifacts: dict[str, dict[str, Any]] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    exits: list[int] = field(default_factory=list)

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics, without those of figures."""
        return [row for row in self.rows if not any("/" in key for key in row)]


def offline_runs(folder: Path) -> list[OfflineRun]:
    """The offline runs of a record, the oldest first."""
    paths = folder.glob("wandb/offline-run-*/run-*.wandb")
    return [read(path) for path in sorted(paths, key=lambda path: path.stat().st_mtime)]


def read(path: Path) -> OfflineRun:
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    run, store = OfflineRun(path), DataStore()
    store.open_for_scan(str(path))
    while data := store.scan_data():
        record = Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found = record.run
            run.id, run.group, run.job_type, run.name = (
                *(found.run_id, found.run_group, found.job_type, found.display_name),
            )
            run.tags, run.config = list(found.tags), values(found.config.update)
        elif kind == "history":
            row = values(record.history.item)
            run.wandb_steps.append(row["_step"])
            run.rows.append({key: value for key, value in row.items() if not key.startswith("_")})
        elif kind == "metric" and record.metric.glob_name:
            run.step_metrics[record.metric.glob_name] = record.metric.step_metric
        elif kind == "artifact":
            made = record.artifact
            run.artifacts[made.name] = {
                "type": made.type,
                "used": made.use_after_commit,
                "digest": made.digest,
                "files": {entry.path for entry in made.manifest.contents if not entry.ref},
                "references": [entry.ref for entry in made.manifest.contents if entry.ref],
                "metadata": json.loads(made.metadata) if made.metadata else {},
            }
        elif kind == "summary":
            run.summary |= values(record.summary.update)
        elif kind == "exit":
            run.exits.append(record.exit.exit_code)
    return run


def values(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
