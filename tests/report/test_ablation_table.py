import csv
import io
import json

import pytest
from records import record

from reloss.experiment.records import read_records
from reloss.report.ablation_table import ablation_rows, ablation_table, best_variants, started_ablations
from reloss.report.row_status import RowKind
from reloss.runtime.files import write_json

DIGITS = "classification/digits_cnn"


@pytest.fixture
def runs(tmp_path):
    """Records of a sweep with data.format=folder: the baseline, the centre and one variant with a failed run."""

    def record(loss, changes, seed, validation, status="finished", **more):
        settings = ["data.format=folder", *changes]
        folder = tmp_path / DIGITS / f"{loss}@{','.join(settings)}" / f"seed{seed}"
        scores = {"accuracy": validation - 0.1, "validation_accuracy": validation} if validation else {}
        facts = {"experiment": DIGITS, "loss": loss, "settings": settings, "seed": seed, "protocol": "p", **more}
        write_json(folder / "summary.json", {"status": status, "scores": scores, **facts})
        write_json(folder / "environment.json", {"commit": "abc"})

    fit = {"folder": "surrogates/one", "spearman": 0.9, "spearman_synthetic": 0.8, "seconds": 4.0}
    for seed, (ordinary, centre) in enumerate([(0.50, 0.53), (0.60, 0.61), (0.55, 0.57)]):
        record("ce", [], seed, ordinary)
        record("reloss", [], seed, centre, surrogate=fit)
    other = {**fit, "folder": "surrogates/two", "seconds": 6.0}
    record("reloss", ["learn.penalty=off"], 0, 0.40, surrogate=other)
    record("reloss", ["learn.penalty=off"], 1, None, "failed", cause="diverged", surrogate=other)
    figures = {"spearman_checkpoints": 0.7, "kendall_checkpoints": 0.6, "spearman_late": 0.5}
    write_json(tmp_path / DIGITS / "diagnostics" / "diagnostics.json", [{"folder": "surrogates/one", **figures}])
    return tmp_path


def read_rows(runs):
    return ablation_rows(read_records(runs))


def row_of(rows, value):
    (row,) = [row for row in rows if row.experiment == DIGITS and row.value == value]
    return row


def test_rows(runs):
    rows = read_rows(runs)
    centre = row_of(rows, "fidelity=corrected")
    assert centre.validation.mean == pytest.approx(57)
    assert centre.test.mean == pytest.approx(47)
    assert centre.difference.mean == pytest.approx(2)
    assert centre.rankings["spearman_checkpoints"] == 0.7
    assert (centre.rankings["spearman"], centre.seconds, centre.status.kind) == (0.9, 4.0, RowKind.FINISHED)
    assert row_of(rows, "cross-entropy").difference is None
    (off,) = [row for row in rows if (row.experiment, row.factor, row.value) == (DIGITS, "penalty", "off")]
    assert (off.validation.n, off.difference.mean) == (1, pytest.approx(-10))
    assert (off.status.kind, str(off.status)) == (RowKind.INCOMPLETE, "seed 1 failed: diverged")
    assert str(row_of(rows, "Kendall").status) == "not run (no record)"


def test_variants_are_found_by_the_values_of_their_settings(tmp_path):
    shared = ["data.per_class=5", "learn.steps=100"]  # cross-entropy does not use the second one
    for loss, settings, score in (
        ("ce", shared[:1], 0.5),
        ("reloss", shared, 0.6),
        ("reloss", [*shared, "learn.penalty_weight=1.0"], 0.7),
    ):
        record(tmp_path, DIGITS, loss, 0, score, settings=settings, scores={"validation_accuracy": score})
    rows = read_rows(tmp_path)
    assert row_of(rows, "cross-entropy").validation.mean == pytest.approx(50)
    assert row_of(rows, "fidelity=corrected").difference.mean == pytest.approx(10)
    assert row_of(rows, "example, weight 1").difference.mean == pytest.approx(20)


def test_the_best_paired_difference_is_named(runs, tmp_path):
    best = best_variants(read_rows(runs))
    assert {name: row.value for name, row in best.items()} == {DIGITS: "fidelity=corrected"}
    (tmp_path / "empty").mkdir()
    assert best_variants(read_rows(tmp_path / "empty")) == {}


def test_only_experiments_with_variants_are_started(runs, tmp_path):
    assert {row.experiment for row in started_ablations(read_rows(runs))} == {DIGITS}
    (tmp_path / "empty").mkdir()
    assert started_ablations(read_rows(tmp_path / "empty")) == []


def test_formats(runs, cli):
    code, out, _ = cli("table", "ablation", "--runs", runs)
    assert code == 0
    assert f"| {DIGITS} | baseline | cross-entropy |" in out
    assert "+2.00 [" in out
    assert "not run" in out
    assert out.rstrip().endswith(" Commits: abc.")
    assert f"Best differences: {DIGITS}: centre fidelity=corrected, +2.00 [" in out
    table = ablation_table(read_rows(runs))
    rows = list(csv.reader(io.StringIO(table.csv())))
    assert {"experiment", "factor", "spearman", "validation_mean", "test_mean", "difference", "low"} < set(rows[0])
    assert {len(row) for row in rows} == {len(rows[0])}
    assert len(json.loads(table.json())) == len(rows) - 1
    assert r"\midrule" in table.latex()


def test_no_folder(cli, tmp_path):
    code, _, err = cli("table", "ablation", "--runs", tmp_path / "none")
    assert code == 2
    assert "start with `reloss sweep ablation`" in err
