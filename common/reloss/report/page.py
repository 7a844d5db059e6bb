"""`reloss report`: one page, whole in itself, of everything that lies below a folder of records."""

from __future__ import annotations

import base64
import hashlib
import inspect
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from reloss.experiment.config import LEARNED_LOSSES
from reloss.experiment.environment import commit, versions
from reloss.experiment.records import Records, RunRecord, read_records
from reloss.experiment.task import tasks
from reloss.report import ablation, correlation
from reloss.report.sections import Reading, section
from reloss.report.tables import Row, existing, shown_difference, task_rows
from reloss.runtime.files import write_text

TEMPLATES = Path(__file__).parent / "templates"


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
    records = read_records(existing(runs), damaged)
    summaries = records.runs
    damaged += unknown_records(summaries)
    reading = Reading(records, damaged)
    recorded = {run.experiment for run in records.runs} | {surrogate.experiment for surrogate in records.surrogates}
    rows = [(name, row) for name, task in tasks().items() for row in task_rows(task, summaries)]
    style, script = (Markup((TEMPLATES / name).read_text(encoding="utf-8")) for name in ("report.css", "report.js"))
    return _templates([row for _, row in rows]).get_template("report.html.j2").render(
        style=style,
        script=script,
        policy=policy(style, script),
        runs=runs,
        tasks=list(tasks()),
        rows=rows,
        forest=forest(rows),
        correlation=correlation.rows_of(records),
        measures=correlation.MEASURES,
        ablation=reading.attempt("the ablation", ablation_run, records) or [],
        ablation_headers=ablation.HEADERS,
        sections=[
            section(task.name, make(), inspect.getdoc(make) or "", reading)
            for task in tasks().values()
            for name, make in task.experiments.items()
            if name in recorded
        ],
        summaries=summaries,
        environments=environments(summaries),
        statuses=Counter(summary.status for summary in summaries),
        damaged=damaged,
        left_out=reading.left_out,
        commit=commit(),
        version=versions()["reloss"],
    )  # fmt: skip


def _templates(rows: Sequence[Row]) -> Environment:
    """Return the templates, in which every text is escaped, with the filters that they use."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    shared: dict[str, set[str]] = {}
    for row in rows:
        if row.records:
            shared.setdefault(row.experiment, set(row.settings)).intersection_update(row.settings)
    environment.filters |= {
        "chip": chip,
        "difference": shown_difference,
        "own": lambda row: [setting for setting in row.settings if setting not in shared.get(row.experiment, ())],
        "stands_for": stands_for,
        "number": leading_number,
        "measured": correlation.measured,
        "ablation_cells": ablation.cells,
        "breakable": lambda text: Markup(re.sub("([/_.=,])", r"\1<wbr>", str(escape(text)))),
    }
    return environment


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


def leading_number(text: str) -> float | None:
    """Return the number that a cell begins with, to sort by, such as that of `-0.25 [-1, 0.5]`."""
    found = re.match(r"[+-]?\d+(\.\d+)?(?=$|\s)", text)
    return float(found[0]) if found else None


def stands_for(paper: str) -> str:
    """Return what an experiment has to do with the paper, as a sentence."""
    kind, colon, why = paper.partition(": ")
    said = {"none": "Not in the paper", "reduced": "Smaller than in the paper"}.get(kind) if colon else None
    return f"{said}: {why}" if said else f"Stands for: {paper}"


def unknown_records(summaries: Iterable[RunRecord]) -> list[str]:
    """Return what to say of records that no table holds: of experiments or losses that are not known here."""
    losses = {name: make().losses for task in tasks().values() for name, make in task.experiments.items()}
    return [
        f"{summary.name} is of an experiment or a loss that is not known here, and in no table"
        for summary in summaries
        if summary.loss not in losses.get(summary.experiment, ())
    ]


def ablation_run(records: Records) -> list[ablation.AblationRow]:
    """Return the ablation's rows of the experiments of which variants beyond baseline and centre were run."""
    rows = ablation.rows_of(records)
    run = {row.experiment for row in rows if row.factor not in ("baseline", "centre") and not _absent(row.status)}
    return [row for row in rows if row.experiment in run]


def _absent(status: str) -> bool:
    return status.startswith("not run")


def environments(summaries: Sequence[RunRecord]) -> dict[str, tuple[str, str]]:
    """Return by record the number of its environment, counted from 1, and what that is."""
    numbers: dict[str, int] = {}
    found = {}
    for summary in summaries:
        told = _environment(summary.environment)
        numbers.setdefault(told, len(numbers) + 1)
        found[summary.name] = (str(numbers[told]), told)
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
    """Return the differences of learned losses to their baseline; the scale holds four of five."""
    compared = [(task, row, row.difference) for task, row in rows if row.difference and row.loss in LEARNED_LOSSES]
    ends = [max(abs(end) for end in (d.mean, d.low, d.high) if end is not None) for _, _, d in compared]
    limit = float(max(1, np.ceil(np.quantile(ends, 0.8, method="lower")))) if ends else 1.0

    def place(value: float) -> float:
        return round(50 + 50 * max(-1.0, min(1.0, value / limit)), 2)

    intervals, signs = [], Counter[str]()
    for task, row, d in compared:
        low, high = (d.mean, d.mean) if d.low is None or d.high is None else (d.low, d.high)
        signs["single" if d.low is None else "above" if low > 0 else "below" if high < 0 else "within"] += 1
        beyond = low < -limit, high > limit
        intervals.append(Interval(task, row, place(low), place(high), place(d.mean), beyond))
    return Forest(limit, intervals, signs["above"], signs["below"], signs["within"], signs["single"])
