"""Results tables: published beside ours, every number with where it came from."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reloss.experiment.config import FIXED, LEARNED_LOSSES, Experiment, differing, flat, override
from reloss.experiment.records import RunRecord, read_runs
from reloss.experiment.task import Task, tasks
from reloss.report.groups import Key, baseline, commits, group, rate_of, scores, unfinished
from reloss.report.published import Published, read_published
from reloss.report.statistics import Difference, Sample, describe, paired_difference
from reloss.runtime.errors import RelossError, UsageError, unknown
from reloss.sweep.plan import ABLATION

CORRELATION = "correlation"  # the table of how well each loss ranks, of all tasks


@dataclass(frozen=True)
class Row:
    """One row: an experiment with a loss and settings, over seeds.

    Scores are in percent; where there is none, `missing` says why. `baseline_rate` is the learning rate of the runs
    that it is compared with, if it is another.
    """

    experiment: str
    loss: str
    settings: tuple[str, ...]
    score: str
    published: str
    ours: Sample | None
    difference: Difference | None
    is_baseline: bool
    baseline_rate: float | None
    spearman: float | None
    status: str
    command: str
    commits: tuple[str, ...]
    records: tuple[str, ...]
    missing: str


def table(name: str, runs: Path, damaged: list[str] | None = None) -> list[Row]:
    """Return the rows of the table of task `name`: every experiment and loss, run or not.

    Args:
        name: of the task.
        runs: the folder of the records.
        damaged: takes what is wrong with records that cannot be read, which are then left out.

    Raises:
        UsageError: there is no table of that name, or no folder `runs`.
        RelossError: a record is damaged, and there is no list to say so in; or the published numbers are not of their
            schema.
    """
    if name not in tasks():
        raise unknown("table", name, [*tasks(), ABLATION, CORRELATION])
    return task_rows(tasks()[name], read_runs(existing(runs), damaged))


def existing(runs: Path, begin: str = "reloss run") -> Path:
    """Return the folder of records `runs`.

    Raises:
        UsageError: there is none; the message names the command to begin with.
    """
    if not runs.is_dir():
        raise UsageError(f"no folder of records at {runs}; name it with --runs, or begin with `{begin}`")
    return runs


def task_rows(task: Task, summaries: Sequence[RunRecord]) -> list[Row]:
    """Return the rows of every experiment and loss of a task, run or not.

    Raises:
        RelossError: the task's published numbers are not of their schema.
    """
    published = {(entry.experiment, entry.loss): entry for entry in read_published(task.folder / "published.yaml")}
    rows = []
    for make in task.experiments.values():
        rows += _rows(make(), summaries, published)
    return rows


def _rows(config: Experiment, summaries: Sequence[RunRecord], published: dict[tuple[str, str], Published]) -> list[Row]:
    groups = group([summary for summary in summaries if summary.experiment == config.name])
    rows = []
    for loss in config.losses:
        entry = published.get((config.name, loss))
        elsewhere = entry if entry and entry.needs else None
        comparable = None if elsewhere else entry
        variants = [groups[key] for key in sorted(groups) if key[0] == loss]
        rows += [_row(config, loss, mine, comparable, groups) for mine in variants] or [
            _not_run(config, loss, comparable)
        ]
        if elsewhere:
            needs = f"needs {elsewhere.needs}"
            rows.append(_not_run(config, loss, elsewhere, missing=needs, why=needs))
    return rows


def _row(
    config: Experiment,
    loss: str,
    mine: list[RunRecord],
    published: Published | None,
    groups: Mapping[Key, Sequence[RunRecord]],
) -> Row:
    ours, first = scores(mine, config.score), mine[0]
    sample = describe(list(ours.values())) if ours else None
    reference = baseline(groups, config.ordinary_loss, first, config.score)
    is_baseline = reference is mine
    rates = [rate_of(config, runs[0].settings) for runs in (mine, reference or mine)]
    return Row(
        experiment=config.name,
        loss=loss,
        settings=first.settings,
        score=config.score,
        published=str(published) if published else "none",
        ours=sample,
        difference=None if is_baseline else paired_difference(ours, scores(reference, config.score)),
        is_baseline=is_baseline,
        baseline_rate=rates[1] if rates[0] != rates[1] else None,
        spearman=_spearman(config, loss, mine, groups),
        status=_status(config, mine, sample, published),
        command=first.command or f"reloss run {config.name} --loss {loss}",
        commits=commits(mine),
        records=tuple(summary.name for summary in mine),
        missing="not finished",
    )


def _not_run(
    config: Experiment, loss: str, published: Published | None, missing: str = "not run", why: str = "no record"
) -> Row:
    return Row(
        experiment=config.name,
        loss=loss,
        settings=(),
        score=config.score,
        published=str(published) if published else "none",
        ours=None,
        difference=None,
        is_baseline=False,
        baseline_rate=None,
        spearman=None,
        status=f"not run ({why})",
        command=f"reloss run {config.name} --loss {loss} --seed 0",
        commits=(),
        records=(),
        missing=missing,
    )


def _spearman(
    config: Experiment,
    loss: str,
    mine: list[RunRecord],
    groups: Mapping[Key, Sequence[RunRecord]],
) -> float | None:
    """Return how well the loss ranked held-out items; the ordinary loss's is measured beside each surrogate.

    Beside that of runs with the same settings, if there are any: these are held against each other.
    """
    if loss == config.ordinary_loss:
        same = [s for others in groups.values() for s in others if s.protocol == mine[0].protocol]
        same.sort(key=lambda summary: summary.settings != mine[0].settings)
        measured = [s.fit["spearman_ordinary"] for s in same if "spearman_ordinary" in s.fit]
    else:
        measured = [s.fit["spearman"] for s in mine if "spearman" in s.fit]
    return measured[0] if measured else None


def _status(config: Experiment, mine: list[RunRecord], ours: Sample | None, published: Published | None) -> str:
    if ours is None:
        return f"not run ({'; '.join(unfinished(mine)) or f'finished without {config.score}'})"
    since = changed_since(config, mine[0])
    stale = [f"made with {' '.join(since)}, which the experiment no longer says"] if since else []
    return "; ".join([_kind(config, mine[0].settings, ours, published), *stale, *unfinished(mine)])


def changed_since(config: Experiment, summary: RunRecord) -> list[str]:
    """Return the settings of a record, beyond those it was given, that its experiment says otherwise today."""
    try:
        own = flat(summary.config())
    except RelossError:
        return ["a config.yaml that cannot be read"]
    try:
        today = flat(override(config, summary.settings).model_dump(mode="json"))
    except UsageError:
        return ["settings that there are no longer"]
    if not own:
        return []
    learned = summary.loss in LEARNED_LOSSES
    own = {name: value for name, value in own.items() if learned or not name.startswith("learn.")}
    return [setting for setting in differing(own, today) if setting.partition("=")[0] not in FIXED]


def _kind(config: Experiment, settings: Sequence[str], ours: Sample, published: Published | None) -> str:
    """Return `reproduced`, `reduced` and how, or why it is neither."""
    if config.paper.startswith("reduced"):
        return " ".join([config.paper, *settings])
    if settings:
        return f"reduced: {' '.join(settings)}"
    if config.paper.startswith("none"):
        return "not in the paper"
    if published is None or published.value is None:
        return "full protocol, no verified number to compare with"
    if ours.n < published.seeds:
        return f"reduced: {ours.n} of {published.seeds} seeds"
    return "reproduced" if ours.interval()[1] >= published.value else "not reproduced: below the published value"


HEADERS = (
    "experiment",
    "loss",
    "metric",
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
    "protocol, begun alike (of several learning rates the one that is best on the validation split, named where the "
    "row's is another), with its 95 % t interval. Spearman: of minus "
    "the loss with the metric, on held-out recorded items. Status: `reproduced`: full data and protocol, at least as "
    "many seeds as the published value is the mean of, and a 95 % t interval that contains or exceeds it; `reduced`: "
    "anything smaller, said how."
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
        row.score,
        row.published,
        ours,
        error,
        shown_difference(row),
        spearman,
        str(row.ours.n if row.ours else 0),
        row.status,
        f"`{row.command}`",
        ", ".join(row.commits) or "none",
        ", ".join(row.records) or "none",
    ]


def shown_difference(row: Row) -> str:
    """Return the text of a row's difference to its baseline, or why there is none."""
    if row.difference is None:
        return row.missing if row.ours is None else "is the baseline" if row.is_baseline else "no paired seed"
    return row.difference.shown() + (f", to lr={row.baseline_rate:g}" if row.baseline_rate is not None else "")


def render(rows: list[Row], format: str) -> str:
    """Return the table as `md`, `csv`, `tex` (booktabs) or `json`.

    Raises:
        UsageError: another format.
    """
    texts = [cells(row) for row in rows]
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
        return latex(headers, texts, note)
    raise UsageError(f"unknown format '{format}'; valid: md, csv, tex, json")


def left_out(damaged: Sequence[str], format: str) -> str:
    """Return the line below a table that names the damaged records it leaves out; csv and json have no room for it."""
    start = {"md": "\n\n", "tex": "\n% "}.get(format)
    return f"{start}Left out: {_one_line('; '.join(damaged))}" if damaged and start else ""


def markdown(headers: Sequence[str], texts: Sequence[Sequence[str]], note: str) -> str:
    """Return a Markdown table with a note below it."""
    lines = ["| " + " | ".join(headers) + " |", "|" + " --- |" * len(headers)]
    lines += ["| " + " | ".join(_one_line(cell).replace("|", "\\|") for cell in text) + " |" for text in texts]
    return "\n".join([*lines, "", note])


def latex(headers: Sequence[str], texts: Sequence[Sequence[str]], note: str = "") -> str:
    """Return a LaTeX table with booktabs' rules.

    There is no room for where its numbers came from (PROVENANCE): each row is followed by a comment that says it.
    """
    shown = [index for index, header in enumerate(headers) if header not in PROVENANCE]
    body = []
    for text in texts:
        row = " & ".join(_escape(text[index]) for index in shown) + r" \\"
        said = [f"{headers[index]}: {_one_line(text[index])}" for index in range(len(headers)) if index not in shown]
        body.append(f"{row} % {'; '.join(said)}" if said else row)
    head = " & ".join(_escape(headers[index]) for index in shown) + r" \\"
    begin = ["% \\usepackage{booktabs}", *([f"% {_one_line(note)}"] if note else [])]
    begin += [rf"\begin{{tabular}}{{{'l' * len(shown)}}}", r"\toprule", head, r"\midrule"]
    return "\n".join([*begin, *body, r"\bottomrule", r"\end{tabular}"])


LATEX = {character: f"\\{character}" for character in "_%&#${}"}
LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''"}


def _escape(text: str) -> str:
    """Return the text for LaTeX; what the T1 and OT1 encodings lack becomes a question mark."""
    return "".join(LATEX.get(each, each if each.isascii() else "?") for each in _one_line(text))


def _one_line(text: str) -> str:
    return " ".join(text.split())
