"""Tables as a terminal shows them: what was run, best first, in few columns that fit, and a verdict per experiment."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from reloss.report.comparison import variant_label
from reloss.report.row_status import RowStatus
from reloss.report.statistics import Difference, Side
from reloss.report.table import Cell, Code, Missing, Table, names_cell, sort_value
from reloss.report.task_table import TaskRow
from reloss.runtime.errors import unknown
from reloss.runtime.text import one_line

EXPERIMENT, DIFFERENCE = "experiment", "difference"
BASELINE = Missing("is the baseline")
MIN_NAME_WIDTH = 16
OUTCOMES = {
    Side.ABOVE: "beat it",
    Side.BELOW: "lose to it",
    Side.AROUND: "too close to tell",
    Side.SINGLE: "one seed only",
}
"""What a verdict states of an interval."""


@dataclass(frozen=True)
class Layout:
    """How a table is shown on a terminal.

    Attributes:
        columns: headers of the columns that are shown by default; the first one is the name of a row.
        score: header of the column to sort by; empty to keep the order.
        difference: header of the differences that the verdict counts; empty for no verdict.
    """

    columns: tuple[str, ...]
    score: str = ""
    difference: str = ""


VARIANTS = Layout(("variant", "score, %", DIFFERENCE, "n"), "score, %", DIFFERENCE)
ABLATION = Layout(("factor", "value", "validation, %", "difference to baseline", "n"), "validation, %")
CORRELATION = Layout(
    ("loss", "surrogate", "Spearman, recorded items", "Spearman, checkpoints"), "Spearman, recorded items"
)
TUNED = Layout(("loss", "settings", "best", "test, %", DIFFERENCE, "n"), "test, %", DIFFERENCE)
POOLED = Layout(("loss", "settings", "mean, %", "learned minus this", "won", "n"))


def variant_table(rows: Sequence[TaskRow]) -> Table:
    """Return the rows of tasks with the name of each variant, as `reloss compare` takes it."""
    headers = (EXPERIMENT, "variant", "score, %", DIFFERENCE, "n", "loss", "settings", "metric", "published")
    return Table((*headers, "Spearman", "status", "command", "commit", "record"), [_cells(row) for row in rows])


def _cells(row: TaskRow) -> list[Cell]:
    missing = Missing(row.missing)
    no_difference = missing if row.ours is None else BASELINE if row.is_baseline else Missing("no paired seed")
    return [
        *(row.experiment, variant_label(row.loss, row.settings), row.ours or missing, row.difference or no_difference),
        *(row.ours.n if row.ours else 0, row.loss, " ".join(row.settings) or "none", row.score, row.published),
        *(row.spearman if row.spearman is not None else Missing("not measured"), row.status, Code(row.command)),
        *(names_cell(row.commits), names_cell(row.records)),
    ]


def column_name(header: str) -> str:
    """Return the name of a column for --columns: its header in lower case, without unit, joined by underscores."""
    return "_".join(re.findall(r"\w+", header.removesuffix(", %").lower()))


def chosen_headers(headers: Iterable[str], columns: str) -> tuple[str, ...]:
    """Return the headers that `columns` names, a list such as `variant,score,n`.

    Raises:
        UsageError: a name is unknown; the nearest ones are named.
    """
    by_name = {column_name(header): header for header in headers}
    names = [name.strip() for name in columns.split(",") if name.strip()]
    for name in names:
        if name not in by_name:
            raise unknown("column", name, by_name)
    return tuple(by_name[name] for name in dict.fromkeys(names))


def print_table(table: Table, layout: Layout, console: Console, columns: str = "", show_all: bool = False) -> None:
    """Print a table, one part per experiment, no line wider than the console.

    Args:
        table: the table.
        layout: how to show it.
        console: where to print.
        columns: names of the columns, see `chosen_headers`; by default those of the layout.
        show_all: show rows and experiments that were not run, too.

    Raises:
        UsageError: a column is unknown.
    """
    shown_headers = chosen_headers(table.headers, columns) or layout.columns
    hidden = 0
    for title, part in _parts(table):
        shown = part if show_all else replace(part, rows=[row for row in part.rows if _is_run(row)])
        hidden += len(part.rows) - len(shown.rows)
        if not shown.rows:
            continue
        if layout.score:
            shown = _best_first(shown, layout.score)
        if title:
            console.print(Text(one_line(_title(title, part)), style="bold"))
        console.print(_fitted(shown.select(shown_headers), console.width))
        if verdict := _verdict(shown, layout):
            console.print(Text(one_line(verdict)))
        console.print()
    if hidden:
        console.print(Text(f"{hidden} rows were not run; --all shows them"), style="dim")


def _title(experiment: str, part: Table) -> str:
    return f"{experiment}: {part.column('metric')[0]}" if "metric" in part.headers else experiment


def _parts(table: Table) -> Iterator[tuple[str, Table]]:
    """Yield the rows of each experiment with its name; a table without experiments is one part."""
    if EXPERIMENT not in table.headers:
        yield "", table
        return
    names = table.column(EXPERIMENT)
    for name in dict.fromkeys(names):
        yield (
            str(name),
            replace(table, rows=[row for row, own in zip(table.rows, names, strict=True) if own == name], objects=None),
        )


def _is_run(row: Sequence[Cell]) -> bool:
    return all(cell.is_run for cell in row if isinstance(cell, RowStatus))


def _best_first(table: Table, score: str) -> Table:
    scores = [sort_value(cell) for cell in table.column(score)]
    order = sorted(range(len(scores)), key=lambda row: (scores[row] is None, -(scores[row] or 0)))
    return replace(table, rows=[table.rows[row] for row in order])


def _verdict(table: Table, layout: Layout) -> str:
    """Return one sentence on which losses beat the ordinary loss, lose to it, or are too close to tell."""
    if not layout.difference:
        return ""
    losses, cells = map(str, table.column("loss")), table.column(layout.difference)
    pairs = list(zip(losses, cells, strict=True))
    ordinary = list(dict.fromkeys(loss for loss, cell in pairs if cell == BASELINE))
    compared = [
        (loss, OUTCOMES[cell.side]) for loss, cell in pairs if isinstance(cell, Difference) and loss not in ordinary
    ]
    if not ordinary or not compared:
        return "Verdict: no run of another loss shares seeds with the ordinary loss."
    totals, counts = Counter(loss for loss, _ in compared), Counter(compared)
    parts = []
    for outcome in OUTCOMES.values():
        names = [
            loss if total == 1 else f"{loss} ({counts[loss, outcome]} of {total} variants)"
            for loss, total in totals.items()
            if counts[loss, outcome]
        ]
        parts += [f"{outcome}: {', '.join(names)}"] if names else []
    return f"Verdict against {', '.join(ordinary)} (95 % intervals): {'; '.join(parts)}."


def _fitted(table: Table, width: int) -> RichTable:
    """Return the table for a terminal of `width` columns. Long names of variants break after a comma or an @."""
    texts = table.texts()
    rich_table = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False)
    numeric = [
        all(sort_value(cell) is not None or isinstance(cell, Missing) for cell in cells)
        for cells in (zip(*table.rows, strict=True) if table.rows else ())
    ]
    for header, is_number in zip(table.headers, numeric, strict=True):
        rich_table.add_column(Text(header), justify="right" if is_number else "left", overflow="fold")
    others = sum(max(len(header), *map(len, cells)) + 3 for header, cells in _columns(table, texts)[1:])
    room = max(MIN_NAME_WIDTH, width - others)
    for row in texts:
        rich_table.add_row(Text(_broken(row[0], room)), *map(Text, row[1:]))
    return rich_table


def _columns(table: Table, texts: Sequence[Sequence[str]]) -> list[tuple[str, tuple[str, ...]]]:
    return list(zip(table.headers, zip(*texts, strict=True), strict=True))


def _broken(name: str, width: int) -> str:
    """Return the name on lines of at most `width`, broken after a comma or an @ where possible."""
    lines = [""]
    for piece in re.findall(r"[^,@]*[,@]|[^,@]+", name):
        if lines[-1] and len(lines[-1] + piece) > width:
            lines.append(" ")
        lines[-1] += piece
    return "\n".join(lines)
