"""Metrics as they come: appended to a local JSONL file, the truth, and mirrored to Weights & Biases.

W&B is offline unless a key is set. Whatever fails in it is said once and never stops a run.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from reloss.errors import RelossError
from reloss.files import write_text
from reloss.progress import say

Track = Literal["wandb", "off"]


class MetricsFile:
    """An append-only JSONL file, one object a line; `lines` of it are kept on resume."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = len(read_metrics(path))

    def append(self, values: dict[str, Any]) -> None:
        """Write one line, and hand it to the system at once."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")
        except OSError as error:
            raise RelossError(f"cannot write {self.path}: {error.strerror}; the lines before it are kept") from error
        self.lines += 1

    def cut(self, lines: int) -> None:
        """Keep the first `lines` lines: those after the checkpoint that a run goes on from will come again."""
        kept = self.path.read_text(encoding="utf-8").splitlines()[:lines] if self.path.exists() else []
        write_text(self.path, "".join(line + "\n" for line in kept))
        self.lines = len(kept)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics file; a last line that a kill cut short is left out."""
    if not path.exists():
        return []
    entries = []
    for number, line in enumerate(lines := path.read_text(encoding="utf-8").splitlines()):
        try:
            entries.append(json.loads(line))
        except ValueError:
            if number < len(lines) - 1:
                raise RelossError(f"{path}, line {number + 1} is damaged; remove the line to go on") from None
    return entries


class WandbMirror:
    """Mirror metrics to W&B, or do nothing once that fails."""

    def __init__(self, track: Track, folder: Path, **settings: Any) -> None:
        self._run: Any = None
        if track == "wandb":
            self._guard(lambda: self._start(folder, settings))

    def _start(self, folder: Path, settings: dict[str, Any]) -> None:
        import wandb

        mode: Any = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
        quiet = wandb.Settings(silent=True, console="off", init_timeout=30)
        self._run = wandb.init(project="reloss", dir=folder, mode=mode, settings=quiet, reinit="create_new", **settings)

    def log(self, values: dict[str, Any]) -> None:
        """Send one line."""
        if self._run is not None:
            self._guard(lambda: self._run.log(values))

    def log_figure(self, name: str, path: Path) -> None:
        """Send a PNG file."""

        def send() -> None:
            import wandb

            self._run.log({name: wandb.Image(str(path))})

        if self._run is not None:
            self._guard(send)

    def finish(self, summary: dict[str, Any], failed: bool) -> None:
        """Send the final scores and end the W&B run."""
        if self._run is not None:
            self._guard(lambda: self._run.summary.update(summary))
        if self._run is not None:
            self._guard(lambda: self._run.finish(exit_code=int(failed)))
        self._run = None

    def _guard(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:
            self._run = None
            say(f"W&B failed ({type(error).__name__}: {error}); going on without it, metrics.jsonl is complete")
