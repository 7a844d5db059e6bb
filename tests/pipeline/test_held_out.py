"""The bank of predictions for validation examples, and when a fit learns from it."""

import json

import pytest
import torch
from small import DIGITS, SMALL

from reloss.experiment.predictions import read_predictions
from reloss.learning import PredictionBank
from reloss.pipeline import recording

SETTINGS = (*SMALL, "recording.item_size=32")


def half_known(outputs, targets):
    """A metric that has its best value for most items."""
    return (outputs.flatten(1).sum(-1) > outputs.flatten(1).sum(-1).quantile(0.1)).float()


def test_items_are_groups_of_one_epochs_validation_examples(run_digits, tmp_path):
    record = run_digits(settings=("train.epochs=2", *SETTINGS[1:]))
    outputs, targets = read_predictions(record)
    bank = PredictionBank.open(tmp_path / "runs" / DIGITS / "bank_held_out")
    assert bank.meta["complete"]
    assert len(bank) >= recording.HELD_OUT_ITEMS
    items, labels = bank.items(torch.arange(len(bank)))
    rows = torch.cat((outputs, targets[..., None].float()), -1)
    for step in (0, 1):
        of_step = bank.steps() == step
        recorded = torch.cat((items[of_step], labels[of_step][..., None].float()), -1).flatten(0, 1)
        assert {tuple(row) for row in recorded.tolist()} <= {tuple(row) for row in rows[step].tolist()}
        group = items[of_step][0]
        assert len(group.unique(dim=0)) == len(group)  # no example twice


def test_too_few_validation_examples_make_no_bank(run_digits, tmp_path):
    run_digits(settings=(*SMALL, "recording.examples=8"))
    assert not (tmp_path / "runs" / DIGITS / "bank_held_out").exists()


@pytest.mark.parametrize("share", [0.7, 0.8])
def test_a_saturated_bank_is_not_learned_from(run_digits, tmp_path, capsys, monkeypatch, share):
    monkeypatch.setattr(recording, "_best_share", lambda bank, metric: 0.1 if "held_out" in bank.path.name else share)
    record = run_digits("reloss", settings=SETTINGS)
    folder = json.loads((record / "summary.json").read_text())["surrogate"]["folder"]
    card = json.loads((tmp_path / "runs" / DIGITS / folder / "surrogate.json").read_text())
    name = "bank_held_out" if share > recording.SATURATED else "bank"
    assert card["bank"] == PredictionBank.open(tmp_path / "runs" / DIGITS / name).fingerprint()
    message = "80% of the recorded training predictions have the best accuracy, so they cannot be ranked"
    assert (message in capsys.readouterr().err) == (share > recording.SATURATED)


def test_the_first_bank_is_kept_where_the_other_does_not_vary(run_digits, tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "_best_share", lambda bank, metric: 1.0)
    record = run_digits("reloss", settings=SETTINGS)
    folder = json.loads((record / "summary.json").read_text())["surrogate"]["folder"]
    card = json.loads((tmp_path / "runs" / DIGITS / folder / "surrogate.json").read_text())
    assert card["bank"] == PredictionBank.open(tmp_path / "runs" / DIGITS / "bank").fingerprint()


def test_the_share_of_the_best_value(run_digits, tmp_path, monkeypatch):
    run_digits(settings=SETTINGS)
    bank = PredictionBank.open(tmp_path / "runs" / DIGITS / "bank")
    monkeypatch.setattr(recording, "get_metric", lambda name: half_known)
    assert recording._best_share(bank, "any") == pytest.approx(0.9, abs=0.03)
