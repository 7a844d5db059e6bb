"""The one class behind every table: rows of typed cells, written as Markdown, CSV, LaTeX, JSON or plain text.

Cells hold values, not strings, so that a page can sort a column by its numbers and no code has to read a rendered table
back. A cell without a value is a `Missing` that gives the reason. A cell has the same text in every format.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from reloss.report.row_status import RowStatus
from reloss.report.statistics import Difference, Sample
from reloss.runtime.errors import UsageError
from reloss.runtime.text import finite, one_line, printable

FORMATS = ("md", "csv", "tex", "json")
PROVENANCE = ("command", "commit", "record")
"""Headers of the columns that tell where a row comes from. LaTeX has no room for these; it writes them as comments."""


@dataclass(frozen=True)
class Number:
    """A number with its own text, for example 0.9123 shown as +0.912."""

    value: float
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Missing:
    """A cell without a value, and the reason, for example `not run`."""

    reason: str

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True)
class Code:
    """A command, shown between backticks."""

    text: str

    def __str__(self) -> str:
        return f"`{self.text}`"


Cell = str | int | float | Number | Sample | Difference | Missing | Code | RowStatus
"""What a cell can hold. A float is shown with the table's number of digits, everything else as its `str`."""


def cell_text(cell: Cell, digits: int = 3) -> str:
    """Return the text of a cell."""
    return f"{cell:.{digits}f}" if isinstance(cell, float) else str(cell)


def names_cell(names: Iterable[str]) -> Cell:
    """Return the cell that lists names, such as commits."""
    return ", ".join(names) or Missing("none")


def sort_value(cell: Cell) -> float | None:
    """Return the number that a column is sorted by, None if the cell holds no number."""
    if isinstance(cell, Number):
        return cell.value
    if isinstance(cell, Sample | Difference):
        return cell.mean
    return float(cell) if isinstance(cell, int | float) else None


@dataclass(frozen=True)
class Table:
    """A table of typed cells.

    Attributes:
        headers: names of the columns, all different.
        rows: cells of each row, in the order of the headers.
        note: text below the table, in Markdown and LaTeX.
        digits: digits of a float after the decimal point.
        objects: rows as JSON objects, where these hold more than the cells; by default the cells by header.
        skipped: messages about the damaged records that the table lacks, shown in Markdown and LaTeX.
    """

    headers: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    digits: int = 3
    objects: Sequence[Mapping[str, Any]] | None = None
    skipped: Sequence[str] = ()

    def texts(self) -> list[list[str]]:
        """Return the text of every cell, row by row, each printable and on one line."""
        return [[one_line(cell_text(cell, self.digits)) for cell in row] for row in self.rows]

    def select(self, headers: Sequence[str]) -> Table:
        """Return a table with the columns called `headers`, in this order.

        Raises:
            ValueError: there is no column of that name.
        """
        columns = [list(self.headers).index(header) for header in headers]
        rows = [[row[column] for column in columns] for row in self.rows]
        return replace(self, headers=headers, rows=rows, objects=None)

    def render(self, format: str) -> str:
        """Return the table as `md` (Markdown), `csv`, `tex` (LaTeX) or `json`.

        Raises:
            UsageError: unknown format.
        """
        writers = dict(zip(FORMATS, (self.markdown, self.csv, self.latex, self.json), strict=True))
        if format not in writers:
            raise UsageError(f"unknown format '{format}'; valid: {', '.join(FORMATS)}")
        return writers[format]()

    def markdown(self) -> str:
        """Return a Markdown table, with the note and the skipped records below it."""
        lines = [_markdown_line(self.headers), "|" + " --- |" * len(self.headers), *map(_markdown_line, self.texts())]
        return "\n\n".join(filter(None, ["\n".join(lines), printable(self.note), self._skipped_line()]))

    def csv(self) -> str:
        """Return comma-separated values, the headers first. A spreadsheet takes no cell for a formula."""
        out = io.StringIO()
        pairs = (zip(cells, texts, strict=True) for cells, texts in zip(self.rows, self.texts(), strict=True))
        rows = [[_csv_text(cell, text) for cell, text in row] for row in pairs]
        csv.writer(out, lineterminator="\n").writerows([self.headers, *rows])
        return out.getvalue().rstrip("\n")

    def json(self) -> str:
        """Return a JSON list with one object per row."""
        objects = self.objects
        if objects is None:
            objects = [dict(zip(self.headers, map(_json_value, row), strict=True)) for row in self.rows]
        return printable(json.dumps(finite(list(objects)), indent=2, ensure_ascii=False))

    def plain(self) -> str:
        """Return aligned plain text for a terminal, without the note."""
        lines = [list(self.headers), *self.texts()]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)

    def latex(self) -> str:
        """Return a LaTeX table with the rules of the package booktabs; note and skipped records are comments."""
        columns = [column for column, header in enumerate(self.headers) if header not in PROVENANCE]
        lines = ["\\usepackage{booktabs}", one_line(self.note)]
        lines = [f"% {line}" for line in lines if line]
        lines += [rf"\begin{{tabular}}{{{'l' * len(columns)}}}", r"\toprule"]
        lines += [_latex_line(self.headers[column] for column in columns), r"\midrule"]
        lines += [self._latex_row(row, columns) for row in self.texts()]
        lines += [r"\bottomrule", r"\end{tabular}"]
        return "\n".join([*lines, f"% {self._skipped_line()}"] if self.skipped else lines)

    def _latex_row(self, texts: Sequence[str], columns: Sequence[int]) -> str:
        """Return one row: the texts in `columns`, and the other texts as a comment."""
        line = _latex_line(texts[column] for column in columns)
        hidden = [column for column in range(len(texts)) if column not in columns]
        comment = "; ".join(f"{self.headers[column]}: {texts[column]}" for column in hidden)
        return f"{line} % {comment}" if comment else line

    def _skipped_line(self) -> str:
        return f"Skipped: {one_line('; '.join(self.skipped))}" if self.skipped else ""


def _csv_text(cell: Cell, text: str) -> str:
    """Return the text of a cell for CSV: an apostrophe keeps a spreadsheet from computing a text such as =1+1."""
    is_number = isinstance(cell, int | float | Number | Sample | Difference)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) and not is_number else text


def _markdown_line(texts: Iterable[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"


def _json_value(cell: Cell) -> Any:
    """Return a cell for JSON: a number stays a number, a missing value becomes null."""
    if isinstance(cell, Number):
        return cell.value
    if isinstance(cell, Missing):
        return None
    if isinstance(cell, RowStatus):
        return str(cell)
    return cell.text if isinstance(cell, Code) else cell


LATEX = {character: f"\\{character}" for character in "_%&#${}"}
LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''"}


def _latex_line(texts: Iterable[str]) -> str:
    return " & ".join(map(_latex_text, texts)) + r" \\"


def _latex_text(text: str) -> str:
    """Return the text for LaTeX. A character that the encodings T1 and OT1 lack becomes a question mark."""
    return "".join(LATEX.get(character, character if character.isascii() else "?") for character in text)
