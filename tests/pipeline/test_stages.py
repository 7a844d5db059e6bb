import json
import os
import shutil

import pytest
import torch
from small import DIGITS, SMALL, SMALL_CE

from reloss.experiment.config import Experiment, RequiredRun
from reloss.experiment.record import Record, weights_file
from reloss.experiment.run_spec import RunSpec
from reloss.experiment.task import tasks
from reloss.experiment.workspace import Workspace
from reloss.learning import PredictionBank
from reloss.pipeline.context import Context
from reloss.pipeline.outcome import recorded_outcome
from reloss.pipeline.preflight import baseline_weights
from reloss.pipeline.stages import run
from reloss.runtime.errors import RelossError, UsageError
from reloss.runtime.signals import Terminated
from reloss.surrogates import ClassificationReLoss


def summary(record):
    return json.loads((record / "summary.json").read_text())


def state(folder):
    """The files that a second call must not touch, with the times of their last change."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_all_runs_every_stage(run_digits, tmp_path):
    record = run_digits("reloss", seed=1)
    home = tmp_path / "runs" / DIGITS
    assert record == home / "reloss@learn.items=16,learn.steps=10,train.epochs=1" / "seed1"
    assert summary(home / "ce@train.epochs=1" / "seed0")["status"] == "finished"
    assert PredictionBank.open(home / "bank").meta["complete"] is True
    (surrogate,) = (home / "surrogates").iterdir()
    results = summary(record)
    assert results["status"] == "finished"
    assert results["surrogate"]["folder"] == f"surrogates/{surrogate.name}"
    assert results["surrogate"]["validation_items"] == 6  # a fifth of 16 batches of 2 items
    names = {"accuracy", "error", "top5_accuracy"}
    assert results["scores"].keys() == names | {f"validation_{name}" for name in names}
    assert results["scores"]["accuracy"] + results["scores"]["error"] == pytest.approx(1)
    assert ClassificationReLoss.from_pretrained(surrogate)(torch.randn(4, 10), torch.arange(4)).isfinite()


def test_one_surrogate_serves_all_seeds_and_a_second_call_does_nothing(run_digits, tmp_path):
    records = [run_digits("reloss", seed=seed) for seed in (0, 1)]
    before = state(tmp_path)
    assert records == [run_digits("reloss", seed=seed) for seed in (0, 1)]
    assert state(tmp_path) == before
    assert summary(records[0])["surrogate"] == summary(records[1])["surrogate"]
    run_digits("approx")
    assert len(list((tmp_path / "runs" / DIGITS / "surrogates").iterdir())) == 2


def test_stages_one_by_one_equal_all(run_digits, tmp_path):
    whole = run_digits("reloss", runs=tmp_path / "whole")
    run_digits("reloss", stage="baseline")
    run_digits("reloss", stage="learn")
    record = run_digits("reloss", stage="train")
    assert summary(record)["scores"] == summary(whole)["scores"]
    surrogates = [{**summary(one)["surrogate"], "seconds": None} for one in (record, whole)]
    assert surrogates[0] == surrogates[1]


def test_evaluate_measures_the_weights_again(run_digits):
    record = run_digits()
    scores = summary(record)["scores"]
    weights = record / "checkpoint" / "weights.safetensors"
    before = weights.stat().st_mtime_ns
    lines = (record / "metrics.jsonl").read_text()
    path = record / "summary.json"
    path.write_text(json.dumps({**summary(record), "scores": {}, "scores_hash": None}))
    assert run_digits(stage="evaluate") == record
    assert summary(record)["scores"] == scores
    assert weights.stat().st_mtime_ns == before
    assert (record / "metrics.jsonl").read_text() == lines


@pytest.mark.parametrize(
    ("loss", "stage", "message"),
    [
        ("reloss", "learn", r"no complete bank in .*; run --stage baseline \(or all\) first"),
        ("reloss", "train", "no complete bank"),
        ("ce", "learn", "'ce' is not learned; --stage learn needs reloss or approx"),
        ("ce", "evaluate", "no record to evaluate in .*seed0; run --stage train"),
        ("hinge", "all", "unknown loss of classification/digits_cnn 'hinge'"),
    ],
)
def test_a_stage_without_its_input_names_the_remedy(run_digits, loss, stage, message):
    with pytest.raises(UsageError, match=message):
        run_digits(loss, stage=stage)


def test_a_bank_belongs_to_the_protocol_that_recorded_it(run_digits, tmp_path):
    """A trial run does not leave a bank that the full experiment learns from, nor the other way round."""
    home = tmp_path / "runs" / DIGITS
    trial, full = ("data.per_class=20", "recording.item_size=8", *SMALL), SMALL
    records = {settings: run_digits("reloss", settings=settings) for settings in (trial, full)}
    banks = {path.parent.name: PredictionBank.open(path.parent) for path in home.glob("bank*/bank.json")}
    separate = next(name for name in banks if name not in ("bank", "bank_held_out") and "held" not in name)
    assert banks.keys() == {"bank", "bank_held_out", separate, f"{separate}_held_out"}
    for name, settings in (("bank", trial), (separate, full)):
        _, config = RunSpec.resolve(DIGITS, "reloss", 0, settings).load()
        assert banks[name].meta["origin"]["protocol"] == config.protocol()
        card = json.loads((home / summary(records[settings])["surrogate"]["folder"] / "surrogate.json").read_text())
        assert card["bank"] == banks[name].fingerprint()
    before = state(tmp_path)
    run_digits("reloss", settings=(*trial, "train.lr=0.1"), stage="learn")  # no part of the protocol
    assert state(tmp_path) == before


def fails(task, run):
    raise RelossError("not today")


def test_an_empty_bank_does_not_block_a_corrected_run(run_digits, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(type(tasks()["classification"]), "train", fails)
        with pytest.raises(RelossError, match="not today"):
            run_digits(settings=(*SMALL, "data.per_class=5"))
    record = run_digits()
    bank = PredictionBank.open(tmp_path / "runs" / DIGITS / "bank")
    assert bank.meta["complete"]
    assert bank.meta["origin"]["record"] == str(record.relative_to(tmp_path / "runs" / DIGITS))
    assert len(bank) == 32


def test_a_bank_that_another_run_started_is_not_touched(run_digits, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(type(tasks()["classification"]), "evaluate", fails)
        with pytest.raises(RelossError, match="not today"):
            run_digits(settings=(*SMALL, "data.per_class=5"))
    before = state(tmp_path / "runs" / DIGITS / "bank")
    run_digits()
    assert state(tmp_path / "runs" / DIGITS / "bank") == before


def test_resume_never_refuses_to_touch_a_record(run_digits, tmp_path):
    record = run_digits(seed=1)
    (record / "summary.json").write_text(json.dumps({**summary(record), "status": "interrupted"}))
    before = state(tmp_path)
    with pytest.raises(UsageError, match="holds a record, and --resume never does not touch it"):
        run_digits(seed=1, resume="never")
    assert state(tmp_path) == before
    (record / "summary.json").unlink()
    before = state(tmp_path)
    with pytest.raises(UsageError, match="holds a record, and --resume never does not touch it"):
        run_digits(seed=1, resume="never")
    assert state(tmp_path) == before


def test_resume_never_refuses_a_finished_run_too(run_digits, tmp_path):
    run_digits()
    before = state(tmp_path)
    for stage in ("all", "train", "baseline", "evaluate"):
        with pytest.raises(UsageError, match="holds a record, and --resume never does not touch it"):
            run_digits(resume="never", stage=stage)
    assert state(tmp_path) == before


@pytest.mark.parametrize("loss", ["ce", "reloss"])
@pytest.mark.parametrize(
    ("setting", "message"),
    [("data.positive_class=99", "has classes 0 to 9"), ("model.name=resnet999", "unknown model 'resnet999'")],
)
def test_a_run_that_cannot_succeed_leaves_no_record(run_digits, tmp_path, loss, setting, message):
    with pytest.raises(UsageError, match=message):
        run_digits(loss, settings=(*SMALL, setting))
    assert not list((tmp_path / "runs" / DIGITS).glob("*/seed*"))


def test_a_usage_error_keeps_what_was_recorded(run_digits, tmp_path, monkeypatch):
    def refuse(task, run):
        run.record.log(1, epoch=1)
        raise UsageError("no such thing")

    monkeypatch.setattr(type(tasks()["classification"]), "train", refuse)
    with pytest.raises(UsageError, match="no such thing"):
        run_digits()
    record = tmp_path / "runs" / DIGITS / SMALL_CE / "seed0"
    assert summary(record)["cause"] == "no such thing"


def test_a_finished_run_with_other_settings_in_the_same_folder_is_refused(run_digits, tmp_path):
    """A slash in a setting is an underscore in the name of the folder."""
    record = run_digits(seed=1)
    other = record.parent.with_name("ce@model.name=a_b,train.epochs=1") / "seed1"
    shutil.copytree(record, other)
    (other / "config.yaml").write_text((other / "config.yaml").read_text().replace("name: digits_cnn", "name: a_b"))
    assert run_digits(seed=1, settings=("train.epochs=1", "model.name=a_b")) == other
    with pytest.raises(UsageError, match=f"{other} holds a run with model.name=a_b; choose another --runs"):
        run_digits(seed=1, settings=("train.epochs=1", "model.name=a/b"))


def test_a_missing_bank_is_recorded_again(run_digits, tmp_path):
    record = run_digits()
    bank = tmp_path / "runs" / DIGITS / "bank"
    fingerprint, scores = PredictionBank.open(bank).fingerprint(), summary(record)["scores"]
    shutil.rmtree(bank)
    assert run_digits() == record
    new_bank = PredictionBank.open(bank)
    assert new_bank.meta["complete"] is True
    assert len(new_bank) == 32
    assert new_bank.fingerprint() == fingerprint
    assert summary(record)["scores"] == scores


@pytest.mark.parametrize(("capability", "noted"), [("AVX2", True), ("AVX512", False)])
def test_slow_bfloat16_is_noted(run_digits, capsys, monkeypatch, capability, noted):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    run_digits(settings=("train.epochs=1", "train.precision=bf16"))
    assert ("computes bfloat16 in software" in capsys.readouterr().err) == (noted and not torch.cuda.is_available())


@pytest.mark.parametrize("damage", ["predictions/0001.safetensors", "summary.json"])
def test_a_damaged_record_of_another_seed_is_reported_and_skipped(run_digits, capsys, damage):
    damaged = run_digits(seed=1) / damage
    run_digits(seed=2)
    damaged.write_bytes(b"")
    results = summary(run_digits(seed=3))
    assert (results["status"], results["diagnostics"]["runs"]) == ("finished", 2)
    messages = capsys.readouterr().err
    assert "skipped: " in messages
    assert str(damaged) in messages


def test_fine_tuning_skips_a_damaged_baseline(run_digits, tmp_path, capsys):
    record, workspace = run_digits(seed=1), Workspace(tmp_path / "runs")
    damaged = workspace.experiment(DIGITS) / "ce@train.lr=9" / "seed1" / "summary.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("null")
    spec = RunSpec.resolve(DIGITS, "reloss", 1, SMALL)
    assert baseline_weights(Context(spec, *spec.load(), workspace)) == [weights_file(record)]
    assert f"skipped: {damaged} is damaged" in capsys.readouterr().err


def test_evaluating_records_no_bank(run_digits, tmp_path):
    record = run_digits()
    shutil.rmtree(tmp_path / "runs" / DIGITS / "bank")
    run_digits(stage="evaluate")
    assert not (tmp_path / "runs" / DIGITS / "bank").exists()
    assert (record / "checkpoint" / "last.pt").exists()


def test_a_tuned_baseline_records_no_bank(run_digits, tmp_path):
    run_digits(settings=("train.epochs=1", "train.lr=0.001"))
    assert not list((tmp_path / "runs" / DIGITS).glob("bank*"))


@pytest.mark.parametrize("error", [Terminated(), RuntimeError("connection closed by peer")])
def test_the_first_error_of_another_process_is_the_cause(run_digits, error):
    """After another process failed, torchrun or a closed connection ends the main one."""
    path = run_digits()
    record = Record(path, RunSpec.resolve(DIGITS, "ce", 0, SMALL).load()[1], facts={"loss": "ce"})
    (path / "error.2.log").write_text("process 2: connection closed by peer\n")
    cause = "process 1: the loss of step 5 is not finite"
    (path / "error.1.log").write_text(f"{cause}\n\nTraceback ...")
    os.utime(path / "error.1.log", ns=(1, 1))
    with pytest.raises(RelossError, match=f"^{cause}$"), recorded_outcome(record):
        raise error
    assert (summary(path)["status"], summary(path)["cause"]) == (
        "failed",
        "process 1: the loss of step 5 is not finite",
    )


def test_only_the_recorded_seed_fills_the_bank(run_digits, tmp_path):
    run_digits(seed=3)
    assert not (tmp_path / "runs" / DIGITS / "bank").exists()
    settings = (*SMALL, "recording.seed=3")
    record = run_digits(seed=3, settings=settings)
    bank = PredictionBank.open(tmp_path / "runs" / DIGITS / "bank")
    assert bank.meta["origin"]["record"] == str(record.relative_to(tmp_path / "runs" / DIGITS))


def test_an_unknown_experiment_leaves_nothing(tmp_path):
    with pytest.raises(UsageError, match="did you mean classification/digits_cnn"):
        run(RunSpec("classification/digit_cnn", "ce", 0), Workspace(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


def test_prerequisites_of_other_experiments_run_first_and_once(run_digits, tmp_path, monkeypatch):
    prerequisite = RequiredRun("classification/digits8_cnn", "ce", 3)
    task = tasks()["classification"]
    monkeypatch.setattr(Experiment, "required_runs", lambda config: [prerequisite] if config.name == DIGITS else [])
    small = task.experiments[prerequisite.experiment]().model_copy(deep=True)
    small.train.epochs = 1
    monkeypatch.setitem(task.experiments, prerequisite[0], lambda: small)
    run_digits("ce", seed=1)
    record = tmp_path / "runs" / prerequisite[0] / "ce" / "seed3"
    assert summary(record)["status"] == "finished"
    before = state(record)
    run_digits("ce", seed=2)
    assert state(record) == before
    shutil.rmtree(record)
    with pytest.raises(UsageError, match="no record to evaluate"):
        run_digits("ce", seed=4, stage="evaluate")
    assert not record.exists()  # a single stage runs nothing else


def test_a_short_fine_tuning_starts_from_the_whole_baseline(run_digits, tmp_path):
    settings = ("train.epochs=2", *SMALL[1:])
    record = run_digits("reloss", settings=(*settings, "train.init=baseline", "train.length=0.5"))
    baseline = tmp_path / "runs" / DIGITS / "ce@train.epochs=2" / "seed0"
    epochs = [len((folder / "metrics.jsonl").read_text().splitlines()) for folder in (baseline, record)]
    assert epochs == [2, 1]
    before, after = summary(baseline)["scores"]["accuracy"], summary(record)["scores"]["accuracy"]
    assert after > before - 0.1  # from scratch, one epoch reaches half of that
