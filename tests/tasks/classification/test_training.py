import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from small import DIGITS
from torch.nn import functional as F

from reloss.experiment.metrics_log import read_metrics
from reloss.experiment.record import Record
from reloss.learning import PredictionBank
from reloss.runtime.errors import RelossError, UsageError
from reloss.surrogates import ClassificationReLoss
from reloss_tasks.classification.config import Train
from reloss_tasks.classification.losses import make_loss
from reloss_tasks.classification.training import learning_rate

RECIPE = {"epochs": 100, "batch_size": 1, "lr": 0.4, "weight_decay": 0}


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [(0, 0.4), (25, 0.2 * (1 + math.sqrt(0.5))), (50, 0.2), (75, 0.2 * (1 - math.sqrt(0.5))), (100, 0)],
)
def test_cosine(epoch, rate):
    assert learning_rate(Train(**RECIPE), epoch) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("epoch", "rate"), [(0, 0.4), (29.99, 0.4), (30, 0.04), (59.99, 0.04), (60, 0.004), (99, 0.004)]
)
def test_steps(epoch, rate):
    assert learning_rate(Train(**RECIPE, schedule="step", milestones=(30, 60)), epoch) == pytest.approx(rate)


@pytest.mark.parametrize(("epoch", "rate"), [(0, 0.0008), (1, 0.08), (2.5, 0.2), (5, 0.4), (52.5, 0.2)])
def test_warmup_is_linear(epoch, rate):
    assert learning_rate(Train(**RECIPE, warmup_epochs=5), epoch) == pytest.approx(rate)


@given(
    epoch=st.floats(0, 100),
    schedule=st.sampled_from(["cosine", "step"]),
    warmup=st.integers(0, 100),
    milestones=st.lists(st.integers(1, 100), max_size=4),
)
def test_learning_rate_stays_between_0_and_lr(epoch, schedule, warmup, milestones):
    recipe = Train(**RECIPE, schedule=schedule, warmup_epochs=warmup, milestones=tuple(sorted(milestones)))
    assert 0 <= learning_rate(recipe, epoch) <= 0.4


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(8, 10, generator=generator), torch.randint(10, (8,), generator=generator)


@pytest.fixture
def surrogate():
    torch.manual_seed(0)
    return ClassificationReLoss(input="log_probability", output="identity").freeze()


def test_ce_is_cross_entropy(a_run, batch):
    assert torch.equal(make_loss(a_run("ce"))(*batch), F.cross_entropy(*batch))


def test_label_smoothing(a_run, batch):
    expected = 0.7 * F.cross_entropy(*batch) - 0.3 * F.log_softmax(batch[0], -1).mean()
    loss = make_loss(a_run("label_smoothing", "train.label_smoothing=0.3"))(*batch)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("loss", ["reloss", "approx"])
def test_ordinary_weight_mixes_exactly(a_run, batch, surrogate, loss):
    learned = surrogate(*batch)
    assert torch.equal(make_loss(a_run(loss, surrogate=surrogate))(*batch), learned)
    mixed = make_loss(a_run(loss, "train.ordinary_weight=0.25", surrogate=surrogate))(*batch)
    assert torch.equal(mixed, learned + 0.25 * F.cross_entropy(*batch))


def test_a_learned_loss_passes_gradients_and_learns_nothing(a_run, batch, surrogate):
    outputs = batch[0].clone().requires_grad_()
    make_loss(a_run("reloss", surrogate=surrogate))(outputs, batch[1]).backward()
    assert (outputs.grad.norm(dim=-1) > 0).all()
    assert all(parameter.grad is None for parameter in surrogate.parameters())


def test_a_learned_loss_needs_its_surrogate(a_run):
    with pytest.raises(RelossError, match="loss 'reloss' needs a learned surrogate"):
        make_loss(a_run("reloss"))


# Resuming

EPOCHS = ("train.epochs=3", "learn.steps=10", "learn.items=16")


def metrics(record):
    return [{**entry, "seconds": None} for entry in read_metrics(record / "metrics.jsonl")]


def status(record):
    return json.loads((record / "summary.json").read_text())


def assert_same_bank(one, other):
    assert one.fingerprint() == other.fingerprint()
    everything = torch.arange(len(one))
    for ours, theirs in zip(one.items(everything), other.items(everything), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(one.steps(), other.steps())


def assert_same_run(one, other):
    ours, theirs = (load_file(record / "checkpoint" / "weights.safetensors") for record in (one, other))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert metrics(one) == metrics(other)
    assert status(one)["scores"] == status(other)["scores"]


def interrupt_after(monkeypatch, method, calls):
    """Press Ctrl-C right after call number `calls` of a method of the record."""
    original, counter = getattr(Record, method), []

    def wrapped(self, *arguments, **values):
        original(self, *arguments, **values)
        counter.append(1)
        if len(counter) == calls:
            raise KeyboardInterrupt

    monkeypatch.setattr(Record, method, wrapped)


@pytest.mark.parametrize(
    ("method", "calls"), [("save_checkpoint", 1), ("save_checkpoint", 2), ("log", 1), ("log", 3), ("save_weights", 1)]
)
def test_an_interrupted_run_ends_as_an_uninterrupted_one(run_digits, tmp_path, monkeypatch, method, calls):
    whole = run_digits(settings=EPOCHS, runs=tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_after(patch, method, calls)
        with pytest.raises(KeyboardInterrupt):
            run_digits(settings=EPOCHS)
    record = tmp_path / "runs" / whole.relative_to(tmp_path / "whole")
    bank = tmp_path / "runs" / DIGITS / "bank"
    assert status(record)["status"] == "interrupted"
    assert PredictionBank.open(bank).meta["complete"] is False
    assert run_digits(settings=EPOCHS) == record
    assert status(record)["status"] == "finished"
    assert_same_run(record, whole)
    assert_same_bank(PredictionBank.open(bank), PredictionBank.open(tmp_path / "whole" / DIGITS / "bank"))


@pytest.mark.parametrize("weight", ["0", pytest.param("learned", marks=pytest.mark.slow)])
def test_an_interrupted_run_with_a_learned_loss_resumes_too(run_digits, tmp_path, monkeypatch, weight):
    settings = (*EPOCHS, f"train.ordinary_weight={weight}")
    whole = run_digits("reloss", settings=settings)
    (tmp_path / "runs" / whole.relative_to(tmp_path / "runs")).rename(tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_after(patch, "save_checkpoint", 2)
        with pytest.raises(KeyboardInterrupt):
            run_digits("reloss", settings=settings)
    assert status(whole)["status"] == "interrupted"
    assert_same_run(run_digits("reloss", settings=settings), tmp_path / "whole")
    logged = [entry.get("ordinary_weight") for entry in metrics(whole)]
    assert len(set(logged)) == (3 if weight == "learned" else 1)


def test_resume_does_not_repeat_finished_epochs(run_digits, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        interrupt_after(patch, "save_checkpoint", 2)
        with pytest.raises(KeyboardInterrupt):
            run_digits(seed=1, settings=EPOCHS)
    capsys.readouterr()
    run_digits(seed=1, settings=EPOCHS)
    output = capsys.readouterr().err
    assert "resuming from epoch 2/3" in output
    assert "epoch 2/3: loss" not in output
    assert "epoch 3/3: loss" in output


def test_seeds_differ_and_a_seed_repeats(run_digits, tmp_path):
    first, other = (run_digits(seed=seed, settings=("train.epochs=1",)) for seed in (1, 2))
    again = run_digits(seed=1, settings=("train.epochs=1",), runs=tmp_path / "again")
    assert_same_run(first, again)
    ours, theirs = (load_file(record / "checkpoint" / "weights.safetensors") for record in (first, other))
    assert all(not torch.equal(ours[name], theirs[name]) for name in ours)


# Failing


@pytest.mark.parametrize("seed", [0, 1])  # the recorded baseline, and another run
def test_a_diverged_run_reports_it_and_keeps_its_record(cli, tmp_path, seed):
    runs = tmp_path / "runs"
    words = (
        "run",
        DIGITS,
        "--seed",
        seed,
        "--runs",
        runs,
        "--track",
        "off",
        "--set",
        "train.epochs=2",
        "train.lr=1e30",
    )
    code, out, err = cli(*words)
    record = runs / DIGITS / "ce@train.epochs=2,train.lr=1e+30" / f"seed{seed}"
    assert code == 1
    assert out == ""
    assert "diverged" in err.splitlines()[-1]
    assert status(record)["status"] == "failed"
    assert "diverged" in status(record)["cause"]
    assert "Traceback" in (record / "error.log").read_text()
    assert not (record / "checkpoint" / "weights.safetensors").exists()


def test_metrics_before_a_failure_are_kept(run_digits, tmp_path, monkeypatch):
    settings = ("train.epochs=3",)
    whole = run_digits(seed=1, settings=settings, runs=tmp_path / "whole")
    monkeypatch.setattr(
        "reloss_tasks.classification.training.learning_rate", lambda recipe, epoch: 1e30 if epoch >= 2 else 0.05
    )
    with pytest.raises(RelossError, match=r"the loss of step (3[3-9]|4[0-7]) is not finite: training diverged"):
        run_digits(seed=1, settings=settings)
    record = tmp_path / "runs" / whole.relative_to(tmp_path / "whole")
    assert status(record)["status"] == "failed"
    assert [entry["epoch"] for entry in metrics(record)] == [1, 2]
    monkeypatch.undo()
    assert run_digits(seed=1, settings=settings) == record
    assert [entry["epoch"] for entry in metrics(record)] == [1, 2, 3]


def test_a_checkpoint_of_another_model_is_named(run_digits, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(patch, "save_checkpoint", 1)
        with pytest.raises(KeyboardInterrupt):
            run_digits(seed=1, settings=EPOCHS)
    (checkpoint,) = tmp_path.rglob("last.pt")
    torch.save({**torch.load(checkpoint, weights_only=True), "model": {"other": torch.ones(1)}}, checkpoint)
    with pytest.raises(RelossError, match="does not fit the model"):
        run_digits(seed=1, settings=EPOCHS)


# Fine-tuning

SHORT = "train.epochs=2"
FINE_TUNE = (SHORT, "train.init=baseline", "train.lr=1e-9")  # a rate at which nothing moves


def weights_of(record):
    return load_file(record / "checkpoint" / "weights.safetensors")


def test_fine_tuning_needs_the_baseline_of_its_seed_and_protocol(run_digits):
    run_digits(seed=2, settings=(SHORT,))
    run_digits(seed=1, settings=("train.epochs=1",))
    with pytest.raises(UsageError, match="to fine-tune, first run --loss ce --seed 1 with the same data, model"):
        run_digits("label_smoothing", seed=1, settings=FINE_TUNE, stage="train")


@pytest.mark.parametrize("baseline_first", [True, False])
def test_fine_tuning_starts_from_the_baseline(run_digits, tmp_path, baseline_first):
    if baseline_first:
        run_digits(seed=1, settings=(SHORT,))
    tuned = run_digits("label_smoothing", seed=1, settings=FINE_TUNE)
    baseline = tmp_path / "runs" / DIGITS / f"ce@{SHORT}" / "seed1"
    assert status(baseline)["status"] == "finished"
    before, after = weights_of(baseline), weights_of(tuned)
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=1e-6)
    assert metrics(tuned)[0]["validation_accuracy"] == metrics(baseline)[-1]["validation_accuracy"]


def test_training_from_scratch_does_not_start_from_the_baseline(run_digits):
    baseline = run_digits(seed=1, settings=(SHORT,))
    scratch = run_digits("label_smoothing", seed=1, settings=(SHORT, "train.lr=1e-9"))
    before, after = weights_of(baseline), weights_of(scratch)
    assert all((after[name] - value).abs().max() > 1e-3 for name, value in before.items())


def test_a_learned_loss_fine_tunes_from_scratch_in_one_command(run_digits, tmp_path):
    record = run_digits(
        "reloss", seed=1, settings=(*FINE_TUNE[:2], "train.lr=1e-3", "learn.steps=10", "learn.items=16")
    )
    home = tmp_path / "runs" / DIGITS
    assert {path.name for path in (home / f"ce@{SHORT}").iterdir()} == {"seed0", "seed1"}
    assert status(record)["status"] == "finished"
    assert metrics(record)[0]["validation_accuracy"] > 0.5  # after one epoch; the baseline reached 0.79
