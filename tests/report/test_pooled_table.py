import json

import pytest

from reloss.experiment.records import read_runs
from reloss.experiment.task import tasks
from reloss.report.pooled_table import pooled_rows
from reloss.runtime.errors import UsageError
from reloss.runtime.files import write_json

SETS = ("keel_yeast4", "keel_yeast5", "keel_yeast6")


@pytest.fixture
def runs(tmp_path):
    """Three data sets, two folds each. Fold scores differ by .1 around the score of the set."""

    def record(data, loss, settings, validation, test, **more):
        for fold in (0, 1):
            name = f"classification/{data}"
            facts = {"experiment": name, "loss": loss, "settings": settings, "seed": fold, "protocol": "p"}
            scores = {"validation_binary_f1": validation, "binary_f1": test + 0.1 * fold - 0.05, **more}
            folder = tmp_path / name / f"{loss}@{','.join(settings)}" / f"seed{fold}"
            write_json(folder / "summary.json", {"status": "finished", "scores": scores, **facts})

    for number, data in enumerate(SETS):
        record(data, "ce", [], 0.5, 0.4, validation_tuned_f1=0.5, tuned_f1=0.55)
        record(data, "ce", ["train.lr=0.3"], 0.4, 0.9, validation_tuned_f1=0.7, tuned_f1=0.6)
        record(data, "reloss", [], 0.6, 0.5 + 0.05 * number)
        record(data, "reloss", ["train.ordinary_weight=0"], 0.5, 0.8)
        if number:
            record(data, "soft_f1", [], 0.5, 0.5)
    return tmp_path


def read_rows(runs, pattern="keel_*", score="binary_f1"):
    return {
        (row.loss, row.settings): row for row in pooled_rows(tasks()["classification"], read_runs(runs), score, pattern)
    }


def test_rates_and_the_learned_loss_are_chosen_on_validation(runs):
    rows = read_rows(runs)
    assert rows["ce", ()].mean.mean == pytest.approx(40)
    assert rows["ce, threshold tuned", ()].mean.mean == pytest.approx(60)
    learned = rows["reloss", ()]
    assert learned.difference is None
    assert learned.scores == pytest.approx({f"classification/{name}": 50 + 5 * n for n, name in enumerate(SETS)})


def test_differences_are_paired_by_set(runs):
    row = read_rows(runs)["ce", ()]
    assert (row.difference.n, row.won) == (3, 3)
    assert row.difference.mean == pytest.approx(15)
    assert row.difference.low == pytest.approx(15 - 4.3027 * 5 / 3**0.5, abs=1e-3)
    assert read_rows(runs)["reloss", ("train.ordinary_weight=0.0",)].won == 0


def test_a_loss_that_lacks_a_set_is_not_shown(runs):
    assert ("soft_f1", ()) not in read_rows(runs)
    assert ("soft_f1", ()) in read_rows(runs, "keel_yeast[56]")


def test_a_single_set_is_compared_by_seed(runs):
    row = read_rows(runs, "keel_yeast4")["ce", ()]
    assert (row.units, row.difference.n, row.won) == ("seeds", 2, 2)
    assert row.scores == pytest.approx({"seed 0": 35, "seed 1": 45})
    assert row.difference.mean == pytest.approx(10)


def test_the_command(runs, cli):
    code, out, _ = cli("table", "classification", "--tuned", "binary_f1", "--pool", "keel_*", "--runs", runs)
    assert code == 0
    assert "| ce | none | 40.00 ± 0.00 | +15.00 [+2.58, +27.42] | 3 | 3 |" in out
    assert "The learned loss is reloss, the best one on the validation splits." in out
    words = ("--tuned", "binary_f1", "--pool", "keel_*", "--runs", runs, "--format", "json")
    assert {row["won"] for row in json.loads(cli("table", "classification", *words)[1])} == {0, 3}


def test_refusals(runs, cli):
    with pytest.raises(UsageError, match=r"no finished record of reloss has the score mcc in experiments .*/keel_\*"):
        read_rows(runs, score="mcc")
    code, _, err = cli("table", "classification", "--pool", "keel_*", "--runs", runs)
    assert code == 2
    assert "name the score with --tuned" in err
