"""The one class behind every table: rows of typed cells, written as Markdown, CSV, LaTeX, JSON or plain text.

Cells hold values, not strings, so that a page can sort a column by its numbers and no code has to read a rendered table
back. A cell without a value is a `Missing` that gives the reason. Markdown and LaTeX are for people: both show the same
text of a cell. CSV and JSON are for programs: one number per name, without texts such as `98.00 ± 0.22`.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from reloss.report.row_status import RowStatus
from reloss.report.statistics import Difference, Sample, difference_data, sample_data
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
        objects: rows for CSV and JSON, each with the same names; by default the cells by header.
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

    def without_empty(self, *headers: str) -> Table:
        """Return the table without those of these columns that hold no value in any row. `objects` keep them."""
        empty = [header for header in headers if all(isinstance(cell, Missing) for cell in self.column(header))]
        shown = [header for header in self.headers if header not in empty]
        return replace(self.select(shown), objects=self.objects)

    def column(self, header: str) -> list[Cell]:
        """Return the cells below a header.

        Raises:
            ValueError: there is no column of that name.
        """
        place = list(self.headers).index(header)
        return [row[place] for row in self.rows]

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
        """Return comma-separated values, one number per field, the names first; see `data`.

        A missing value is an empty field, and a list is joined by spaces. A spreadsheet takes no cell for a formula.
        """
        rows = self.data()
        names = list(dict.fromkeys(name for row in rows for name in row)) or list(self.headers)
        out = io.StringIO()
        lines = [[_csv_text(row.get(name)) for name in names] for row in rows]
        csv.writer(out, lineterminator="\n").writerows([names, *lines])
        return out.getvalue().rstrip("\n")

    def json(self) -> str:
        """Return a JSON list with one object per row; see `data`."""
        return printable(json.dumps(finite(self.data()), indent=2, ensure_ascii=False))

    def data(self) -> list[dict[str, Any]]:
        """Return the rows for programs: one number per name, None where there is none.

        These are `objects`, else the cells by header.
        """
        if self.objects is not None:
            return [{name: _number_or_none(value) for name, value in row.items()} for row in self.objects]
        rows = (zip(self.headers, row, strict=True) for row in self.rows)
        return [{name: value for header, cell in row for name, value in _fields(header, cell).items()} for row in rows]

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


def _csv_text(value: Any) -> str:
    """Return a value for CSV: an apostrophe keeps a spreadsheet from computing a text such as =1+1."""
    if value is None:
        return ""
    if isinstance(value, dict):
        value = [f"{name}={_csv_text(item)}" for name, item in value.items()]
    if isinstance(value, list | tuple):
        value = " ".join(map(str, value))
    text = one_line(str(value))
    return f"'{text}" if isinstance(value, str) and text.startswith(("=", "+", "-", "@")) else text


def _markdown_line(texts: Iterable[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"


def _fields(header: str, cell: Cell) -> dict[str, Any]:
    """Return a cell as values by name: a mean with its deviation or interval becomes several numbers."""
    if isinstance(cell, Sample):
        return {f"{header} {name}": _number_or_none(value) for name, value in sample_data(cell).items()}
    if isinstance(cell, Difference):
        return {f"{header} {name}": _number_or_none(value) for name, value in difference_data(cell).items()}
    if isinstance(cell, Number):
        return {header: _number_or_none(cell.value)}
    if isinstance(cell, Missing):
        return {header: None}
    if isinstance(cell, RowStatus):
        return {header: str(cell)}
    return {header: cell.text if isinstance(cell, Code) else _number_or_none(cell)}


def _number_or_none(value: Any) -> Any:
    """Return a value, None in place of NaN and infinities."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


LATEX = {character: f"\\{character}" for character in "_%&#${}"}
LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''"}


def _latex_line(texts: Iterable[str]) -> str:
    return " & ".join(map(_latex_text, texts)) + r" \\"


def _latex_text(text: str) -> str:
    """Return the text for LaTeX. A character that the encodings T1 and OT1 lack becomes a question mark."""
    return "".join(LATEX.get(character, character if character.isascii() else "?") for character in text)
