import fcntl
import io
import os
import pty
import struct
import sys
import termios

import pytest
from rich.console import Console
from small import DIGITS

from reloss.cli import main
from reloss.report.tables import read_table, table_layout
from reloss.report.terminal import chosen_headers, column_name, print_table
from reloss.runtime.errors import UsageError

LONG = ("train.init=baseline", "train.length=0.5", "train.ordinary_weight=1.0")


@pytest.fixture
def runs(tmp_path, write_summary):
    for seed, score in enumerate((0.90, 0.92, 0.94)):
        write_summary("ce", seed, score)
        write_summary("reloss", seed, score + 0.02 + 0.001 * seed)
        write_summary("expected", seed, score + 0.01 * (seed - 1))
        write_summary("approx", seed, score - 0.3)
        write_summary("ce", seed, score, settings=LONG[:2])
        write_summary("reloss", seed, score + 0.01, settings=LONG)
    write_summary("label_smoothing", 0, status="failed", cause="\x1b[2Jno disk")
    return tmp_path


def on_terminal(columns, words):
    """What `reloss` prints in a terminal of that many columns. A fork, as importing everything again takes seconds."""
    process, terminal = pty.fork()
    if process == 0:
        fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        sys.stdout, sys.stderr = os.fdopen(1, "w", encoding="utf-8"), os.fdopen(2, "w", encoding="utf-8")
        try:
            main([str(word) for word in words])
        finally:
            sys.stdout.flush()
            os._exit(0)
    out = b""
    try:
        while block := os.read(terminal, 65536):
            out += block
    except OSError:  # the terminal is closed
        pass
    os.waitpid(process, 0)
    os.close(terminal)
    return out.decode().replace("\r", "").splitlines()


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch):
    """A terminal without colours, whose width the system tells."""
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")


@pytest.mark.parametrize(("columns", "more"), [(80, []), (100, ["--all"])])
def test_nothing_is_wider_than_the_terminal(runs, columns, more):
    lines = on_terminal(columns, ["table", DIGITS, "--runs", runs, *more])
    assert lines[0] == f"{DIGITS}: accuracy"
    assert max(map(len, lines)) <= columns
    assert any("label_smoothing" in line for line in lines) == bool(more)


@pytest.mark.parametrize("words", [("status", DIGITS, "--runs"), ("zoo", "f1"), ("zoo",), ("list", "--data")])
def test_other_commands_fit_the_terminal(runs, words):
    lines = on_terminal(80, [*words, runs] if words[-1].startswith("--") else words)
    if words[0] == "list":
        lines = [line for line in lines if not line.startswith("no data: ")]  # a message, on standard error
    assert max(map(len, lines)) <= 80
    if words[0] == "status":
        assert lines[0] == DIGITS
        assert lines[1].split() == ["loss", "seed", "state", "why"]  # progress and updated are empty
        assert lines[-1].endswith("1 failed")


def printed(runs, name=DIGITS, tuned="", pool="", **more):
    out = io.StringIO()
    table = read_table(name, runs, tuned, pool, damaged=[], with_variants=True)
    print_table(table, table_layout(name, tuned, pool), Console(file=out, width=80), **more)
    return out.getvalue()


def test_the_best_score_comes_first_and_only_what_was_run(runs):
    out = printed(runs)
    names = [line.split()[0] for line in out.splitlines()[3:] if "±" in line]
    assert [name.partition("@")[0] for name in names] == ["reloss", "reloss", "ce", "ce", "expected", "approx"]
    assert "1 rows were not run; --all shows them" in out
    assert "94.10 ± 2.10" in out


def test_one_sentence_counts_who_beats_the_ordinary_loss(runs):
    verdict = " ".join(printed(runs).split()).partition("Verdict ")[2]
    assert verdict.startswith("against ce (95 % intervals): beat it: reloss (2 of 2 variants); lose to it: approx;")
    assert "too close to tell: expected." in verdict


def test_a_long_name_breaks_after_a_comma(runs):
    first = next(line for line in printed(runs).splitlines() if "train.init" in line)
    assert first.split()[0].endswith(",")


def test_columns_are_chosen_by_name(runs):
    lines = printed(runs, columns="n,variant,spearman").splitlines()
    assert lines[1].split() == ["n", "variant", "Spearman"]
    assert chosen_headers(("ours, %", "difference to baseline"), "difference_to_baseline,ours") == (
        "difference to baseline",
        "ours, %",
    )
    assert column_name("Spearman, late ones") == "spearman_late_ones"
    with pytest.raises(UsageError, match="unknown column 'varient'; did you mean variant"):
        printed(runs, columns="varient")


def test_without_a_terminal_an_experiment_is_markdown(cli, runs):
    code, out, err = cli("table", DIGITS, "--runs", runs, "--columns", "loss,ours")
    assert code == 0, err
    assert out.startswith("| loss | ours, % |\n| --- | --- |\n| ce | 92.00 ± 2.00 |")
    words = ("table", DIGITS, "--runs", runs, "--columns", "loss,mean,low", "--format", "csv")
    assert cli(*words)[1].splitlines()[:2] == ["loss,mean,low", "ce,92.0,"]
    assert cli("table", DIGITS, "--runs", runs) == cli("table", DIGITS, "--runs", runs, "--format", "md")
    code, _, err = cli("table", "classification/digit_cnn", "--runs", runs)
    assert (code, "did you mean classification/digits_cnn" in err) == (2, True)


@pytest.mark.parametrize("name", ["ablation", "correlation"])
def test_other_tables_fit_too(runs, name):
    assert max(map(len, printed(runs, name, show_all=True).splitlines())) <= 80


def test_no_code_of_a_record_reaches_the_terminal(runs):
    assert "\x1b" not in printed(runs, columns="variant,status", show_all=True)
