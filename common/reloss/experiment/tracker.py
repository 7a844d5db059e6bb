"""What a run tells a dashboard, besides its own files.

A record sends the same calls to every tracker. The base class ignores them, so that nothing in a run depends on a
dashboard; `reloss.tracking` implements them for Weights & Biases. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reloss.experiment.config import Experiment
    from reloss.learning.bank import PredictionBank


class Tracker:
    """The tracker of a run that is not tracked: every call does nothing.

    Attributes:
        enabled: whether the calls have an effect.
        seconds: time for which the run waited for the tracker so far.
        cpu_seconds: processor time of the tracker's own processes, known after `finish`.
    """

    enabled = False

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0

    def start(self, folder: Path, config: Experiment, stage: str, commit: str, facts: Mapping[str, Any]) -> None:
        """Start tracking a run.

        Args:
            folder: the folder of the record or the surrogate; the tracker keeps its own files below it.
            config: the resolved experiment.
            stage: baseline, learn or train.
            commit: commit of the checkout, with `+changes` appended if files differ from it.
            facts: what identifies the run: loss, variant, seed, record and so on.
        """

    def log(self, values: dict[str, Any]) -> None:
        """Log one row of metrics."""

    def replay(self, path: Path, lines: int) -> None:
        """Log the first `lines` rows of a metrics file, written by an earlier session of the run."""

    def figure(self, name: str, path: Path, step: int) -> None:
        """Log a PNG file."""

    def log_bank(self, experiment: str, bank: PredictionBank, *, used: bool = False) -> None:
        """Log a bank as an output of the run or, if `used`, as its input."""

    def log_surrogate(self, experiment: str, folder: Path, *, used: bool = False) -> None:
        """Log a fitted surrogate as an output of the run or, if `used`, as its input."""

    def log_result(self, folder: Path, record: str, scores: Mapping[str, float]) -> None:
        """Log a record's files and scores as an output of the run."""

    def finish(self, summary: dict[str, Any], failed: bool) -> None:
        """Log the final scores and stop tracking."""

    def cost(self, wall_seconds: float) -> dict[str, float]:
        """Return the cost of tracking: seconds the run waited, their share of its wall time, and processor time."""
        share = self.seconds / wall_seconds if wall_seconds else 0.0
        return {
            "seconds": round(self.seconds, 3),
            "share": round(share, 5),
            "cpu_seconds": round(self.cpu_seconds, 2),
        }
