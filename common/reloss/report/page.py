"""`reloss report`: one page, whole in itself, of everything that lies below a folder of records."""

from __future__ import annotations

import base64
import hashlib
import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from reloss.errors import RelossError
from reloss.experiment.config import LEARNED_LOSSES, Experiment
from reloss.experiment.diagnose import read_picture
from reloss.experiment.environment import commit, versions
from reloss.experiment.record import read_summaries
from reloss.experiment.task import Task, tasks
from reloss.experiment.tracking import read_metrics
from reloss.files import read_json, write_text
from reloss.report import ablation, correlation
from reloss.report.charts import Chart, Series, chart
from reloss.report.groups import Summary, group
from reloss.report.pictures import Picture
from reloss.report.pictures import read_picture as read_png
from reloss.report.tables import Row, existing, shown_difference, task_rows

TEMPLATES = Path(__file__).parent / "templates"
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
    """The folder of records that is read, what was wrong in it, and what was left out of the page."""

    runs: Path
    summaries: list[Summary]
    damaged: list[str]
    left_out: list[str] = field(default_factory=list)
    bytes_left: int = PICTURE_BYTES

    def attempt(self, what: str, read: Callable[[], T]) -> T | None:
        """Return what `read` returns, or None where it fails, which is then said in the page."""
        try:
            return read()
        except RelossError as error:
            self.damaged.append(str(error))
        except (AttributeError, IndexError, KeyError, OSError, TypeError, ValueError) as error:
            self.damaged.append(f"{what} cannot be shown ({type(error).__name__}: {error})")
        return None


def write_report(runs: Path, out: Path) -> int:
    """Write the page about the records below `runs` to the file `out`; returns its size in bytes.

    Raises:
        UsageError: there is no folder `runs`.
        RelossError: the page cannot be written.
    """
    text = page(runs)
    write_text(out, text)
    return len(text.encode())


def page(runs: Path) -> str:
    """Return the page as HTML. Records and files that are damaged are named in it and left out.

    Raises:
        UsageError: there is no folder `runs`.
    """
    damaged: list[str] = []
    reading = Reading(runs, read_summaries(existing(runs), damaged), damaged)
    damaged += unknown_records(reading.summaries)
    rows = {name: task_rows(task, reading.summaries) for name, task in tasks().items()}
    sections = [
        section(task, make(), inspect.getdoc(make) or "", reading)
        for task in tasks().values()
        for make in task.experiments.values()
        if any((runs / make().name).glob("*/seed*/summary.json")) or any((runs / make().name).glob("surrogates/*"))
    ]
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"chip": chip, "difference": shown_difference, "ablation_cells": ablation.cells}
    style, script = (Markup((TEMPLATES / name).read_text(encoding="utf-8")) for name in ("report.css", "report.js"))
    template = environment.get_template("report.html.j2")
    return template.render(
        style=style,
        script=script,
        policy=policy(style, script),
        runs=runs,
        tasks=list(tasks()),
        rows=[(name, row) for name, each in rows.items() for row in each],
        forest=forest([(name, row) for name, each in rows.items() for row in each]),
        correlation=correlation.rows_of(runs, reading.summaries, damaged),
        rankings=correlation.RANKINGS,
        ablation=reading.attempt("the ablation", lambda: ablation_run(runs, reading.summaries)) or [],
        ablation_headers=ablation.HEADERS,
        sections=sections,
        summaries=reading.summaries,
        environments=environments(reading.summaries),
        statuses=Counter(summary["status"] for summary in reading.summaries),
        damaged=list(dict.fromkeys(damaged)),
        left_out=reading.left_out,
        commit=commit(),
        version=versions()["reloss"],
    )


def policy(style: str, script: str) -> str:
    """Return a Content-Security-Policy that allows this style, this script and pictures in the page, nothing else."""

    def allowed(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; style-src {allowed(style)}; script-src {allowed(script)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def chip(status: str) -> tuple[str, str]:
    """Return a status as its first words, such as `reduced`, and how or why."""
    head, _, tail = re.sub(r"\s*[:;(,]\s*", "\0", status, count=1).partition("\0")
    return head, tail.removesuffix(")") if f"{head} (" in status else tail


def unknown_records(summaries: Iterable[Summary]) -> list[str]:
    """Return what to say of records that no table holds: of experiments or losses that are not known here."""
    losses = {name: make().losses for task in tasks().values() for name, make in task.experiments.items()}
    return [
        f"{summary['record']} is of an experiment or a loss that is not known here, and in no table"
        for summary in summaries
        if summary["loss"] not in losses.get(summary["experiment"], ())
    ]


def ablation_run(runs: Path, summaries: Sequence[Summary]) -> list[ablation.AblationRow]:
    """Return the ablation's rows of the experiments of which variants beyond baseline and centre were run."""
    rows = ablation.rows_of(runs, summaries)
    run = {row.experiment for row in rows if row.factor not in ("baseline", "centre") and not _absent(row.status)}
    return [row for row in rows if row.experiment in run]


def _absent(status: str) -> bool:
    return status.startswith("not run")


def environments(summaries: Sequence[Summary]) -> dict[str, tuple[str, str]]:
    """Return by record the number of its environment, counted from 1, and what that is."""
    numbers: dict[str, int] = {}
    found = {}
    for summary in summaries:
        told = _environment(summary["environment"])
        numbers.setdefault(told, len(numbers) + 1)
        found[summary["record"]] = (str(numbers[told]), told)
    return found


def _environment(environment: dict[str, Any]) -> str:
    packages, devices = environment.get("versions"), environment.get("devices")
    if not isinstance(packages, dict) or not isinstance(devices, dict):
        return "not recorded"
    present = ", ".join(f"{name} {version}" for name, version in packages.items() if version != "not installed")
    gpus = ", ".join(map(str, devices.get("gpus") or [])) or "no GPU"
    return f"{devices.get('cpu', 'unknown processor')}, {devices.get('threads', '?')} threads, {gpus}; {present}"


# Differences to the baseline, as a figure


@dataclass(frozen=True)
class Interval:
    """One paired difference and its interval, in percent of the figure's width; arrows where it goes beyond."""

    task: str
    row: Row
    low: float
    high: float
    at: float
    beyond: tuple[bool, bool]


@dataclass(frozen=True)
class Forest:
    """All paired differences of learned losses on one scale, from -limit to +limit points."""

    limit: float
    intervals: list[Interval]
    above: int
    below: int
    within: int
    single: int


def forest(rows: Sequence[tuple[str, Row]]) -> Forest:
    """Return the differences of learned losses to their baseline; the scale holds most intervals, and all means."""
    compared = [(task, row, row.difference) for task, row in rows if row.difference and row.loss in LEARNED_LOSSES]
    ends = [max(abs(d.low), abs(d.high)) for _, _, d in compared if d.low is not None and d.high is not None]
    widest = max([float(np.quantile(ends, 0.8)) if ends else 0.0, *(abs(d.mean) for _, _, d in compared)], default=0.0)
    limit = float(max(1, np.ceil(widest)))

    def place(value: float) -> float:
        return round(50 + 50 * max(-1.0, min(1.0, value / limit)), 2)

    intervals, signs = [], Counter[str]()
    for task, row, d in compared:
        low, high = (d.mean, d.mean) if d.low is None or d.high is None else (d.low, d.high)
        signs["single" if d.low is None else "above" if low > 0 else "below" if high < 0 else "within"] += 1
        beyond = low < -limit, high > limit
        intervals.append(Interval(task, row, place(low), place(high), place(d.mean), beyond))
    return Forest(limit, intervals, signs["above"], signs["below"], signs["within"], signs["single"])


# One experiment


@dataclass(frozen=True)
class Kind:
    """The records of one loss with the same settings, over seeds; `label` leaves out what all kinds share."""

    label: str
    loss: str
    summaries: list[Summary]


def section(task: Task, config: Experiment, told: str, reading: Reading) -> Section:
    """Return what there is to show of an experiment."""
    mine = [summary for summary in reading.summaries if summary["experiment"] == config.name]
    kinds, common = kinds_of(config, mine)
    shown = Section(config.name, task.name, told.partition("\n")[0], config.paper, common)
    shown.charts += _present([reading.attempt(config.name, lambda: training(config, kinds, reading))])
    for loss, folder in surrogates_of(config, mine, reading.runs):
        drawn = reading.attempt(f"the surrogate {folder}", lambda: surrogate_charts(config, loss, folder))
        shown.charts += drawn or []
    for kind in kinds[:LINES]:
        shown.pictures += pictures(kind, reading)
        shown.examples += _present([examples(kind, reading)])
    return shown


def _present(values: Iterable[T | None]) -> list[T]:
    return [value for value in values if value is not None]


def kinds_of(config: Experiment, summaries: Sequence[Summary]) -> tuple[list[Kind], tuple[str, ...]]:
    """Return the kinds of records, the ordinary loss first, then by their mean score; and the settings all share."""
    groups = group(summaries)
    shared = set.intersection(*(set(settings) for _, settings in groups)) if len(groups) > 1 else set()

    def order(item: tuple[tuple[str, tuple[str, ...]], list[Summary]]) -> tuple[bool, float]:
        found = [summary["scores"][config.score] for summary in item[1] if config.score in summary["scores"]]
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
    finished = [summary for summary in kind.summaries if summary["status"] == "finished"]
    found = []
    for summary in finished or kind.summaries:
        path = reading.runs / summary["record"] / "metrics.jsonl"
        lines = reading.attempt(str(path), lambda path=path: read_metrics(path)) or []  # type: ignore[misc]
        values = {line["epoch"]: line[metric] for line in lines if _number(line, "epoch") and _number(line, metric)}
        found += [values] if values else []
    return found


def _number(line: Any, name: str) -> bool:
    return isinstance(line, dict) and isinstance(line.get(name), int | float)


def surrogates_of(config: Experiment, summaries: Sequence[Summary], runs: Path) -> list[tuple[str, Path]]:
    """Return of each learned loss the folder of the surrogate that most records were trained with, else the first."""
    found = []
    used = {loss: Counter[str]() for loss in LEARNED_LOSSES}
    for summary in summaries:
        if summary["loss"] in used and "folder" in summary.get("surrogate", {}):
            used[summary["loss"]][summary["surrogate"]["folder"]] += 1
    for loss, counts in used.items():
        if counts:
            found.append((loss, runs / config.name / counts.most_common(1)[0][0]))
    if not found:
        learned = sorted((runs / config.name / "surrogates").glob("*/surrogate.json"))
        found += [("reloss", path.parent) for path in learned[:1]]
    return found


def surrogate_charts(config: Experiment, loss: str, folder: Path) -> list[Chart]:
    """Return a surrogate's pictures: both losses against the metric, what was learned, and how the learning went."""
    card = read_json(folder / "surrogate.json")
    fit, name = card["fit"], f"{loss} {folder.name[:6]}"
    drawn = read_picture(config.name, folder) or {}
    found: list[Chart | None] = []
    if "items" in drawn:
        items = drawn["items"]
        for key, label, slot, rho in (
            ("ordinary", config.ordinary_loss, 0, fit.get("spearman_ordinary")),
            ("surrogate", name, 1, fit.get("spearman")),
        ):
            title = f"{label} against {card['metric']}: ρ = {rho:.3f}"
            alt = (
                f"Scatter of the loss {label} against {card['metric']} of {len(items['metric'])} held-out recorded items; "
                f"the rank correlation of minus the loss with the metric is {rho:.3f}."
            )
            points = [Series(label, items["metric"], items[key], kind="points", slot=slot)]
            found.append(chart(title, f"{card['metric']} of an item", label, points, alt))
    if "curve" in drawn:
        curve = drawn["curve"]
        lines = [
            Series(label, curve["probability"], curve[key], slot=slot)
            for slot, (key, label) in enumerate((("ordinary", config.ordinary_loss), ("surrogate", name)))
        ]
        alt = f"The learned loss {name} and {config.ordinary_loss} against the target's probability, less their value at 1."
        title = "The learned loss as a curve"
        found.append(chart(title, "probability of the target", "loss, less its value at 1", lines, alt))
    if "examples" in drawn:
        each = drawn["examples"]
        points = [Series(name, each["ordinary"], each["surrogate"], kind="points", slot=1)]
        alt = f"Scatter of the learned loss {name} against {config.ordinary_loss}, of {len(each['ordinary'])} single examples."
        found.append(chart("The learned loss, example by example", config.ordinary_loss, name, points, alt))
    found.append(_history(folder, name))
    return _present(found)


def _history(folder: Path, name: str) -> Chart | None:
    lines = [line for line in read_metrics(folder / "history.jsonl") if _number(line, "step")]
    series = [
        Series(label, [line["step"] for line in kept], [line[key] for line in kept], slot=slot)
        for slot, (key, label) in enumerate((("spearman", "recorded items"), ("spearman_synthetic", "synthetic items")))
        if (kept := [line for line in lines if _number(line, key)])
    ]
    alt = f"Spearman's rank correlation of minus the loss {name} with the metric, on held-out items, while it is learned."
    return chart("Learning the surrogate", "step", "Spearman, held-out items", series, alt)


def pictures(kind: Kind, reading: Reading) -> list[Picture]:
    """Return the pictures that the first record of a kind left, as long as the page has room for them."""
    record = kind.summaries[0]["record"]
    found = []
    for path in sorted((reading.runs / record).glob("*.png")):
        picture = reading.attempt(str(path), lambda path=path: read_png(path, f"{record}/{path.name}"))  # type: ignore[misc]
        if picture is None:
            continue
        if len(picture.uri) > reading.bytes_left:
            reading.left_out.append(f"{record}/{path.name}")
            continue
        reading.bytes_left -= len(picture.uri)
        found.append(picture)
    return found


def examples(kind: Kind, reading: Reading) -> Examples | None:
    """Return the first examples of each kind that the first record of a kind of run left, if it did."""
    record = kind.summaries[0]["record"]
    path = reading.runs / record / "examples.json"
    if not path.exists():
        return None

    def read() -> Examples:
        found = {
            name: [{key: _told(value) for key, value in row.items()} for row in rows[:EXAMPLES]]
            for name, rows in read_json(path).items()
        }
        return Examples(kind.label, f"{record}/examples.json", {name: rows for name, rows in found.items() if rows})

    return reading.attempt(str(path), read)


def _told(value: Any) -> str:
    return " / ".join(map(str, value)) if isinstance(value, list) else str(value)
