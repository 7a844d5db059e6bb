"""`reloss report`: one self-contained HTML page about all records below a folder."""

from __future__ import annotations

import base64
import hashlib
import inspect
import re
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from reloss.experiment.config import Experiment, Scope
from reloss.experiment.environment import commit, versions
from reloss.experiment.records import Records, RunRecord, read_records
from reloss.experiment.task import tasks
from reloss.report.ablation_table import ablation_rows, ablation_table, started_ablations
from reloss.report.correlation_table import MEASURES, correlation_rows, correlation_table
from reloss.report.forest import forest
from reloss.report.sections import Collector, Section, experiment_section
from reloss.report.statistics import Side
from reloss.report.table import Missing, cell_text, sort_value
from reloss.report.tables import existing
from reloss.report.task_table import TaskRow, difference_cell, task_rows
from reloss.runtime.files import write_output
from reloss.runtime.text import printable

TEMPLATES = Path(__file__).parent / "templates"
WATCH_SECONDS = 15
SCOPES = {
    Scope.PAPER: "In the paper",
    Scope.REDUCED: "Smaller than in the paper",
    Scope.EXTRA: "Not in the paper",
}


def write_report(runs: Path, out: Path, refresh: int = 0) -> int:
    """Write the page about the records below `runs` to the file `out`; return its size in bytes.

    Args:
        runs: folder of the records.
        out: file of the page, replaced as a whole.
        refresh: seconds after which a browser loads the page again; 0 for never.

    Raises:
        UsageError: there is no folder `runs`, or `out` is no file to write; see `write_output`.
        RelossError: the page cannot be written.
    """
    text = page(runs, out, refresh)
    write_output(out, text)
    return len(text.encode(errors="replace"))


def watch_report(runs: Path, out: Path, seconds: int = WATCH_SECONDS) -> NoReturn:
    """Write the page again and again until Ctrl-C; then write it once more, without the refresh.

    Raises:
        UsageError, RelossError: as `write_report`.
        KeyboardInterrupt: Ctrl-C.
    """
    try:
        while True:
            write_report(runs, out, seconds)
            time.sleep(seconds)
    finally:
        write_report(runs, out)


def page(runs: Path, out: Path = Path("report.html"), refresh: int = 0) -> str:
    """Return the page as HTML; see `write_report`. Damaged records and files are skipped and named on the page.

    Raises:
        UsageError: there is no folder `runs`.
    """
    damaged: list[str] = []
    records = read_records(existing(runs), damaged)
    damaged += unknown_records(records.runs)
    collector = Collector(records, damaged)
    rows = [(name, row) for name, task in tasks().items() for row in task_rows(task, records.runs)]
    style, script = (Markup((TEMPLATES / name).read_text(encoding="utf-8")) for name in ("report.css", "report.js"))
    content = {"sections": _sections(records, collector), **_tables(records)}  # these add to `damaged` and `omitted`
    text = _templates([row for _, row in rows]).get_template("report.html.j2").render(
        **content,
        style=style,
        script=script,
        policy=policy(style, script),
        folder=runs,
        command=_command(runs, out, refresh),
        refresh=refresh,
        side=Side,
        tasks=list(tasks()),
        rows=rows,
        forest=forest(rows),
        runs=records.runs,
        environments=environments(records.runs),
        statuses=Counter(run.status for run in records.runs),
        damaged=damaged,
        omitted=collector.omitted,
        commit=commit(),
        version=versions()["reloss"],
    )  # fmt: skip
    return printable(text)


def _command(runs: Path, out: Path, refresh: int) -> str:
    """Return the command that writes the page, to be pasted into a shell."""
    words = ["reloss", "report", "--runs", str(runs), "--out", str(out)]
    return shlex.join([*words, "--watch"] if refresh else words)


def _tables(records: Records) -> dict[str, Any]:
    """Return the rows and cells of the tables of correlations and of the ablation."""
    correlation, ablation = correlation_rows(records), started_ablations(ablation_rows(records))
    measures, ablated = correlation_table(correlation).select(MEASURES), ablation_table(ablation)
    return {
        "measures": measures.headers,
        "correlation": list(zip(correlation, measures.rows, strict=True)),
        "ablation_headers": ablated.headers,
        "ablation": list(zip(ablation, ablated.rows, strict=True)),
    }


def _first_line(make: Callable[[], Experiment]) -> str:
    """Return the first line of an experiment's docstring; several experiments can share one function."""
    return (inspect.getdoc(getattr(make, "func", make)) or "").partition("\n")[0]


def _sections(records: Records, collector: Collector) -> list[Section]:
    """Return the sections of the experiments with records."""
    recorded = {run.experiment for run in records.runs} | {surrogate.experiment for surrogate in records.surrogates}
    return [
        experiment_section(task.name, make(), _first_line(make), collector)
        for task in tasks().values()
        for name, make in task.experiments.items()
        if name in recorded
    ]


def _templates(rows: Sequence[TaskRow]) -> Environment:
    """Return the templates with their filters. Every text is escaped."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    shared: dict[str, set[str]] = {}
    for row in rows:
        if row.records:
            shared.setdefault(row.experiment, set(row.settings)).intersection_update(row.settings)
    environment.filters |= {
        "own_settings": lambda row: [text for text in row.settings if text not in shared.get(row.experiment, ())],
        "difference": difference_cell,
        "text": cell_text,
        "sort_value": sort_value,
        "missing": Missing,
        "is_missing": lambda cell: isinstance(cell, Missing),
        "scope": scope_sentence,
        "breakable": lambda text, after="/_.=,": Markup(re.sub(f"([{after}])", r"\1<wbr>", str(escape(text)))),
    }
    return environment


def policy(style: str, script: str) -> str:
    """Return a Content-Security-Policy that allows this style, this script and embedded images, and nothing else."""

    def hashed(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; style-src {hashed(style)}; script-src {hashed(script)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def scope_sentence(config: Experiment) -> str:
    """Return how an experiment relates to the paper."""
    return f"{SCOPES[config.scope]}: {config.scope_note}."


def unknown_records(runs: Iterable[RunRecord]) -> list[str]:
    """Return a message for each record that no table shows, because its experiment or its loss is unknown here."""
    losses = {name: make().losses for task in tasks().values() for name, make in task.experiments.items()}
    return [
        f"{run.name}: no table shows this record, because its experiment or its loss is unknown here"
        for run in runs
        if run.loss not in losses.get(run.experiment, ())
    ]


def environments(runs: Sequence[RunRecord]) -> dict[str, tuple[int, str]]:
    """Return, by the name of a record, the number of its environment, counted from 1, and its description."""
    numbers: dict[str, int] = {}
    descriptions = {run.name: _describe(run.environment) for run in runs}
    for description in descriptions.values():
        numbers.setdefault(description, len(numbers) + 1)
    return {name: (numbers[description], description) for name, description in descriptions.items()}


def _describe(environment: dict[str, Any]) -> str:
    packages, devices = environment.get("versions"), environment.get("devices")
    if not isinstance(packages, dict) or not isinstance(devices, dict):
        return "not recorded"
    installed = ", ".join(f"{name} {version}" for name, version in packages.items() if version != "not installed")
    gpus = ", ".join(map(str, devices.get("gpus") or [])) or "no GPU"
    return f"{devices.get('cpu', 'unknown processor')}, {devices.get('threads', '?')} threads, {gpus}; {installed}"
