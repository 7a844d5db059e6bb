"""The record: the folder that one run leaves behind.

    config.yaml          the resolved config
    environment.json     commit, versions, device, command
    metrics.jsonl        one line per logged step
    summary.json         status, scores and what identifies the run
    checkpoint/          last.pt, to resume from, and weights.safetensors, the final weights

Every file is written atomically, so a run can be killed at any moment and resumed by the same command. A tracker
receives what the record logs; the local files are the truth.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from torch import Tensor

from reloss.experiment import environment
from reloss.experiment.config import Experiment, to_yaml
from reloss.experiment.metrics_log import MetricsFile, read_metrics
from reloss.experiment.settings import current_config, differing, flat
from reloss.experiment.status import Status
from reloss.experiment.tracker import Tracker
from reloss.learning.bank import compact
from reloss.runtime import distributed
from reloss.runtime.checkpoint import latest_intact, load_checkpoint, previous, save_checkpoint
from reloss.runtime.errors import RelossError, UsageError
from reloss.runtime.files import (
    check_hash,
    damage,
    read_object,
    read_text,
    remove_folder,
    short_hash,
    write_json,
    write_text,
)
from reloss.runtime.progress import say
from reloss.runtime.tensors import load_tensors, save_tensors
from reloss.runtime.text import finite

FROM_SCRATCH = "to train this run from scratch"


class Record:
    """One run's folder, open for writing. If a run has several processes, only the main one writes.

    Attributes:
        path: the folder.
        weights: the file of the final weights, written by the task.
        metrics: the metrics logged so far.
        tracker: the tracker that receives what is logged; it does nothing in processes that do not write.
    """

    def __init__(
        self, path: Path, config: Experiment, *, facts: dict[str, Any], tracker: Tracker | None = None
    ) -> None:
        """Create the folder, or open it to resume the run.

        Args:
            path: the folder.
            config: the resolved experiment, written to `config.yaml`.
            facts: what identifies the run in its summary: experiment, loss, variant, seed, protocol and so on.
            tracker: a tracker that is not started yet; none by default.

        Raises:
            UsageError: the folder belongs to another config.
            RelossError: `config.yaml` is cut short.
        """
        self.path = path
        self.weights = weights_file(path)
        self._facts = facts
        self._writes = distributed.is_main()
        self._start_time = time.monotonic()
        self._previous_seconds = 0.0
        self.metrics = MetricsFile(path / "metrics.jsonl")
        self.tracker = tracker if tracker is not None and self._writes else Tracker()
        if self._writes:
            self._open(config)

    def _open(self, config: Experiment) -> None:
        self._write_config(config)
        description = environment.describe()
        write_json(self.path / "environment.json", {**description, "data": self._facts.get("data")})
        summary = read_summary(self.path)
        self._previous_seconds = summary.get("wall_seconds", 0.0)
        stage = "baseline" if self._facts["loss"] == config.ordinary_loss else "train"
        facts = {name: value for name, value in self._facts.items() if name not in type(config).model_fields}
        facts |= {"record": record_name(self.path), "data_fingerprint": self._facts.get("data")}
        if "surrogate" in self._facts:  # as a config key, that is the section
            facts["fitted_surrogate"] = self._facts["surrogate"]
        self.tracker.start(self.path, config, stage, description["commit"], facts)
        cost = summary.get("tracking", {})
        self.tracker.seconds += cost.get("seconds", 0.0)
        self.tracker.cpu_seconds += cost.get("cpu_seconds", 0.0)
        self.write_summary(Status.RUNNING)

    def _write_config(self, config: Experiment) -> None:
        """Write `config.yaml`, or check that the one in the folder has the same values; an earlier version may have
        written it, with other keys or without keys that are new.
        """
        path, text = self.path / "config.yaml", to_yaml(config)
        if not path.exists():
            write_text(path, text)
            return
        recorded = read_text(path)
        if recorded != text and text.startswith(recorded):
            raise RelossError(f"{path} is cut short; remove it, and the run writes it again")
        if recorded != text and not _is_same_config(path, config):
            raise UsageError(
                f"{self.path} belongs to a run with another config (see its config.yaml); choose another --runs, or "
                "move it away"
            )

    def log(self, step: int, **values: float) -> None:
        """Record metrics of training step `step`."""
        if not self._writes:
            return
        entry = {"step": step, **values}
        self.metrics.append(entry)
        self.tracker.log(entry)

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Write `state` (tensors and plain values) as the last checkpoint, with the current number of metrics lines."""
        if not self._writes:
            return
        save_checkpoint(self._checkpoint, {**state, "metrics_lines": self.metrics.lines})
        self.write_summary(Status.RUNNING)

    def load_checkpoint(self) -> dict[str, Any] | None:
        """Return the last checkpoint, or None; drop the metrics logged after it, which the resumed run logs again.

        If metrics that the last checkpoint counts are missing, return the previous checkpoint.

        Raises:
            RelossError: both checkpoints are damaged, or metrics are missing (see `rewind`).
        """
        state, older = load_checkpoint(self._checkpoint, FROM_SCRATCH), previous(self._checkpoint)
        if state is not None and state["metrics_lines"] > self.metrics.lines and latest_intact([older]):
            state = load_checkpoint(older, FROM_SCRATCH) or state
        self.rewind(state.pop("metrics_lines") if state is not None else 0)
        return state

    @property
    def _checkpoint(self) -> Path:
        return self.path / "checkpoint" / "last.pt"

    def discard_checkpoint(self) -> None:
        """Remove all checkpoints, also those of a framework, so that training starts from scratch; keep the weights."""
        if self._writes:
            for path in (self.path / "checkpoint").rglob("*.pt*"):
                path.unlink()

    def rewind(self, lines: int) -> None:
        """Drop the metrics after the first `lines` lines, which the resumed run logs again.

        Call it once per resumed run: the tracker's new run receives the remaining lines.

        Raises:
            RelossError: the file has fewer whole lines, so metrics would be missing for good.
        """
        if lines > self.metrics.lines:
            raise self._incomplete(f"{self.metrics.lines} whole lines, but the checkpoint counts {lines}")
        if self._writes:
            self.metrics.cut(lines)
            self.tracker.replay(self.metrics.path, lines)

    def rewind_to_epoch(self, epoch: int) -> None:
        """Drop the metrics logged after an epoch, like `rewind`, for frameworks whose checkpoints count no lines.

        Raises:
            RelossError: an epoch up to `epoch` has no line.
        """
        if (last := self.epochs()) < epoch:
            raise self._incomplete(f"no line of epoch {last + 1}, but the checkpoint is from epoch {epoch}")
        entries = read_metrics(self.metrics.path)
        self.rewind(sum(entry.get("epoch", 0) <= epoch for entry in entries))

    def epochs(self) -> int:
        """Return the last epoch, counted from 1, up to which every epoch has metrics; 0 if the first has none."""
        logged = {entry.get("epoch") for entry in read_metrics(self.metrics.path)}
        return next(epoch for epoch in count() if epoch + 1 not in logged)

    def _incomplete(self, problem: str) -> RelossError:
        return RelossError(
            f"{self.metrics.path} has {problem}: restore it from a copy, or remove {self.path} {FROM_SCRATCH}"
        )

    def save_weights(self, weights: dict[str, Tensor]) -> None:
        """Write the final weights of the model as safetensors. Tied weights are written once under each name."""
        if not self._writes:
            return
        # A copy of each: safetensors refuses tensors that share memory.
        copies = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
        save_tensors(self.weights, copies)

    def save_predictions(self, epoch: int, outputs: Tensor, targets: Tensor) -> None:
        """Save predictions of E validation examples after an epoch: outputs [E, ...] in float16, targets [E, ...]."""
        if not self._writes:
            return
        path = self.path / "predictions" / f"{epoch:04d}.safetensors"
        save_tensors(path, {"outputs": compact(outputs), "targets": compact(targets)})

    def save_json(self, name: str, value: Any) -> None:
        """Save `value` as `<name>.json`."""
        if self._writes:
            write_json(self.path / f"{name}.json", value)

    def save_examples(self, kinds: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Save examples for inspection as `examples.json`.

        Args:
            kinds: rows with the same keys, by kind, such as wrong and right. `reloss report` shows the first rows of
                each kind as a table with the keys as columns.
        """
        self.save_json("examples", {kind: list(map(dict, rows)) for kind, rows in kinds.items()})

    def save_figure(self, name: str, draw: Callable[[Path], None]) -> None:
        """Save the figure that `draw` writes to the given path as `<name>.png`, and send it to the tracker.

        `reloss report` shows it too, with the PNG's `Description` as caption and alternative text.
        """
        if self._writes:
            path = self.path / f"{name}.png"
            draw(path)
            entries = read_metrics(self.metrics.path)
            self.tracker.figure(name, path, int(entries[-1].get("step", 0)) if entries else 0)

    def discard(self) -> None:
        """Finish tracking as failed, and remove the folder."""
        if not self._writes:
            return
        self.tracker.finish({"status": Status.FAILED}, failed=True)
        remove_folder(self.path)

    def write_summary(self, status: Status, scores: dict[str, float] | None = None, **more: Any) -> None:
        """Write `summary.json`."""
        if not self._writes:
            return
        seconds = self._previous_seconds + time.monotonic() - self._start_time
        scores = finite(scores or {})
        summary = {"status": status, **self._facts, "scores": scores, "scores_hash": short_hash(scores)}
        summary |= {"wall_seconds": round(seconds, 1), **more}
        if self.tracker.enabled:
            summary["tracking"] = self.tracker.cost(seconds)
        write_json(self.path / "summary.json", summary)

    def close(self, status: Status, scores: dict[str, float] | None = None, **more: Any) -> None:
        """Write the final summary, finish tracking, and add the cost of that to the summary."""
        self.write_summary(status, scores, **more)
        if status == Status.FINISHED and self._writes:
            previous(self._checkpoint).unlink(missing_ok=True)
        if self.tracker.enabled:
            self.tracker.log_result(self.path, record_name(self.path), scores or {})
            self.tracker.finish({"status": status, **(scores or {})}, failed=status != Status.FINISHED)
            self.write_summary(status, scores, **more)


def _is_same_config(path: Path, config: Experiment) -> bool:
    """Return whether a config file has the values of `config`, though an earlier version may have written it."""
    try:
        recorded = flat(current_config(read_object(path)))
    except RelossError:
        return False
    today = {name: value for name, value in flat(config.model_dump(mode="json")).items() if name not in config.FIXED}
    protocol = [name for name in today if name.partition(".")[0] in config.PROTOCOL]
    return recorded.keys() >= set(protocol) and not differing(recorded, today)


def record_name(path: Path) -> str:
    """Return a record's name, the last four parts of its path: <task>/<data>_<model>/<loss>[@<variant>]/seed<N>."""
    return "/".join(path.resolve().parts[-4:])


def weights_file(record: Path) -> Path:
    """Return the file of the final weights in the folder of a record."""
    return record / "checkpoint" / "weights.safetensors"


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the final weights that `Record.save_weights` wrote.

    Raises:
        RelossError: the file cannot be read.
    """
    try:
        return load_tensors(path)
    except Exception as error:
        raise RelossError(f"cannot read the weights {path} ({error}); train the run again") from error


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
        raise damage(path, f"wrong: {', '.join(wrong)}")
    check_hash(summary, "scores", path)
    return summary


@contextmanager
def skipping_damage() -> Iterator[None]:
    """End the block if it raises RelossError, and print the message; the damage of another run stops nothing."""
    try:
        yield
    except RelossError as error:
        say(f"skipped: {error}")
