import ast
import csv
import io
import json
import re
from pathlib import Path

import pytest

from reloss.report.statistics import Difference, Sample
from reloss.report.table import Code, Missing, Number, Table, names_cell, sort_value
from reloss.runtime.errors import UsageError

HEADERS = ("loss", "ours, %", "difference", "Spearman", "n", "command")
ROWS = (
    ("ce", Sample(98, 0.5, 3), Missing("is the baseline"), 0.81815, 3, Code("reloss run a --loss ce")),
    ("a|b_c", Sample(97, None, 1), Difference(-1, -1.5, -0.5, 1), Missing("not measured"), 1, Code("reloss run a")),
)
TABLE = Table(HEADERS, ROWS, note="A note\nin two lines.", skipped=("a.json", "b.json"))


def test_markdown_has_one_line_per_row_and_escapes_bars():
    lines = TABLE.markdown().splitlines()
    assert lines[0] == "| loss | ours, % | difference | Spearman | n | command |"
    assert lines[1] == "| --- | --- | --- | --- | --- | --- |"
    assert lines[2] == "| ce | 98.00 ± 0.50 | is the baseline | 0.818 | 3 | `reloss run a --loss ce` |"
    assert lines[3] == r"| a\|b_c | 97.00 | -1.00 [-1.50, -0.50] | not measured | 1 | `reloss run a` |"
    assert lines[4:] == ["", "A note", "in two lines.", "", "Skipped: a.json; b.json"]
    assert {len(re.split(r"(?<!\\)\|", line)) for line in lines[:4]} == {len(HEADERS) + 2}


def test_csv_is_read_back():
    lines = list(csv.reader(io.StringIO(TABLE.csv())))
    names = ["loss", *(f"ours, % {name}" for name in ("mean", "std", "n")), "difference"]
    names += [*("Spearman", "n", "command"), *(f"difference {name}" for name in ("difference", "low", "high", "pairs"))]
    assert lines[0] == names
    assert lines[1] == ["ce", "98", "0.5", "3", "", "0.81815", "3", "reloss run a --loss ce", "", "", "", ""]
    assert lines[2] == ["a|b_c", "97", "", "1", "", "", "1", "reloss run a", "-1", "-1.5", "-0.5", "1"]


def test_latex_is_escaped_and_keeps_provenance_in_comments():
    lines = TABLE.latex().splitlines()
    assert lines[:3] == [r"% \usepackage{booktabs}", "% A note in two lines.", r"\begin{tabular}{lllll}"]
    assert lines[4] == r"loss & ours, \% & difference & Spearman & n \\"
    assert lines[6].startswith(r"ce & 98.00 $\pm$ 0.50 & ")
    assert lines[6].endswith(r" & 3 \\ % command: `reloss run a --loss ce`")
    assert lines[7].startswith(r"a\textbar{}b\_c & ")
    assert lines[-2:] == [r"\end{tabular}", "% Skipped: a.json; b.json"]


def test_json_holds_values():
    rows = json.loads(TABLE.json())
    assert [rows[0][f"ours, % {name}"] for name in ("mean", "std", "n")] == [98, 0.5, 3]
    assert (rows[0]["difference"], rows[0]["Spearman"], rows[0]["command"]) == (None, 0.81815, "reloss run a --loss ce")
    assert json.loads(Table(("a",), [["x"]], objects=[{"b": 1}]).json()) == [{"b": 1}]


HOSTILE = "=1+1\x1b[2J\r\nsecond\x9b line"


@pytest.mark.parametrize("format", ["md", "csv", "tex", "json"])
def test_no_code_of_a_cell_reaches_a_terminal(format):
    table = Table(("cause",), [[HOSTILE]], note=HOSTILE, skipped=[HOSTILE])
    for text in (table.render(format), table.plain()):
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)
    if format == "json":
        assert json.loads(table.json()) == [{"cause": HOSTILE}]


def test_no_text_is_a_formula_in_a_spreadsheet():
    cells = [HOSTILE, "+1", "-x", "@a", Missing("=2"), "a=1", -0.5, Number(0.5, "+0.50"), Difference(-1, None, None, 1)]
    (row,) = csv.reader(io.StringIO(Table([str(number) for number in range(9)], [cells]).csv().partition("\n")[2]))
    assert row[0].startswith("'=1+1\\u001b[2J second")
    assert row[1:] == ["'+1", "'-x", "'@a", "", "a=1", "-0.5", "0.5", "-1", "", "", "1"]


def test_json_has_no_nan():
    table = Table(("a", "b"), [[float("nan"), Sample(1.0, float("inf"), 2)]])
    assert json.loads(table.json(), parse_constant=pytest.fail) == [{"a": None, "b mean": 1.0, "b std": None, "b n": 2}]


def test_plain_text_is_aligned():
    assert Table(("a", "long header"), [["x", "y"], ["wide cell", ""]]).plain().splitlines() == [
        "a          long header",
        "x          y",
        "wide cell",
    ]


def test_select_picks_columns_by_header():
    table = TABLE.select(("n", "loss"))
    assert (table.headers, table.rows) == (("n", "loss"), [[3, "ce"], [1, "a|b_c"]])
    with pytest.raises(ValueError, match="not in list"):
        TABLE.select(("seeds",))


def test_a_table_without_rows_has_its_headers():
    table = Table(("a", "b"), [])
    assert table.markdown() == "| a | b |\n| --- | --- |"
    assert (table.csv(), table.json(), table.plain()) == ("a,b", "[]", "a  b")


def test_floats_have_the_digits_of_the_table_or_of_a_number():
    assert Table(("a", "b"), [[0.5, Number(0.5, "+0.50")]], digits=1).texts() == [["0.5", "+0.50"]]


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        *[(3, 3.0), (0.5, 0.5), (Number(0.5, "half"), 0.5), (Sample(2.0, None, 1), 2.0)],
        *[(Difference(-2.0, None, None, 1), -2.0), ("57.00 or so", None), (Missing("3 seeds"), None)],
    ],
)
def test_columns_are_sorted_by_values_and_not_by_texts(cell, value):
    assert sort_value(cell) == value


def test_names_are_listed():
    assert names_cell(["a", "b"]) == "a, b"
    assert names_cell([]) == Missing("none")


def test_an_unknown_format_is_refused():
    with pytest.raises(UsageError, match="unknown format 'html'; valid: md, csv, tex, json"):
        TABLE.render("html")
    assert TABLE.render("csv") == TABLE.csv()


ROOT = Path(__file__).resolve().parents[2]


def strings(path):
    """The string literals of a Python file, without its docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    expressions = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in expressions:
            yield node.value


def test_no_other_module_writes_markdown_tables():
    paths = [
        path for folder in ("common/reloss", "tasks", "tools", "benchmarks") for path in (ROOT / folder).rglob("*.py")
    ]
    writers = {
        str(path.relative_to(ROOT))
        for path in paths
        if any(re.search(r"\| ?-{3}|^\| ", text) for text in strings(path))
    }
    assert writers == {"common/reloss/report/table.py"}
