"""The code of docs/ranking.md runs as written and prints what the page shows; the package imports fast."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from reloss import ranking

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "ranking.md").read_text(encoding="utf-8")
SNIPPET = re.compile(r"^```python\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)


def test_every_snippet_prints_what_the_page_shows(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    snippets = SNIPPET.findall(PAGE)
    assert len(snippets) == PAGE.count("```python") > 3
    for code, output in snippets:
        exec(compile(code, "ranking.md", "exec"), names)
        assert capsys.readouterr().out == output


def test_the_page_names_every_public_function_of_the_package() -> None:
    functions = {name for name in ranking.__all__ if name.islower() and name not in ("hard_rank", "pearson")}
    assert {name for name in functions if f"`{name}" not in PAGE} == set()


def test_importing_the_package_takes_less_than_20_ms_after_torch() -> None:
    """The best of three, since other work on the machine only adds time."""
    code = (
        "import time, torch, numpy\nstart = time.process_time()\nimport reloss.ranking\n"
        "print(time.process_time() - start)"
    )
    seconds = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(3)
    ]
    assert min(seconds) < 0.02
