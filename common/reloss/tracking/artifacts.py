"""Lines of descent on W&B: bank -> surrogate -> run, as artifacts that every run of the line names alike."""

from collections.abc import Mapping
from pathlib import Path

from reloss.learning.bank import PredictionBank
from reloss.runtime.files import read_json
from reloss.tracking.client import Artifact

RESULT_FILES = ("config.yaml", "environment.json", "metrics.jsonl", "summary.json")


def bank_artifact(experiment: str, bank: PredictionBank) -> Artifact:
    """Return the bank as a data set: by its fingerprint, as a bank may hold gigabytes, which stay where they are."""
    address = f"reloss://{experiment}/bank/{bank.fingerprint()}"
    metadata = {"fingerprint": bank.fingerprint(), "items": len(bank), **bank.meta["origin"]}
    return Artifact(f"bank-{experiment}", "dataset", references={"bank": address}, metadata=metadata)


def surrogate_artifact(experiment: str, folder: Path) -> Artifact:
    """Return a learned surrogate as a model: its weights and its card."""
    files = {name: folder / name for name in ("surrogate.safetensors", "surrogate.json")}
    card = read_json(folder / "surrogate.json")
    return Artifact(f"surrogate-{experiment}-{folder.name}", "model", files=files, metadata=card)


def result_artifact(folder: Path, record: str, scores: Mapping[str, float]) -> Artifact:
    """Return a record as a result: its files, its figures, and its scores as a table; no weights, no predictions."""
    names = [name for name in RESULT_FILES if (folder / name).exists()]
    files = {name: folder / name for name in names} | {path.name: path for path in sorted(folder.glob("*.png"))}
    return Artifact(f"result-{record}", "result", files=files, table=scores, metadata={"record": record})
