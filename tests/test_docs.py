"""The code of the tutorial runs as written, block after block."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"^```python ?(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OUTPUT = re.compile(r"^```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"\d\.\d+")
COMMAND = re.compile(r"^    reloss (.*)$", re.MULTILINE)


def test_a_loss_for_your_own_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "your-own-metric.md").read_text(encoding="utf-8")
    names: dict = {"__name__": "tutorial"}
    capsys.readouterr()
    for file, code in BLOCK.findall(text):
        if file:
            Path(file).write_text(code, encoding="utf-8")
        else:
            exec(compile(code, "your-own-metric.md", "exec"), names)
    (promised,), printed = OUTPUT.findall(text), capsys.readouterr().out
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", promised)
    assert [*map(float, NUMBER.findall(printed))] == pytest.approx([*map(float, NUMBER.findall(promised))], abs=0.03)
    assert names["result"].spearman > 0.9
    assert names["result_of_set"].spearman > 0.7
    assert min(names["learned"]) > 0.9
    assert abs(sum(names["learned"]) - sum(names["ordinary"])) / 3 < 0.03
    assert names["again"].options() == names["result"].surrogate.options()

    (command,) = COMMAND.findall(text)
    code, out, err = cli(*command.split())
    assert code == 0, err
    assert (tmp_path / "mcc-by-command" / "surrogate.safetensors").exists()
    assert '"spearman": 0.9' in out
