"""The lineage of a result on Weights & Biases: bank, surrogate and record as artifacts.

Every run on the way names its inputs and outputs in the same manner, so that Weights & Biases can draw the line from a
score back to the predictions that the surrogate was fitted on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from reloss.runtime.files import read_json

if TYPE_CHECKING:
    from reloss.learning.bank import PredictionBank

RESULT_FILES = ("config.yaml", "environment.json", "metrics.jsonl", "summary.json")


@dataclass(frozen=True)
class Artifact:
    """Files and facts that Weights & Biases stores next to a run's metrics.

    The same content under the same name is the same version, whichever run logs it.

    Attributes:
        name: name of the artifact.
        type: kind of the artifact.
        files: files to upload, by their names in the artifact.
        references: addresses to note without uploading anything, by their names in the artifact.
        metadata: values shown with the artifact.
        table: names and values, stored as a table.
    """

    name: str
    type: Literal["dataset", "model", "result"]
    files: Mapping[str, Path] = field(default_factory=dict)
    references: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    table: Mapping[str, float] = field(default_factory=dict)


def bank_artifact(experiment: str, bank: PredictionBank) -> Artifact:
    """Return a bank as a data set. It may hold gigabytes, so only its fingerprint is sent."""
    address = f"reloss://{experiment}/bank/{bank.fingerprint()}"
    metadata = {"fingerprint": bank.fingerprint(), "items": len(bank), **bank.meta["origin"]}
    return Artifact(f"bank-{experiment}", "dataset", references={"bank": address}, metadata=metadata)


def surrogate_artifact(experiment: str, folder: Path) -> Artifact:
    """Return a fitted surrogate as a model: its weights and its card."""
    files = {name: folder / name for name in ("surrogate.safetensors", "surrogate.json")}
    card = read_json(folder / "surrogate.json")
    return Artifact(f"surrogate-{experiment}-{folder.name}", "model", files=files, metadata=card)


def result_artifact(folder: Path, record: str, scores: Mapping[str, float]) -> Artifact:
    """Return a record as a result: its files, figures and scores, without weights and predictions."""
    names = [name for name in RESULT_FILES if (folder / name).exists()]
    files = {name: folder / name for name in names} | {path.name: path for path in sorted(folder.glob("*.png"))}
    return Artifact(f"result-{record}", "result", files=files, table=scores, metadata={"record": record})
