"""What the page shows of one experiment: charts, images and examples, as far as the records hold them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from reloss.experiment.config import Experiment
from reloss.experiment.records import Records, RunRecord
from reloss.experiment.status import Status
from reloss.report.charts import Chart, Series, chart
from reloss.report.colours import loss_colour
from reloss.report.groups import Key, group_runs
from reloss.report.images import EmbeddedImage, embed_png
from reloss.report.surrogate_charts import shown_surrogates, surrogate_charts
from reloss.runtime.errors import RelossError
from reloss.runtime.files import read_json

MAX_GROUPS = 6
"""Groups of runs with a line in a chart, and with images and examples."""
MAX_EXAMPLES = 6
"""Examples of each kind."""
MAX_IMAGE_BYTES = 6_000_000
"""Size of all images of a page together."""

T = TypeVar("T")


@dataclass(frozen=True)
class Examples:
    """Examples that a run kept: rows with the same keys, by kind, such as right and wrong."""

    label: str
    source: str
    kinds: dict[str, list[dict[str, str]]]


@dataclass(frozen=True)
class RunGroup:
    """The runs of one loss with the same settings; the label lacks the settings that all groups share."""

    label: str
    loss: str
    runs: Sequence[RunRecord]


@dataclass
class Section:
    """What the page shows of one experiment.

    Attributes:
        config: the experiment.
        task: name of its task.
        about: one sentence about it.
        shared_settings: settings that all runs share.
        charts: training, and the surrogates.
        images: figures that the runs kept.
        examples: examples that the runs kept.
    """

    config: Experiment
    task: str
    about: str
    shared_settings: tuple[str, ...]
    charts: list[Chart] = field(default_factory=list)
    images: list[EmbeddedImage] = field(default_factory=list)
    examples: list[Examples] = field(default_factory=list)


@dataclass
class Collector:
    """Collects what a page shows, and what it lacks.

    Attributes:
        records: all records.
        damaged: messages about what cannot be shown.
        omitted: images that the page has no room for.
        bytes_left: room for images.
    """

    records: Records
    damaged: list[str]
    omitted: list[str] = field(default_factory=list)
    bytes_left: int = field(default_factory=lambda: MAX_IMAGE_BYTES)

    def attempt(self, name: object, read: Callable[..., T], *arguments: Any) -> T | None:
        """Return `read(*arguments)`; if that fails, return None and add a message about `name`."""
        try:
            return read(*arguments)
        except RelossError as error:
            self.damaged.append(str(error))
        except (AttributeError, IndexError, KeyError, OSError, TypeError, ValueError) as error:
            self.damaged.append(f"{name} cannot be shown ({type(error).__name__}: {error})")
        return None

    def images(self, folder: str) -> list[EmbeddedImage]:
        """Return the PNG files in a folder below the records, as long as the page has room for them."""
        images = []
        for path in sorted((self.records.folder / folder).glob("*.png")):
            image = self.attempt(path, embed_png, path, f"{folder}/{path.name}")
            if image is not None and len(image.uri) > self.bytes_left:
                self.omitted.append(image.source)
            elif image is not None:
                self.bytes_left -= len(image.uri)
                images.append(image)
        return images

    def examples(self, group: RunGroup) -> Examples | None:
        """Return the first examples of each kind that the first run of a group kept, if it kept any."""
        name = group.runs[0].name
        path = self.records.folder / name / "examples.json"
        return self.attempt(path, _read_examples, path, group.label, name) if path.exists() else None


def experiment_section(task: str, config: Experiment, about: str, collector: Collector) -> Section:
    """Return what there is to show of an experiment."""
    runs = [run for run in collector.records.runs if run.experiment == config.name]
    surrogates = collector.records.surrogates_of(config.name)
    groups, shared = run_groups(config, runs)
    section = Section(config, task, about, shared)
    section.charts += _present([collector.attempt(config.name, training_chart, config, groups, collector)])
    for loss, surrogate in shown_surrogates(runs, surrogates):
        charts = collector.attempt(surrogate.name, surrogate_charts, config, loss, surrogate) or []
        section.charts += [drawn for drawn in charts if drawn not in section.charts]  # the ordinary loss's only once
    section.images += collector.images(f"{config.name}/diagnostics")
    for group in groups[:MAX_GROUPS]:
        section.images += collector.images(group.runs[0].name)
        section.examples += _present([collector.examples(group)])
    return section


def _present(values: Iterable[T | None]) -> list[T]:
    return [value for value in values if value is not None]


def run_groups(config: Experiment, runs: Sequence[RunRecord]) -> tuple[list[RunGroup], tuple[str, ...]]:
    """Return the groups of runs, and the settings that they share.

    The ordinary loss comes first; the others follow by their mean score, the best first.
    """
    groups = group_runs(config, runs)
    shared = set.intersection(*(set(settings) for _, settings in groups)) if len(groups) > 1 else set()

    def order(key: Key) -> tuple[bool, float]:
        scores = [run.scores[config.score] for run in groups[key] if config.score in run.scores]
        return key[0] != config.ordinary_loss, -float(np.mean(scores)) if scores else np.inf

    labels = {key: " ".join([key[0], *(setting for setting in key[1] if setting not in shared)]) for key in groups}
    return [RunGroup(labels[key], key[0], groups[key]) for key in sorted(groups, key=order)], tuple(sorted(shared))


def training_chart(config: Experiment, groups: Sequence[RunGroup], collector: Collector) -> Chart | None:
    """Return the chart of the validation score during training: a line for the mean, a band from lowest to highest."""
    curves = [(group, _validation_curves(config, group, collector)) for group in groups]
    curves = [(group, runs) for group, runs in curves if runs]
    series, ends = [], []
    for group, runs in curves[:MAX_GROUPS]:
        epochs = sorted(set.intersection(*(set(run) for run in runs)))
        if not epochs:
            continue
        values = 100 * np.array([[run[epoch] for epoch in epochs] for run in runs])
        name = f"{group.label} ({len(runs)} {'seed' if len(runs) == 1 else 'seeds'})"
        mean, low, high = values.mean(0).tolist(), values.min(0).tolist(), values.max(0).tolist()
        series.append(Series(name, epochs, mean, low, high, colour=loss_colour(config, group.loss)))
        ends.append(f"{name} ends at {mean[-1]:.2f} %")
    hidden = len(curves) - MAX_GROUPS
    more = f"; {hidden} more groups of runs are in the table only" if hidden > 0 else ""
    title = f"Training: {config.score} on the validation split"
    return chart(f"{title}{more}", "epoch", f"{config.score}, %", series, f"{title} by epoch. {'; '.join(ends)}.")


def _validation_curves(config: Experiment, group: RunGroup, collector: Collector) -> list[Mapping[float, float]]:
    """Return the validation score by epoch for each finished run, or for each run if none has finished."""
    score = f"validation_{config.score}"
    finished = [run for run in group.runs if run.status == Status.FINISHED]
    curves = []
    for run in finished or group.runs:
        lines = collector.attempt(run.name, run.metrics) or []
        curves.append({line["epoch"]: line[score] for line in lines if "epoch" in line and score in line})
    return [curve for curve in curves if curve]


def _read_examples(path: Path, label: str, record: str) -> Examples:
    kinds = {
        kind: [{key: _text(value) for key, value in row.items()} for row in rows[:MAX_EXAMPLES]]
        for kind, rows in read_json(path).items()
    }
    return Examples(label, f"{record}/{path.name}", {kind: rows for kind, rows in kinds.items() if rows})


def _text(value: Any) -> str:
    return " / ".join(map(str, value)) if isinstance(value, list) else str(value)
