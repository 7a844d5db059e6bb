"""Results tables: published beside ours, every number with where it came from."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reloss.errors import UsageError, unknown
from reloss.experiment.config import Experiment
from reloss.experiment.record import read_summaries
from reloss.experiment.task import Task, tasks
from reloss.report.groups import Key, Summary, baseline, commits, group, scores, unfinished
from reloss.report.published import Published, read_published
from reloss.report.statistics import Difference, Sample, describe, paired_difference


@dataclass(frozen=True)
class Row:
    """One row: an experiment with a loss and settings, over seeds.

    Scores are in percent; where there is none, `missing` says why.
    """

    experiment: str
    loss: str
    settings: tuple[str, ...]
    score: str
    published: str
    ours: Sample | None
    difference: Difference | None
    is_baseline: bool
    spearman: float | None
    status: str
    command: str
    commits: tuple[str, ...]
    records: tuple[str, ...]
    missing: str


def table(name: str, runs: Path) -> list[Row]:
    """Return the rows of the table of task `name`: every experiment and loss, run or not.

    Raises:
        UsageError: there is no table of that name, or no folder `runs`.
    """
    if name not in tasks():
        raise unknown("table", name, tasks())
    if not runs.is_dir():
        raise UsageError(f"no folder of records at {runs}; name it with --runs, or begin with `reloss run`")
    task = tasks()[name]
    summaries = [summary for summary in read_summaries(runs) if summary["experiment"] in task.experiments]
    published = {(entry.experiment, entry.loss): entry for entry in read_published(task.folder / "published.yaml")}
    rows = []
    for make in task.experiments.values():
        rows += _rows(task, make(), summaries, published)
    return rows


def _rows(
    task: Task, config: Experiment, summaries: list[Summary], published: dict[tuple[str, str], Published]
) -> list[Row]:
    groups = group([summary for summary in summaries if summary["experiment"] == config.name])
    rows = []
    for loss in config.losses:
        entry = published.get((config.name, loss))
        elsewhere = entry if entry and entry.needs else None
        shown = entry.shown() if entry and not elsewhere else "none"
        variants = [groups[key] for key in sorted(groups) if key[0] == loss]
        rows += [_row(config, loss, mine, shown, groups) for mine in variants] or [_not_run(config, loss, shown)]
        if elsewhere:
            needs = f"needs {elsewhere.needs}"
            rows.append(_not_run(config, loss, elsewhere.shown(), missing=needs, status=needs))
    return rows


def _row(
    config: Experiment, loss: str, mine: list[Summary], published: str, groups: Mapping[Key, Sequence[Summary]]
) -> Row:
    ours, first = scores(mine, config.score), mine[0]
    reference = baseline(groups, config.ordinary_loss, first, config.score)
    is_baseline = reference is mine
    return Row(
        experiment=config.name,
        loss=loss,
        settings=tuple(first["settings"]),
        score=config.score,
        published=published,
        ours=describe(list(ours.values())) if ours else None,
        difference=None if is_baseline else paired_difference(ours, scores(reference, config.score)),
        is_baseline=is_baseline,
        spearman=_spearman(config, loss, mine, groups),
        status=_status(config, mine),
        command=first["environment"].get("command", f"reloss run {config.name} --loss {loss}"),
        commits=commits(mine),
        records=tuple(summary["record"] for summary in mine),
        missing="not finished",
    )


def _not_run(
    config: Experiment, loss: str, published: str, missing: str = "not run", status: str = "not run (no record)"
) -> Row:
    return Row(
        experiment=config.name,
        loss=loss,
        settings=(),
        score=config.score,
        published=published,
        ours=None,
        difference=None,
        is_baseline=False,
        spearman=None,
        status=status,
        command=f"reloss run {config.name} --loss {loss} --seed 0",
        commits=(),
        records=(),
        missing=missing,
    )


def _spearman(
    config: Experiment,
    loss: str,
    mine: list[Summary],
    groups: Mapping[Key, Sequence[Summary]],
) -> float | None:
    """Return how well the loss ranked held-out items; the ordinary loss's is measured beside each surrogate."""
    if loss == config.ordinary_loss:
        same = [s for others in groups.values() for s in others if s["protocol"] == mine[0]["protocol"]]
        measured = [s["surrogate"]["spearman_ordinary"] for s in same if "surrogate" in s]
    else:
        measured = [s["surrogate"]["spearman"] for s in mine if "surrogate" in s]
    return measured[0] if measured else None


def _status(config: Experiment, mine: list[Summary]) -> str:
    settings = mine[0]["settings"]
    if config.paper.startswith("reduced"):
        kind = " ".join([config.paper, *settings])
    elif settings:
        kind = f"reduced: {' '.join(settings)}"
    else:
        kind = "not in the paper" if config.paper.startswith("none") else "full protocol"
    return "; ".join([kind, *unfinished(mine)])


HEADERS = (
    "experiment",
    "loss",
    "published",
    "ours, %",
    "error, %",
    "difference to baseline",
    "Spearman",
    "n",
    "status",
)
PROVENANCE = ("command", "commit", "record")
NOTE = (
    "Ours: mean ± standard deviation over n seeds. Difference: paired by seed with the ordinary loss under the same "
    "protocol (of several, the one that is best on the validation split), with its 95 % t interval. Spearman: of minus "
    "the loss with the metric, on held-out recorded items."
)


def cells(row: Row) -> list[str]:
    """Return the texts of a row, in the order of HEADERS and PROVENANCE."""
    ours = error = row.missing
    if row.ours is not None:
        ours, error = row.ours.shown(), row.ours._replace(mean=100 - row.ours.mean).shown()
    spearman = f"{row.spearman:.3f}" if row.spearman is not None else "not measured"
    return [
        row.experiment,
        row.loss,
        row.published,
        ours,
        error,
        _shown_difference(row),
        spearman,
        str(row.ours.n if row.ours else 0),
        row.status,
        f"`{row.command}`",
        ", ".join(row.commits) or "none",
        ", ".join(row.records) or "none",
    ]


def _shown_difference(row: Row) -> str:
    if row.difference is None:
        return row.missing if row.ours is None else "is the baseline" if row.is_baseline else "no paired seed"
    return row.difference.shown()


def render(rows: list[Row], format: str) -> str:
    """Return the table as `md`, `csv`, `tex` (booktabs) or `json`.

    Raises:
        UsageError: another format.
    """
    texts = [cells(row) for row in rows]
    if format == "tex":  # no room for commands and records
        return written("tex", HEADERS, [text[: len(HEADERS)] for text in texts], NOTE, [])
    return written(format, [*HEADERS, *PROVENANCE], texts, NOTE, [asdict(row) for row in rows])


def written(
    format: str, headers: Sequence[str], texts: Sequence[Sequence[str]], note: str, objects: Sequence[dict[str, Any]]
) -> str:
    """Return a table as `md` with a note, `csv`, `tex` (booktabs) or, of its rows as objects, `json`.

    Raises:
        UsageError: another format.
    """
    if format == "json":
        return json.dumps(objects, indent=2, ensure_ascii=False)
    if format == "csv":
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([headers, *texts])
        return out.getvalue().rstrip("\n")
    if format == "md":
        return markdown(headers, texts, note)
    if format == "tex":
        return latex(headers, texts)
    raise UsageError(f"unknown format '{format}'; valid: md, csv, tex, json")


def markdown(headers: Sequence[str], texts: Sequence[Sequence[str]], note: str) -> str:
    """Return a Markdown table with a note below it."""
    lines = ["| " + " | ".join(headers) + " |", "|" + " --- |" * len(headers)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in text) + " |" for text in texts]
    return "\n".join([*lines, "", note])


def latex(headers: Sequence[str], texts: Sequence[Sequence[str]]) -> str:
    """Return a LaTeX table with booktabs' rules."""
    special: dict[str, str] = {character: f"\\{character}" for character in "_%&#${}"}
    special |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}

    def escape(text: str) -> str:
        return "".join(special.get(character, character) for character in text)

    body = [" & ".join(map(escape, text)) + r" \\" for text in texts]
    head = " & ".join(map(escape, headers)) + r" \\"
    begin = rf"\begin{{tabular}}{{{'l' * len(headers)}}}"
    return "\n".join([begin, r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"])
