"""Which prediction bank belongs to an experiment: one for each protocol and each way of recording. Imports no torch.

A short trial run must not leave a bank that the full experiment then learns from. So the first protocol that records
gets the folder `bank`, and every other protocol a folder of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reloss.experiment.config import Experiment
from reloss.experiment.workspace import Workspace
from reloss.runtime.files import read_object, short_hash
from reloss.runtime.lock import is_locked


def bank_folder(config: Experiment, workspace: Workspace) -> Path:
    """Return the folder of the bank that runs of `config` record and learn from; it may not exist yet.

    Raises:
        RelossError: `bank.json` in the folder `bank` is damaged.
    """
    key = short_hash([config.protocol(), _recording(config)])
    shared, separate = workspace.bank(config.name), workspace.bank(config.name, key)
    if (separate / "bank.json").exists():
        return separate
    return shared if _is_free(shared) or _belongs_to(shared, config) else separate


def bank_state(folder: Path) -> dict[str, Any]:
    """Return what `bank.json` in a folder holds, among it `complete`; empty if there is no bank.

    Raises:
        RelossError: the file is damaged.
    """
    return read_object(folder / "bank.json", {"complete": bool})


def _is_free(folder: Path) -> bool:
    """Return whether there is no bank in the folder, or one without items that an earlier run left."""
    state = bank_state(folder)
    return not state or not (state["complete"] or any((folder / "shards").glob("*")) or is_locked(folder))


def _belongs_to(folder: Path, config: Experiment) -> bool:
    origin = bank_state(folder).get("origin")
    if not isinstance(origin, dict) or origin.get("recording") != _recording(config):
        return False
    if "protocol" in origin:
        return bool(origin["protocol"] == config.protocol())
    return all(origin.get(name) == config.model_dump(mode="json")[name] for name in ("data", "model"))


def _recording(config: Experiment) -> dict[str, Any]:
    return config.recording.model_dump(mode="json")
