"""Trackers that write files into the folder of a run: metrics.csv, and the event files of TensorBoard.

Both start from scratch when a run resumes, because the record then logs the earlier rows again.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from reloss.experiment.config import Experiment, to_yaml
from reloss.experiment.tracker import Tracker
from reloss.runtime.files import atomic

CSV_FILE, EVENTS_FOLDER = "metrics.csv", "tensorboard"


class FileTracker(Tracker):
    """A tracker that writes files and logs earlier rows like new ones."""

    enabled = True

    def replay(self, path: Path, lines: int) -> None:
        """Log the first `lines` rows of a metrics file, written by an earlier session of the run."""
        if lines:
            with path.open(encoding="utf-8") as file:
                for line in islice(file, lines):
                    self.log(json.loads(line))


class CsvTracker(FileTracker):
    """Writes the metrics to `metrics.csv`: one row per step, a column for each metric, an empty field where it is not
    logged.
    """

    def __init__(self) -> None:
        super().__init__()
        self._path = Path(CSV_FILE)
        self._columns: list[str] = []
        self._rows: list[dict[str, Any]] = []

    def start(self, folder: Path, config: Experiment, stage: str, commit: str, facts: Mapping[str, Any]) -> None:
        """Start with an empty table; see the base class."""
        self._path, self._columns, self._rows = folder / CSV_FILE, [], []
        self._path.unlink(missing_ok=True)

    def log(self, values: dict[str, Any]) -> None:
        """Add one row. A metric that is new becomes the last column."""
        self._rows.append(values)
        new = [name for name in values if name not in self._columns]
        if new:
            self._columns += new
            with atomic(self._path) as temporary:
                self._write(temporary, "w", self._rows, header=True)
        else:
            self._write(self._path, "a", [values])

    def _write(self, path: Path, mode: str, rows: Iterable[dict[str, Any]], header: bool = False) -> None:
        with path.open(mode, encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self._columns, lineterminator="\n")
            if header:
                writer.writeheader()
            writer.writerows(rows)


class TensorBoardTracker(FileTracker):
    """Writes the event files of TensorBoard to the folder `tensorboard`: metrics by step, figures, the config, and the
    final scores.
    """

    def __init__(self) -> None:
        super().__init__()
        self._writer: Any = None
        self._step = 0

    def start(self, folder: Path, config: Experiment, stage: str, commit: str, facts: Mapping[str, Any]) -> None:
        """Start with an empty folder of events; see the base class."""
        from torch.utils.tensorboard import SummaryWriter

        shutil.rmtree(folder / EVENTS_FOLDER, ignore_errors=True)
        self._writer = SummaryWriter(str(folder / EVENTS_FOLDER), flush_secs=10)
        self._writer.add_text("config", "".join(f"    {line}\n" for line in to_yaml(config).splitlines()))
        lines = [f"    {name}: {value}\n" for name, value in {**facts, "stage": stage, "commit": commit}.items()]
        self._writer.add_text("run", "".join(lines))

    def log(self, values: dict[str, Any]) -> None:
        """Add one point to the curve of each metric."""
        self._step = int(values["step"])
        for name, value in values.items():
            if name != "step":
                self._writer.add_scalar(name, value, self._step)

    def figure(self, name: str, path: Path, step: int) -> None:
        """Add a PNG file."""
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            self._writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def finish(self, summary: dict[str, Any], failed: bool) -> None:
        """Add the final scores, and close the file."""
        for name, value in summary.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(f"final/{name}", value, self._step)
        self._writer.close()
