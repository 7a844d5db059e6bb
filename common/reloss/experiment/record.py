"""The record: the folder that one run leaves behind.

config.yaml  environment.json  metrics.jsonl  summary.json  checkpoint/{last.pt, weights.safetensors}
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import load_file, save_file
from torch import Tensor

from reloss.experiment import environment
from reloss.experiment.config import Experiment, to_yaml
from reloss.experiment.metrics_log import MetricsFile, read_metrics
from reloss.experiment.run_spec import variant_name
from reloss.learning.bank import compact
from reloss.runtime import distributed
from reloss.runtime.checkpoint import latest_intact, load_checkpoint, previous, save_checkpoint
from reloss.runtime.errors import RelossError, UsageError
from reloss.runtime.files import RESTORE, atomic, read_object, read_text, write_json, write_text
from reloss.runtime.progress import say
from reloss.tracking.artifacts import result_artifact
from reloss.tracking.client import Track, WandbMirror, describe_run

Status = Literal["running", "finished", "failed", "interrupted"]
ANEW = "to train this run anew"


class Record:
    """One run's folder, open for writing. Of several processes of a run, only the main one writes.

    Attributes:
        path: the folder.
        weights: the file of the final weights, written by the task.
        mirror: the run on W&B.
    """

    def __init__(self, path: Path, config: Experiment, *, facts: dict[str, Any], track: Track = "off") -> None:
        """Make the folder, or open it to go on.

        Args:
            path: the folder.
            config: written to `config.yaml`; a folder with another one is refused.
            facts: what the summary says from the start: experiment, loss, variant, seed, protocol and so on.
            track: whether W&B mirrors it.

        Raises:
            UsageError: the folder was made by another config.
        """
        self.path = path
        self.weights = path / "checkpoint" / "weights.safetensors"
        self._facts = facts
        self._writes = distributed.is_main()
        self._started = time.monotonic()
        self._seconds_before = 0.0
        self._tracked = False
        self.metrics = MetricsFile(path / "metrics.jsonl")
        self.mirror = WandbMirror("off", path)
        if self._writes:
            self._open(config, track)

    def _open(self, config: Experiment, track: Track) -> None:
        path, facts = self.path, self._facts
        text = to_yaml(config)
        if (path / "config.yaml").exists():
            found = read_text(path / "config.yaml")
            if found != text and text.startswith(found):
                raise RelossError(f"{path / 'config.yaml'} is cut short; remove it, and the run writes it anew")
            if found != text:
                raise UsageError(
                    f"{path} was made by another config (see its config.yaml); choose another --runs, or move it away"
                )
        else:
            write_text(path / "config.yaml", text)
        described = environment.describe()
        write_json(path / "environment.json", {**described, "data": facts.get("data")})
        before = read_summary(path)
        self._seconds_before = before.get("wall_seconds", 0.0)
        stage = "baseline" if facts["loss"] == config.ordinary_loss else "train"
        told = {name: value for name, value in facts.items() if name not in type(config).model_fields}
        told |= {"record": _name(path), "data_fingerprint": facts.get("data")}
        self.mirror = WandbMirror(track, path, **describe_run(config, stage, described["commit"], told))
        self._tracked = track != "off"
        self.mirror.seconds += before.get("tracking", {}).get("seconds", 0.0)
        self.mirror.cpu_seconds += before.get("tracking", {}).get("cpu_seconds", 0.0)
        self.write_summary("running")

    def log(self, step: int, **values: float) -> None:
        """Record metrics of training step `step`."""
        if not self._writes:
            return
        line = {"step": step, **values}
        self.metrics.append(line)
        self.mirror.log(line)

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Write `state` (tensors and plain values) as the last checkpoint, with the present length of the metrics."""
        if not self._writes:
            return
        save_checkpoint(self._checkpoint, {**state, "metrics_lines": self.metrics.lines})
        self.write_summary("running")

    def load_checkpoint(self) -> dict[str, Any] | None:
        """Return the last checkpoint, or None; metrics that were logged after it are dropped, to come again.

        Where metrics are missing that it counts, the one before is returned.

        Raises:
            RelossError: it is damaged, and so is the one before; or metrics are missing, see `rewind`.
        """
        state, earlier = load_checkpoint(self._checkpoint, ANEW), previous(self._checkpoint)
        if state is not None and state["metrics_lines"] > self.metrics.lines and latest_intact([earlier]):
            state = load_checkpoint(earlier, ANEW) or state
        self.rewind(state.pop("metrics_lines") if state is not None else 0)
        return state

    @property
    def _checkpoint(self) -> Path:
        return self.path / "checkpoint" / "last.pt"

    def discard_checkpoint(self) -> None:
        """Begin anew: remove all checkpoints, a framework's own too, but not the final weights."""
        if self._writes:
            for path in (self.path / "checkpoint").rglob("*.pt*"):
                path.unlink()

    def rewind(self, lines: int) -> None:
        """Drop what was logged after the first `lines` lines of metrics: it will come again.

        To be called once, by a run that goes on: the lines that stay are shown on its new W&B run too.

        Raises:
            RelossError: there are fewer whole lines, so that metrics would be missing for good.
        """
        if lines > self.metrics.lines:
            raise self._lacking(f"{self.metrics.lines} whole lines, fewer than the {lines} that the checkpoint counts")
        if self._writes:
            self.metrics.cut(lines)
            self.mirror.replay(self.metrics.path, lines)

    def rewind_to_epoch(self, epoch: int) -> None:
        """Drop what was logged after an epoch, as `rewind` does, where a framework's checkpoint counts no lines.

        Raises:
            RelossError: an epoch up to it has no line.
        """
        if (found := self.epochs()) < epoch:
            raise self._lacking(f"no line of epoch {found + 1}, but the checkpoint is of epoch {epoch}")
        entries = read_metrics(self.metrics.path)
        self.rewind(sum(entry["epoch"] <= epoch for entry in entries))

    def epochs(self) -> int:
        """Return up to which epoch, counted from 1, all have lines in the metrics."""
        logged = {entry["epoch"] for entry in read_metrics(self.metrics.path)}
        return next(epoch for epoch in count() if epoch + 1 not in logged)

    def _lacking(self, what: str) -> RelossError:
        return RelossError(f"{self.metrics.path} holds {what}: restore it from a copy, or remove {self.path} {ANEW}")

    def save_weights(self, weights: dict[str, Tensor]) -> None:
        """Write the final weights of the model as safetensors."""
        if not self._writes:
            return
        with atomic(self.weights) as temporary:
            save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, temporary)

    def save_predictions(self, epoch: int, outputs: Tensor, targets: Tensor) -> None:
        """Keep an epoch's predictions of validation examples, outputs [E, ...] (in float16) and targets [E, ...]."""
        if not self._writes:
            return
        with atomic(self.path / "predictions" / f"{epoch:04d}.safetensors") as temporary:
            save_file({"outputs": compact(outputs), "targets": compact(targets)}, temporary)

    def save_json(self, name: str, value: Any) -> None:
        """Keep `value` as `<name>.json`."""
        if self._writes:
            write_json(self.path / f"{name}.json", value)

    def save_examples(self, kinds: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Keep examples to look at as `examples.json`: kinds, such as wrong and right, of rows with the same keys.

        `reloss report` shows the first of each kind, as a table with the keys as its columns.
        """
        self.save_json("examples", {kind: list(map(dict, rows)) for kind, rows in kinds.items()})

    def save_figure(self, name: str, draw: Callable[[Path], None]) -> None:
        """Keep the figure that `draw` writes to the path it is given, as `<name>.png`, and show it on W&B.

        `reloss report` shows it too; what the PNG says as its `Description` is its caption and alternative text.
        """
        if self._writes:
            path = self.path / f"{name}.png"
            draw(path)
            logged = read_metrics(self.metrics.path)
            self.mirror.figure(name, path, logged[-1]["step"] if logged else 0)

    def write_summary(self, status: Status, scores: dict[str, float] | None = None, **more: Any) -> None:
        """Write `summary.json`."""
        if not self._writes:
            return
        seconds = self._seconds_before + time.monotonic() - self._started
        summary = {"status": status, **self._facts, "scores": scores or {}, "wall_seconds": round(seconds, 1), **more}
        if self._tracked:
            summary["tracking"] = self.mirror.cost(seconds)
        write_json(self.path / "summary.json", summary)

    def close(self, status: Status, scores: dict[str, float] | None = None, **more: Any) -> None:
        """Write the final summary and end the W&B run; what that took is written into the summary after it."""
        self.write_summary(status, scores, **more)
        if status == "finished" and self._writes:
            previous(self._checkpoint).unlink(missing_ok=True)
        if self._tracked:
            self.mirror.make(result_artifact(self.path, _name(self.path), scores or {}))
            self.mirror.finish({"status": status, **(scores or {})}, failed=status != "finished")
            self.write_summary(status, scores, **more)


def _name(path: Path) -> str:
    """Return the record's name, the last four parts of its path: <task>/<data>_<model>/<loss>[@<variant>]/seed<N>."""
    return "/".join(path.resolve().parts[-4:])


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the final weights that `Record.save_weights` wrote.

    Raises:
        RelossError: they cannot be read.
    """
    try:
        return load_file(path)
    except Exception as error:
        raise RelossError(f"cannot read the weights {path} ({error}); train the run again") from error


def record_folder(runs: Path, experiment: str, loss: str, settings: Sequence[str], seed: int) -> Path:
    """Return where the record of a run lies: RUNS/<experiment>/<loss>[@<variant>]/seed<N>."""
    changed = variant_name(settings)
    return runs / experiment / (f"{loss}@{changed}" if changed else loss) / f"seed{seed}"


FACTS = {"status": str, "experiment": str, "loss": str, "settings": list, "seed": int, "protocol": str, "scores": dict}


def read_summary(record: Path) -> dict[str, Any]:
    """Return the summary of a record, empty if there is none.

    Raises:
        RelossError: it is damaged.
    """
    path = record / "summary.json"
    summary = read_object(path, FACTS)
    wrong = [name for name in ("surrogate", "diagnostics") if not isinstance(summary.get(name, {}), dict)]
    wrong += [name for name, score in summary.get("scores", {}).items() if not isinstance(score, int | float)]
    if wrong:
        raise RelossError(f"{path} is damaged (wrong: {', '.join(wrong)}); {RESTORE}")
    return summary


@contextmanager
def leaving_out() -> Iterator[None]:
    """End the block where it reads a record that is damaged, which is said and no reason to stop."""
    try:
        yield
    except RelossError as error:
        say(f"left out: {error}")
