import csv
import io
import json
import re
import shutil
import subprocess

import pytest
from small import DIGITS

from reloss.report.table import PROVENANCE
from reloss.report.tables import read_table
from reloss.report.task_table import HEADERS
from reloss.runtime.errors import RelossError, UsageError
from reloss.runtime.files import write_json


@pytest.fixture
def odd_table(tmp_path, write_summary):
    """A table with a setting that every format must escape."""
    write_summary("ce", 0, 0.7, settings=("train.gamma=a|b_c%~^&#${}\\",))
    write_summary("ce", 0, 0.71)
    return read_table("classification", tmp_path)


def test_markdown_has_a_cell_for_each_header_whatever_the_text(odd_table):
    lines = [line for line in odd_table.render("md").splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(odd_table.rows)
    assert {len(re.split(r"(?<!\\)\|", line)) for line in lines} == {len(HEADERS) + 2}
    assert r"a\|b_c" in lines[3]


def test_csv_is_read_back(odd_table):
    rows = list(csv.reader(io.StringIO(odd_table.render("csv"))))
    assert len(rows) == 1 + len(odd_table.rows)
    assert {len(row) for row in rows} == {len(rows[0])}
    row = dict(zip(rows[0], rows[2], strict=True))
    assert "a|b_c" in row["status"]
    assert (float(row["mean"]), row["std"], row["n"], float(row["difference"])) == (70, "", "1", pytest.approx(-1))
    assert not any("±" in cell or "[" in cell for cell in rows[2])


def test_latex_is_escaped(odd_table):
    lines = odd_table.render("tex").splitlines()
    columns = len(HEADERS) - len(PROVENANCE)
    assert lines[0] == r"% \usepackage{booktabs}"
    assert lines[2] == rf"\begin{{tabular}}{{{'l' * columns}}}"
    assert lines[-1] == r"\end{tabular}"
    body = [line for line in lines if r" \\" in line]
    assert len(body) == 1 + len(odd_table.rows)
    assert {len(re.findall(r"(?<!\\)&", line.partition(r" \\")[0])) for line in body} == {columns - 1}
    assert body[0].startswith(r"experiment & loss & metric & published & ours, \% & error, \%")
    assert r"a\textbar{}b\_c\%\textasciitilde{}\textasciicircum{}\&\#\$\{\}\textbackslash{}" in body[2]
    provenance = f"% command: `reloss run {DIGITS} --loss ce --seed 0`; commit: abc0; record: {DIGITS}/ce/seed0"
    assert body[1].endswith(provenance)


def test_latex_shows_the_deviation(tmp_path, write_summary):
    write_summary("ce", 0, 0.5)
    write_summary("ce", 1, 0.7)
    assert r"60.00 $\pm$ 14.14" in read_table("classification", tmp_path).render("tex")


def test_json_has_one_object_per_row(odd_table):
    rows = json.loads(odd_table.render("json"))
    assert len(rows) == len(odd_table.rows)
    assert [rows[0][name] for name in ("mean", "std", "n")] == [71.0, None, 1]
    assert {frozenset(row) for row in rows} == {frozenset(rows[0])}
    assert not any(isinstance(value, dict) for row in rows for value in row.values())


def test_a_cell_of_several_lines_stays_in_its_row(tmp_path, write_summary):
    write_summary("ce", 0, status="failed", cause="first\nsecond 中文 100 %")
    table = read_table("classification", tmp_path)
    assert "| not run (seed 0 failed: first second 中文 100 %) |" in table.render("md")
    assert r"first second ?? 100 \%" in table.render("tex")


def test_unknown_format_and_table(tmp_path):
    with pytest.raises(UsageError, match="unknown format 'html'; valid: md, csv, tex, json"):
        read_table("classification", tmp_path).render("html")
    with pytest.raises(UsageError, match="did you mean classification"):
        read_table("clasification", tmp_path)
    with pytest.raises(UsageError, match="unknown table 'ablation'"):
        read_table("ablation", tmp_path, tuned="accuracy")


ODD_SCORES = json.dumps(
    {"status": "finished", "experiment": DIGITS, "loss": "ce", "settings": [], "seed": 0, "protocol": "p"}
    | {"scores": {"accuracy": "high"}}
)


@pytest.mark.parametrize("content", ["{", "[]", '"text"', '{"status": "finished"}', ODD_SCORES])
def test_a_damaged_summary_is_named(tmp_path, write_summary, content):
    write_summary("ce", 0, 0.5)
    path = tmp_path / DIGITS / "ce" / "seed0" / "summary.json"
    path.write_text(content)
    with pytest.raises(RelossError, match=re.escape(str(path))):
        read_table("classification", tmp_path)


PDFLATEX = shutil.which("pdflatex")


@pytest.mark.skipif(not PDFLATEX, reason="pdflatex is not installed (Debian: texlive-latex-recommended)")
@pytest.mark.parametrize("name", ["classification", "pose", "nmt", "mrc", "ablation", "correlation"])
def test_latex_compiles(tmp_path, cli, name):
    runs = tmp_path / "runs"
    for loss, settings, cause in (("ce", [], '50 % | <a_b> #1 & ~^\\ "x" äß'), ("reloss", ["train.lr=1e-3"], "{$")):
        folder = runs / DIGITS / loss / "seed0"
        facts = {"experiment": DIGITS, "loss": loss, "settings": settings, "seed": 0, "protocol": "p"}
        write_json(folder / "summary.json", {"status": "failed", "cause": cause, "scores": {}, **facts})
    code, out, _ = cli("table", name, "--runs", runs, "--format", "tex")
    assert code == 0
    (tmp_path / "table.tex").write_text(out)
    packages = r"\usepackage{booktabs}\usepackage[paperwidth=200cm,margin=1cm]{geometry}"
    document = rf"\documentclass{{article}}{packages}\begin{{document}}\noindent\input{{table}}\end{{document}}"
    (tmp_path / "paper.tex").write_text(document)
    words = [PDFLATEX, "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "paper.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("name", ["classification", "ablation", "correlation", "--tuned"])
@pytest.mark.parametrize(("format", "start"), [("md", "Skipped: "), ("tex", "% Skipped: "), ("json", None)])
def test_a_table_names_the_damaged_records_that_it_skips(cli, tmp_path, write_summary, name, format, start):
    write_summary("ce", 0, 0.7)
    write_summary("ce", 1, 0.8)
    scores = {"accuracy": 0.9, "validation_accuracy": 0.9}
    write_summary("ce", 2, settings=("train.epochs=1",), scores=scores)
    damaged = tmp_path / DIGITS / "ce" / "seed1" / "summary.json"
    damaged.write_text('{"status"')
    words = ("classification", "--tuned", "accuracy") if name == "--tuned" else (name,)
    code, out, err = cli("table", *words, "--runs", tmp_path, "--format", format)
    assert code == 0, err
    assert f"skipped: {damaged} cannot be read as JSON" in err
    last = out.splitlines()[-1]
    assert last.startswith(f"{start}{damaged} cannot be read as JSON") if start else last == "]"


def test_the_other_seeds_of_a_damaged_record_are_shown(tmp_path, write_summary):
    for seed, accuracy in enumerate((0.7, 0.8, 0.9)):
        write_summary("ce", seed, accuracy)
    (tmp_path / DIGITS / "ce" / "seed1" / "summary.json").write_text("null")
    damaged = []
    table = read_table("classification", tmp_path, damaged=damaged)
    (row,) = [row for row in table.rows if row[:2] == [DIGITS, "ce"]]
    assert (row[HEADERS.index("ours, %")].mean, row[HEADERS.index("n")]) == (pytest.approx(80), 2)
    assert (len(damaged), table.skipped) == (1, damaged)
