"""A second fit, with the predictions of a run that was trained with the first surrogate."""

import json

import pytest
import torch
from small import DIGITS, SMALL

from reloss.experiment.predictions import read_predictions
from reloss.experiment.run_spec import RunSpec, select_fit_settings
from reloss.experiment.workspace import Workspace
from reloss.learning import PredictionBank
from reloss.pipeline import recording
from reloss.runtime.errors import UsageError
from reloss.surrogates.storage import read_card
from reloss.sweep.plan import make_plan

SETTINGS = (*SMALL, "recording.item_size=32")
REFIT = (*SETTINGS, "refit=true")


def surrogate(record):
    return json.loads((record / "summary.json").read_text())["surrogate"]["folder"]


def test_a_second_fit_learns_from_the_predictions_of_the_first_round(run_digits, tmp_path):
    home = tmp_path / "runs" / DIGITS
    record = run_digits("reloss", seed=1, settings=REFIT)
    first, baseline = (next(home.glob(f"{loss}@*/seed0")) for loss in ("reloss", "ce"))
    assert surrogate(record) != surrogate(first)
    (path,) = home.glob("bank_refit_*")
    bank = PredictionBank.open(path)
    assert read_card(home / surrogate(record))["bank"] == bank.fingerprint()
    assert bank.meta["origin"]["record"] == str(first.relative_to(home))
    assert bank.steps().unique().tolist() == [0, 1]
    items, _ = bank.items(torch.arange(len(bank)))
    for step, source in enumerate((baseline, first)):
        rows = {tuple(row) for row in read_predictions(source)[0][0].tolist()}
        recorded = items[bank.steps() == step].flatten(0, 1)
        assert {tuple(row) for row in recorded.tolist()} <= rows


def test_all_seeds_share_the_second_surrogate(run_digits, tmp_path):
    records = [run_digits("reloss", seed=seed, settings=REFIT) for seed in (0, 1)]
    assert len({surrogate(record) for record in records}) == 1
    assert len(list((tmp_path / "runs" / DIGITS / "surrogates").iterdir())) == 2


def test_other_predictions_make_another_bank(run_digits, tmp_path, monkeypatch):
    home = tmp_path / "runs" / DIGITS
    run_digits("reloss", settings=REFIT, stage="learn")
    original = recording.read_predictions

    def doubled(record):
        outputs, targets = original(record)
        return 2 * outputs, targets

    monkeypatch.setattr(recording, "read_predictions", doubled)
    run_digits("reloss", settings=REFIT, stage="learn")
    assert len(list(home.glob("bank_refit_*"))) == 2
    assert len(list((home / "surrogates").iterdir())) == 3


def test_the_stage_train_needs_the_first_round(run_digits):
    run_digits(settings=SETTINGS)
    with pytest.raises(UsageError, match=r"a second fit needs the finished run .* seed 0; run --stage all"):
        run_digits("reloss", seed=1, settings=REFIT, stage="train")


def test_too_few_predictions_are_refused(run_digits):
    with pytest.raises(UsageError, match="too few validation predictions for a second fit"):
        run_digits("reloss", settings=(*REFIT, "recording.examples=8"))


@pytest.mark.parametrize("loss", ["ce", "expected"])
def test_losses_that_learn_nothing_have_no_second_fit(loss):
    assert RunSpec.resolve(DIGITS, loss, 0, ["refit=true"]).settings == ()


def test_the_first_round_has_the_seed_of_the_bank():
    run = RunSpec.resolve(DIGITS, "reloss", 3, ["refit=true", "train.lr=0.1", "learn.steps=9"])
    assert run.first_round() == RunSpec.resolve(DIGITS, "reloss", 0, ["train.lr=0.1", "learn.steps=9"])
    assert select_fit_settings(run.settings) == run.settings


def test_a_sweep_fits_a_second_time_before_the_runs_that_need_it():
    settings = ["refit=true", "train.lr=0.1"]
    plan = make_plan(DIGITS, ["reloss"], [0, 1], settings)
    (fit,) = plan.fits
    assert fit.run.settings == ("refit=true", "train.lr=0.1")
    assert all(plan.needs[job] == [fit] for job in plan.runs)
    assert Workspace().record(fit.run.first_round()) not in [Workspace().record(job.run) for job in plan.runs]
