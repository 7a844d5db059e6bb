import json

import pytest
import torch
from scipy.stats import spearmanr
from small import DIGITS

from reloss.experiment.predictions import read_predictions
from reloss.experiment.workspace import Workspace
from reloss.metrics import accuracy
from reloss.pipeline.checkpoint_ranking import diagnose_loss, finished_runs
from reloss.runtime.errors import RelossError
from reloss.runtime.files import read_json, write_json
from reloss.surrogates import ClassificationReLoss

SMALL = ("train.epochs=4", "learn.steps=10", "learn.items=16")
WHERE = ("--runs", "runs")


@pytest.fixture
def runs(run_digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_digits("reloss", settings=SMALL)  # and the baseline before it
    return tmp_path / "runs"


def test_diagnose_ranks_the_checkpoints_of_all_runs(runs, cli):
    home = runs / DIGITS
    recorded = finished_runs(Workspace(runs), DIGITS, ClassificationReLoss.gold)
    assert {name: len(outputs) for name, (outputs, _) in recorded.items()} == {
        "ce@train.epochs=4/seed0": 4,
        "reloss@learn.items=16,learn.steps=10,train.epochs=4/seed0": 4,
    }
    code, out, err = cli("diagnose", DIGITS, *WHERE)
    assert code == 0, err
    ordinary, learned = read_json(home / "diagnostics" / "diagnostics.json")
    surrogate = ClassificationReLoss.from_pretrained(home / learned["folder"])
    values = torch.cat([accuracy(*run) for run in recorded.values()])
    for entry, loss in ((ordinary, surrogate.ordinary_loss), (learned, surrogate.per_item)):
        losses = torch.cat([loss(*run) for run in recorded.values()])
        assert entry["spearman_checkpoints"] == pytest.approx(spearmanr(-losses, values).statistic, abs=1e-5)
        assert (entry["checkpoints"], entry["runs"]) == (8, 2)
        assert f"| {entry['spearman_checkpoints']:.3f} |" in out
    assert read_json(home / learned["folder"] / "diagnostics.json")["runs"] == 2
    for name in ("curves.png", "checkpoints.png"):
        assert (home / "diagnostics" / name).stat().st_size > 5000
    assert json.loads(cli("diagnose", DIGITS, *WHERE, "--json")[1]) == [ordinary, learned]


def test_a_record_has_its_diagnostics_and_the_final_predictions_give_its_score(runs):
    (record,) = (runs / DIGITS).glob("reloss@*/seed0")
    summary = read_json(record / "summary.json")
    outputs, targets = read_predictions(record)
    assert outputs.dtype == torch.float32
    assert float(accuracy(outputs, targets)[-1]) == pytest.approx(summary["scores"]["validation_accuracy"])
    assert summary["diagnostics"]["checkpoints"] >= 4
    assert -1 <= summary["diagnostics"]["spearman_checkpoints"] <= 1


def test_what_is_not_finished_damaged_or_missing(runs, cli):
    home = runs / DIGITS
    (record,) = home.glob("reloss@*/seed0")
    write_json(record / "summary.json", {**read_json(record / "summary.json"), "status": "failed"})
    assert list(finished_runs(Workspace(runs), DIGITS, ClassificationReLoss.gold)) == ["ce@train.epochs=4/seed0"]
    (baseline,) = home.glob("ce@*/seed0")
    damaged = baseline / "predictions" / "0002.safetensors"
    damaged.write_bytes(b"cut")
    with pytest.raises(RelossError, match=r"0002\.safetensors cannot be read"):
        read_predictions(baseline)
    code, _, err = cli("diagnose", DIGITS, *WHERE)
    assert (code, "no finished run with recorded predictions" in err) == (2, True)
    assert f"skipped: the predictions {damaged.relative_to(runs.parent)} cannot be read" in err
    write_json(record / "summary.json", {**read_json(record / "summary.json"), "status": "finished"})
    code, _, err = cli("diagnose", DIGITS, *WHERE)
    assert (code, err.count("skipped: ")) == (0, 1)
    assert {entry["runs"] for entry in read_json(home / "diagnostics" / "diagnostics.json")} == {1}
    (card,) = home.glob("surrogates/*/surrogate.json")
    card.write_text("{}")
    code, _, err = cli("diagnose", DIGITS, *WHERE)
    assert (code, "surrogate.json is damaged (wrong: metric, learn, fit)" in err) == (0, True)
    assert [entry["loss"] for entry in read_json(home / "diagnostics" / "diagnostics.json")] == ["ce"]
    code, _, err = cli("diagnose", DIGITS, "--runs", "elsewhere")
    assert (code, "start with `reloss run" in err) == (2, True)
    assert cli("diagnose", "classification/digit", *WHERE)[0] == 2


def test_predictions_of_another_form_are_skipped():
    logits, scores = (torch.randn(4, 20, 3), torch.randint(3, (4, 20))), (torch.randn(4, 20), torch.zeros(4, 20).long())
    assert diagnose_loss(ClassificationReLoss(), "accuracy", [scores, logits])["runs"] == 1
    assert diagnose_loss(ClassificationReLoss(), "accuracy", [scores]) == {}
