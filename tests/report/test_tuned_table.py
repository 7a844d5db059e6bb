import json

import pytest

from reloss.experiment.records import read_runs
from reloss.experiment.task import tasks
from reloss.report.tables import read_table
from reloss.report.tuned_table import tuned_rows, tuned_table
from reloss.runtime.files import write_json

DIGITS = "classification/digits_cnn"


@pytest.fixture
def runs(tmp_path):
    """Losses at several learning rates. Validation prefers a different rate for each loss than the test set does."""

    def record(loss, settings, seed, validation, test, status="finished"):
        folder = tmp_path / DIGITS / f"{loss}@{','.join(settings)}" / f"seed{seed}"
        scores = {"accuracy": test, "validation_accuracy": validation}
        facts = {"experiment": DIGITS, "loss": loss, "settings": settings, "seed": seed, "protocol": "p"}
        write_json(folder / "summary.json", {"status": status, "scores": scores, **facts})

    for seed in (0, 1):
        record("ce", [], seed, 0.50, 0.70)
        record("ce", ["train.lr=0.2"], seed, 0.60, 0.50 + 0.1 * seed)
        record("reloss", [], seed, 0.65, 0.56 + 0.1 * seed)
        record("reloss", ["train.lr=0.2"], seed, 0.55, 0.90)
        record("reloss", ["train.ordinary_weight=1", "train.lr=0.1"], seed, 0.40, 0.40)
        record("reloss", ["train.lr=0.4"], seed, 0.99, 0.99, status="failed")
        record("approx", [], seed, 0.50, 0.50)
        record("approx", ["train.lr=0.2"], seed, 0.90, 0.90, status="failed" if seed else "finished")
    return tmp_path


def read_rows(runs):
    return tuned_rows(tasks()["classification"], read_runs(runs), "accuracy")


def test_each_loss_at_its_best_rate_on_the_validation_split(runs):
    ce, approx, reloss, mixed = read_rows(runs)
    assert (ce.best, reloss.best, mixed.best) == (0.2, 0.05, 0.1)
    assert (ce.rates, reloss.rates) == ((0.05, 0.2), (0.05, 0.2, 0.4))
    assert (ce.failed, reloss.failed) == ({}, {0.4: "2 of 2 failed"})
    assert (ce.test.mean, reloss.validation.mean) == (pytest.approx(55), pytest.approx(65))
    assert (approx.best, approx.failed) == (
        0.05,
        {0.2: "1 of 2 failed"},
    )  # a rate with a failed run does not win by the others
    assert ce.difference is None
    assert reloss.difference.mean == pytest.approx(6)
    assert mixed.settings == ("train.ordinary_weight=1",)
    assert mixed.difference.mean == pytest.approx(-15)


def test_formats(runs, cli):
    code, out, _ = cli("table", "classification", "--tuned", "accuracy", "--runs", runs)
    assert code == 0
    assert f"| {DIGITS} | reloss | none | 0.05, 0.2, 0.4 (2 of 2 failed) | 0.05 | 65.00 ± 0.00 | 61.00 ± 7.07 | " in out
    table = tuned_table(read_rows(runs), "accuracy")
    assert table.csv().splitlines()[0].startswith("experiment,loss,settings,rates,")
    assert json.loads(table.json())[1]["best"] == 0.05


@pytest.mark.parametrize("words", [("classification", "--tuned", "acuracy"), ("classificaton", "--tuned", "accuracy")])
def test_unknown_names(runs, cli, words):
    code, _, err = cli("table", *words, "--runs", runs)
    assert code == 2
    assert "acuracy" in err or "classification" in err


@pytest.mark.parametrize("rate", ["0", "fast", "-1", "nan"])
def test_an_impossible_learning_rate_in_a_record_stops_no_table(tmp_path, write_summary, rate):
    scores = {"accuracy": 0.9, "validation_accuracy": 0.8}
    write_summary("ce", 0, scores=scores)
    write_summary("ce", 1, settings=(f"train.lr={rate}",), scores=scores)
    for table in (read_table("classification", tmp_path), read_table("classification", tmp_path, tuned="accuracy")):
        assert "90.00" in table.markdown()
        assert json.loads(table.json(), parse_constant=pytest.fail)
