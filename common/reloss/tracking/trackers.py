"""`--track`: where metrics go besides the run's own files: W&B, a CSV file or TensorBoard, one or several of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reloss.experiment.config import Experiment
from reloss.experiment.tracker import Tracker
from reloss.runtime.errors import Unavailable, UsageError, unknown
from reloss.runtime.extras import install_command
from reloss.runtime.progress import say
from reloss.tracking.client import WandbTracker
from reloss.tracking.files import CsvTracker, TensorBoardTracker

if TYPE_CHECKING:
    from reloss.learning.bank import PredictionBank

TRACKERS: dict[str, Callable[[], Tracker]] = {
    "wandb": WandbTracker,
    "csv": CsvTracker,
    "tensorboard": TensorBoardTracker,
}


def check_track(track: str) -> list[str]:
    """Return the trackers that `--track` names; an empty list for `off`.

    Raises:
        UsageError: an unknown name, or `off` with others.
        Unavailable: the package tensorboard is missing.
    """
    names = list(dict.fromkeys(name.strip() for name in track.split(",")))
    for name in names:
        if name not in TRACKERS and name != "off":
            raise unknown("tracker", name, [*TRACKERS, "off"])
    if names == ["off"]:
        return []
    if "off" in names:
        raise UsageError(f"--track {track}: off stands alone")
    if "tensorboard" in names and find_spec("tensorboard") is None:
        command = install_command("tensorboard")
        raise Unavailable(f"--track tensorboard needs the package tensorboard, which is not installed: `{command}`")
    return names


def make_tracker(track: str) -> Tracker:
    """Return the tracker that `--track` names, such as wandb or csv,tensorboard; see `check_track`.

    Without the package wandb, nothing goes to W&B, and a note says so.
    """
    names = check_track(track)
    if "wandb" in names and find_spec("wandb") is None:
        names.remove("wandb")
        say(
            f"note: W&B is not installed, so metrics stay in the run's folder: `{install_command('tracking')}`, or "
            "--track csv, tensorboard or off"
        )
    if names == ["wandb"]:
        return WandbTracker()
    return Trackers({name: TRACKERS[name]() for name in names}) if names else Tracker()


class Trackers(Tracker):
    """Several trackers, which get the same calls. One that fails is reported once and skipped from then on.

    Args:
        trackers: the trackers by name.
    """

    enabled = True

    def __init__(self, trackers: dict[str, Tracker]) -> None:
        super().__init__()
        self._trackers = trackers

    def _each(self, call: Callable[[Tracker], None]) -> None:
        """Pass a call on to every tracker, and add its duration to `seconds`."""
        start = time.monotonic()
        for name, tracker in list(self._trackers.items()):
            try:
                call(tracker)
            except Exception as error:
                del self._trackers[name]
                cause = f"{type(error).__name__}: {error}"
                say(f"--track {name} failed ({cause}); the run continues, and its own files are complete")
        self.seconds += time.monotonic() - start

    def start(self, folder: Path, config: Experiment, stage: str, commit: str, facts: Mapping[str, Any]) -> None:
        """Start tracking a run; see the base class."""
        self._each(lambda tracker: tracker.start(folder, config, stage, commit, facts))

    def log(self, values: dict[str, Any]) -> None:
        """Log one row of metrics."""
        self._each(lambda tracker: tracker.log(values))

    def replay(self, path: Path, lines: int) -> None:
        """Log the first `lines` rows of a metrics file, written by an earlier session of the run."""
        self._each(lambda tracker: tracker.replay(path, lines))

    def figure(self, name: str, path: Path, step: int) -> None:
        """Log a PNG file."""
        self._each(lambda tracker: tracker.figure(name, path, step))

    def log_bank(self, experiment: str, bank: PredictionBank, *, used: bool = False) -> None:
        """Log a bank as an output of the run or, if `used`, as its input."""
        self._each(lambda tracker: tracker.log_bank(experiment, bank, used=used))

    def log_surrogate(self, experiment: str, folder: Path, *, used: bool = False) -> None:
        """Log a fitted surrogate as an output of the run or, if `used`, as its input."""
        self._each(lambda tracker: tracker.log_surrogate(experiment, folder, used=used))

    def log_result(self, folder: Path, record: str, scores: Mapping[str, float]) -> None:
        """Log a record's files and scores as an output of the run."""
        self._each(lambda tracker: tracker.log_result(folder, record, scores))

    def finish(self, summary: dict[str, Any], failed: bool) -> None:
        """Log the final scores and stop tracking."""
        self._each(lambda tracker: tracker.finish(summary, failed))
        self.cpu_seconds += sum(tracker.cpu_seconds for tracker in self._trackers.values())
