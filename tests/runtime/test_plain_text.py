import json
import sys

import pytest

from reloss.runtime import progress
from reloss.runtime.text import finite, fitted, one_line, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\nc", "a\tb\nc"),
        ("\x1b[31mred\x07\r", "\\u001b[31mred\\u0007\\u000d"),
        ("\x9b2J\x7f", "\\u009b2J\\u007f"),
        ("name\udcff.png", "name\\udcff.png"),
        ("\u202eabc\u2028", "\\u202eabc\\u2028"),
        ("Zürich 中文 ±", "Zürich 中文 ±"),
    ],
)
def test_codes_are_written_as_numbers(text, shown):
    assert printable(text) == shown
    in_json = shown.replace("\n", "\\n").replace("\t", "\\t")
    assert json.loads(f'"{in_json}"') == text


def test_a_text_on_one_line():
    assert one_line(" first\r\n\x0bsecond\x85\u2028third\x1b[0m ") == "first second third\\u001b[0m"


def test_numbers_that_json_lacks():
    values = {"a": float("nan"), "b": [1, float("inf"), {"c": -float("inf"), "d": 2}], "e": (None, "nan")}
    assert finite(values) == {"b": [1, None, {"d": 2}], "e": [None, "nan"]}


def test_a_closed_pipe_does_not_end_the_work(monkeypatch):
    class Closed:
        def write(self, text):
            raise BrokenPipeError

        flush = write

        def fileno(self):
            return 99

    replaced = []
    monkeypatch.setattr(sys, "stderr", Closed())
    monkeypatch.setattr(progress.os, "dup2", lambda source, target: replaced.append(target))
    progress.say("epoch 1")
    assert replaced == [99]


def test_messages_hold_no_codes(capsys):
    progress.say("skipped: a\x1b[2Jb")
    assert capsys.readouterr().err == "skipped: a\\u001b[2Jb\n"


def test_lines_are_fitted_to_a_terminal():
    text = "data      squad: missing: put a file, in SQuAD's JSON, there\n          lsp: there"
    assert fitted(text, None) == text
    assert fitted(text, 30, 10).splitlines() == [
        "data      squad: missing: put",
        "          a file, in SQuAD's",
        "          JSON, there",
        "          lsp: there",
    ]
