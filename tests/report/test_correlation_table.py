import csv
import io
import json

import pytest
from small import DIGITS

from reloss.experiment.records import read_records
from reloss.report.correlation_table import correlation_rows, correlation_table
from reloss.runtime.errors import RelossError
from reloss.runtime.files import write_json


def card(objective="rank", **learn):
    fit = {"spearman": 0.91, "spearman_synthetic": 0.97, "spearman_ordinary": 0.88, "validation_items": 128}
    return {"metric": "accuracy", "learn": {"objective": objective, **learn}, "fit": fit}


@pytest.fixture
def runs(tmp_path):
    """Two surrogates, one of them used by a run, and a diagnosis of that one and of cross-entropy."""
    home = tmp_path / DIGITS
    write_json(home / "surrogates" / "one" / "surrogate.json", card())
    write_json(home / "surrogates" / "two" / "surrogate.json", card(penalty="off"))
    facts = {"experiment": DIGITS, "loss": "reloss", "settings": [], "seed": 3, "protocol": "p", "scores": {}}
    summary = {"status": "finished", "surrogate": {"folder": "surrogates/one"}, **facts}
    write_json(home / "reloss" / "seed3" / "summary.json", summary)
    write_json(home / "reloss" / "seed3" / "environment.json", {"commit": "abc", "command": "reloss run it"})
    figures = {"kendall_checkpoints": 0.6, "spearman_late": 0.5, "checkpoints": 40}
    entries = [{"spearman_checkpoints": 0.8, **figures}]
    entries += [{"folder": "surrogates/one", "spearman_checkpoints": 0.9, "spearman": 0.1, **figures}]
    write_json(home / "diagnostics" / "diagnostics.json", entries)
    return tmp_path


def read_rows(runs, damaged=None):
    return correlation_rows(read_records(runs, damaged))


def digits_rows(runs, damaged=None):
    """The rows of cross-entropy and of the surrogates, by the surrogate's name."""
    rows = [row for row in read_rows(runs, damaged) if row.experiment == DIGITS and row.loss in ("ce", "reloss")]
    return {row.surrogate: row for row in rows}


def test_each_loss_has_its_measurements(runs):
    rows = digits_rows(runs)
    assert [(name, row.changes) for name, row in rows.items()] == [("", ()), ("one", ()), ("two", ("penalty=off",))]
    ordinary, one, two = rows.values()
    assert ordinary.rankings == {
        "spearman": 0.88, "spearman_checkpoints": 0.8, "kendall_checkpoints": 0.6, "spearman_late": 0.5,
    }  # fmt: skip
    assert one.rankings["spearman"] == 0.91  # from the fit, not from the diagnosis
    assert one.rankings["spearman_checkpoints"] == 0.9
    assert one.difference == pytest.approx(0.03)
    assert (one.items, one.checkpoints, one.commits, one.command) == (128, 40, ("abc",), "reloss run it")
    assert one.records == (f"{DIGITS}/surrogates/one", f"{DIGITS}/reloss/seed3")
    assert "spearman_checkpoints" not in two.rankings
    assert two.records == (f"{DIGITS}/surrogates/two",)


def test_without_a_diagnosis_the_last_run_ranks_the_checkpoints(runs):
    (runs / DIGITS / "diagnostics" / "diagnostics.json").unlink()
    path = runs / DIGITS / "reloss" / "seed3" / "summary.json"
    measured = {"spearman_checkpoints": 0.7, "checkpoints": 20}
    write_json(path, {**json.loads(path.read_text()), "diagnostics": measured})
    row = digits_rows(runs)["one"]
    assert (row.rankings["spearman_checkpoints"], row.checkpoints) == (0.7, 20)


def test_formats(runs, cli):
    code, out, _ = cli("table", "correlation", "--runs", runs)
    assert code == 0
    assert f"| {DIGITS} | ce | none | accuracy | 0.880 | not measured | 0.800 |" in out
    assert f"| {DIGITS} | approx | none | accuracy | not run |" in out
    assert f"| {DIGITS} | reloss | two penalty=off | accuracy |" in out
    table = correlation_table(read_rows(runs))
    rows = list(csv.reader(io.StringIO(table.csv())))
    assert {"experiment", "loss", "surrogate", "spearman", "kendall_checkpoints", "difference"} < set(rows[0])
    assert {len(row) for row in rows} == {len(rows[0])}
    objects = json.loads(table.json())
    assert len(objects) == len(rows) - 1
    assert "two penalty=off" in [row["surrogate"] for row in objects]


def test_a_damaged_card_is_named_and_skipped(runs):
    path = runs / DIGITS / "surrogates" / "one" / "surrogate.json"
    path.write_text("{")
    with pytest.raises(RelossError, match=r"one/surrogate\.json"):
        read_rows(runs)
    damaged = []
    assert list(digits_rows(runs, damaged)) == ["", "two"]
    assert len(damaged) == 1
    assert str(path) in damaged[0]


def test_no_folder(cli, tmp_path):
    code, _, err = cli("table", "correlation", "--runs", tmp_path / "none")
    assert code == 2
    assert "start with `reloss run`" in err
