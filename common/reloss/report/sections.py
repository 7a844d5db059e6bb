"""What a page shows of one experiment: curves, pictures and examples, as far as its records hold them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from reloss.experiment.config import LEARNED_LOSSES, Experiment
from reloss.experiment.records import Records, RunRecord, SurrogateRecord
from reloss.pipeline.checkpoint_ranking import read_picture
from reloss.report.charts import Chart, Series, chart
from reloss.report.groups import group
from reloss.report.pictures import Picture, read_png
from reloss.runtime.errors import RelossError
from reloss.runtime.files import read_json

LINES = 6  # losses in a chart, and kinds of runs with pictures and examples
EXAMPLES = 6  # of a kind
PICTURE_BYTES = 6_000_000  # in the page, together; pictures beyond are left out, and said to be
T = TypeVar("T")


@dataclass(frozen=True)
class Examples:
    """Examples that a record left: kinds, such as right and wrong, of rows with equal keys."""

    label: str
    source: str
    kinds: dict[str, list[dict[str, str]]]


@dataclass
class Section:
    """What the page shows of one experiment."""

    name: str
    task: str
    about: str
    paper: str
    common: tuple[str, ...]
    charts: list[Chart] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    examples: list[Examples] = field(default_factory=list)


@dataclass
class Reading:
    """The records that are read, what was wrong in them, and what was left out of the page."""

    records: Records
    damaged: list[str]
    left_out: list[str] = field(default_factory=list)
    bytes_left: int = field(default_factory=lambda: PICTURE_BYTES)

    def attempt(self, what: object, read: Callable[..., T], *arguments: Any) -> T | None:
        """Return what `read` makes of the arguments, or None where it fails on `what`, which is then said."""
        try:
            return read(*arguments)
        except RelossError as error:
            self.damaged.append(str(error))
        except (AttributeError, IndexError, KeyError, OSError, TypeError, ValueError) as error:
            self.damaged.append(f"{what} cannot be shown ({type(error).__name__}: {error})")
        return None


@dataclass(frozen=True)
class Kind:
    """The records of one loss with the same settings, over seeds; `label` leaves out what all kinds share."""

    label: str
    loss: str
    summaries: list[RunRecord]


def section(task: str, config: Experiment, told: str, reading: Reading) -> Section:
    """Return what there is to show of an experiment."""
    mine = [summary for summary in reading.records.runs if summary.experiment == config.name]
    kinds, common = kinds_of(config, mine)
    shown = Section(config.name, task, told.partition("\n")[0], config.paper, common)
    shown.charts += _present([reading.attempt(config.name, training, config, kinds, reading)])
    for loss, surrogate in surrogates_of(config, mine, reading.records.surrogates_of(config.name)):
        shown.charts += reading.attempt(surrogate.name, surrogate_charts, config, loss, surrogate) or []
    shown.pictures += pictures(f"{config.name}/diagnostics", reading)
    for kind in kinds[:LINES]:
        shown.pictures += pictures(kind.summaries[0].name, reading)
        shown.examples += _present([examples(kind, reading)])
    return shown


def _present(values: Iterable[T | None]) -> list[T]:
    return [value for value in values if value is not None]


def kinds_of(config: Experiment, summaries: Sequence[RunRecord]) -> tuple[list[Kind], tuple[str, ...]]:
    """Return the kinds of records, the ordinary loss first, then by their mean score; and the settings all share."""
    groups = group(summaries)
    shared = set.intersection(*(set(settings) for _, settings in groups)) if len(groups) > 1 else set()

    def order(item: tuple[tuple[str, tuple[str, ...]], list[RunRecord]]) -> tuple[bool, float]:
        found = [summary.scores[config.score] for summary in item[1] if config.score in summary.scores]
        return item[0][0] != config.ordinary_loss, -float(np.mean(found)) if found else np.inf

    kinds = [
        Kind(" ".join([loss, *(setting for setting in settings if setting not in shared)]), loss, mine)
        for (loss, settings), mine in sorted(groups.items(), key=order)
    ]
    return kinds, tuple(sorted(shared))


def training(config: Experiment, kinds: Sequence[Kind], reading: Reading) -> Chart | None:
    """Return the score on the validation split during training: mean over seeds, with a band from least to largest."""
    metric, series, ends = f"validation_{config.score}", [], []
    logs = [(kind, _logs(kind, metric, reading)) for kind in kinds]
    drawn = [(kind, runs) for kind, runs in logs if runs]
    for slot, (kind, runs) in enumerate(drawn[:LINES]):
        common = sorted(set.intersection(*(set(run) for run in runs)))
        if not common:
            continue
        values = 100 * np.array([[run[x] for x in common] for run in runs])
        name = f"{kind.label} ({len(runs)} {'seed' if len(runs) == 1 else 'seeds'})"
        mean = values.mean(0)
        series.append(Series(name, common, mean.tolist(), values.min(0).tolist(), values.max(0).tolist(), slot=slot))
        ends.append(f"{name} ends at {mean[-1]:.2f} %")
    more = f"; {len(drawn) - LINES} more kinds are in the table only" if len(drawn) > LINES else ""
    shown = f"Training: {config.score} on the validation split"
    return chart(f"{shown}{more}", "epoch", f"{config.score}, %", series, f"{shown} by epoch. {'; '.join(ends)}.")


def _logs(kind: Kind, metric: str, reading: Reading) -> list[dict[float, float]]:
    """Return by run the metric at each epoch: of finished runs, or of all where none has finished."""
    finished = [summary for summary in kind.summaries if summary.status == "finished"]
    found = []
    for summary in finished or kind.summaries:
        lines = reading.attempt(summary.name, summary.metrics) or []
        values = {line["epoch"]: line[metric] for line in lines if _number(line, "epoch") and _number(line, metric)}
        found += [values] if values else []
    return found


def _number(line: Any, name: str) -> bool:
    return isinstance(line, dict) and isinstance(line.get(name), int | float)


def surrogates_of(
    config: Experiment, summaries: Sequence[RunRecord], surrogates: Sequence[SurrogateRecord]
) -> list[tuple[str, SurrogateRecord]]:
    """Return of each learned loss the surrogate that most records were trained with; without records, the first."""
    known = {surrogate.reference: surrogate for surrogate in surrogates}
    used = {loss: Counter[str]() for loss in LEARNED_LOSSES}
    for summary in summaries:
        if summary.loss in used and summary.surrogate:
            used[summary.loss][summary.surrogate] += 1
    chosen = [(loss, counts.most_common(1)[0][0]) for loss, counts in used.items() if counts]
    if not chosen:
        return [("reloss", surrogate) for surrogate in surrogates[:1]]
    return [(loss, known[reference]) for loss, reference in chosen if reference in known]


def surrogate_charts(config: Experiment, loss: str, surrogate: SurrogateRecord) -> list[Chart]:
    """Return a surrogate's charts: both losses against the metric, what was learned, and how the learning went.

    Raises:
        RelossError: its picture or history is damaged; also KeyError and the like where they lack something.
    """
    drawn = read_picture(surrogate) or {}
    name = f"{loss} {surrogate.name.rpartition('/')[2][:6]}"
    found: list[Chart | None] = []
    if "items" in drawn:
        rho = {"ordinary": surrogate.fit["spearman_ordinary"], "surrogate": surrogate.fit["spearman"]}
        for slot, (key, label) in enumerate((("ordinary", config.ordinary_loss), ("surrogate", name))):
            found.append(_against_metric(drawn["items"], key, label, surrogate.metric, rho[key], slot))
    if "curve" in drawn:
        found.append(_curve(drawn["curve"], config.ordinary_loss, name))
    if "examples" in drawn:
        found.append(_examples_chart(drawn["examples"], config.ordinary_loss, name))
    return _present([*found, _history(surrogate, name)])


Values = Mapping[str, Sequence[float]]


def _against_metric(items: Values, key: str, label: str, metric: str, rho: float, slot: int) -> Chart | None:
    alt = (
        f"Scatter of the loss {label} against {metric} of {len(items['metric'])} held-out recorded items; the rank "
        f"correlation of minus the loss with the metric is {rho:.3f}."
    )
    points = [Series(label, items["metric"], items[key], kind="points", slot=slot)]
    return chart(f"{label} against {metric}, ρ = {rho:.3f}", f"{metric} of an item", label, points, alt)


def _curve(curve: Values, ordinary: str, name: str) -> Chart | None:
    lines = [
        Series(label, curve["probability"], curve[key], slot=slot)
        for slot, (key, label) in enumerate((("ordinary", ordinary), ("surrogate", name)))
    ]
    alt = f"The learned loss {name} and {ordinary} against the target's probability, less their value at 1."
    return chart("The learned loss as a curve", "probability of the target", "loss, less that at 1", lines, alt)


def _examples_chart(examples: Values, ordinary: str, name: str) -> Chart | None:
    points = [Series(name, examples["ordinary"], examples["surrogate"], kind="points", slot=1)]
    alt = f"Scatter of the learned loss {name} against {ordinary}, of {len(examples['ordinary'])} single examples."
    return chart("The learned loss, example by example", f"{ordinary} of an example", name, points, alt)


def _history(surrogate: SurrogateRecord, name: str) -> Chart | None:
    lines = [line for line in surrogate.history() if _number(line, "step")]
    series = [
        Series(label, [line["step"] for line in kept], [line[key] for line in kept], slot=slot)
        for slot, (key, label) in enumerate((("spearman", "recorded items"), ("spearman_synthetic", "synthetic items")))
        if (kept := [line for line in lines if _number(line, key)])
    ]
    alt = f"Spearman's rank correlation of minus the loss {name} with the metric, on held-out items, as it is learned."
    return chart(f"Learning {name}", "step", "Spearman, held-out items", series, alt)


def pictures(folder: str, reading: Reading) -> list[Picture]:
    """Return the pictures in a folder below the records, as long as the page has room for them."""
    found = []
    for path in sorted((reading.records.folder / folder).glob("*.png")):
        picture = reading.attempt(path, read_png, path, f"{folder}/{path.name}")
        if picture is None:
            continue
        if len(picture.uri) > reading.bytes_left:
            reading.left_out.append(f"{folder}/{path.name}")
            continue
        reading.bytes_left -= len(picture.uri)
        found.append(picture)
    return found


def examples(kind: Kind, reading: Reading) -> Examples | None:
    """Return the first examples of each kind that the first record of a kind of run left, if it did."""
    record = kind.summaries[0].name
    path = reading.records.folder / record / "examples.json"
    return reading.attempt(path, _read_examples, path, kind.label, record) if path.exists() else None


def _read_examples(path: Path, label: str, record: str) -> Examples:
    kinds = {
        name: [{key: _told(value) for key, value in row.items()} for row in rows[:EXAMPLES]]
        for name, rows in read_json(path).items()
    }
    return Examples(label, f"{record}/{path.name}", {name: rows for name, rows in kinds.items() if rows})


def _told(value: Any) -> str:
    return " / ".join(map(str, value)) if isinstance(value, list) else str(value)
