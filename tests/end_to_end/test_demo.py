"""`reloss demo` as a stranger runs it."""

import json
import re

import pytest

from reloss.commands.demo import EXPERIMENT, RIVALS, verdict
from reloss.experiment.records import read_runs


def f1(folder, loss, score="binary_f1"):
    """Return the scores of a loss by seed, in percent, read from its summaries."""
    records = sorted((folder / "runs" / EXPERIMENT / loss).glob("seed*"))
    return [100 * json.loads((record / "summary.json").read_text())["scores"][score] for record in records]


@pytest.mark.slow
def test_demo(finish, tmp_path):
    output = finish("demo", "--out", tmp_path, "--seeds", "3")
    for name in ("training_curves", "loss_against_metric"):
        assert (tmp_path / "figures" / f"{name}.png").stat().st_size > 5000
    assert EXPERIMENT in (tmp_path / "report.html").read_text()
    rows = (tmp_path / "table.md").read_text().splitlines()
    for rival in RIVALS:
        scores = f1(tmp_path, rival.loss, rival.score)
        assert len(scores) == 3
        (row,) = [line for line in rows if line.startswith(f"| {rival.label} |")]
        assert f"| {sum(scores) / 3:.2f} ± " in row
        assert f"{sum(scores) / 3:.2f} ± " in output
    assert verdict(read_runs(tmp_path / "runs")) in re.sub(r"\s+", " ", output)
    learned, ordinary = (sum(f1(tmp_path, loss)) / 3 for loss in ("reloss", "ce"))
    assert learned > ordinary + 10
