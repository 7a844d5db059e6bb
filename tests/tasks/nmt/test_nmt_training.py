import shutil
from argparse import Namespace

import pytest
import torch
from logged import check_logged
from processes import recorders
from safetensors.torch import load_file
from small import merged

from reloss.experiment.metrics_log import read_metrics
from reloss.experiment.predictions import read_predictions
from reloss.learning import PredictionBank
from reloss.metrics import bleu, token_bleu
from reloss.runtime.errors import RelossError, UsageError
from reloss.runtime.files import read_json
from reloss_tasks.nmt import training
from reloss_tasks.nmt.fairseq_commands import read_translations
from reloss_tasks.nmt.preparation import LONGEST
from reloss_tasks.nmt.scoring import examples
from reloss_tasks.nmt.watched_tasks import load_fitting_weights
from reloss_tasks.nmt.watcher import Watcher

SCORES = {
    *("sacreBLEU", "tokenised_BLEU", "sentences_per_second"),
    *("copied_source_sacreBLEU", "validation_sacreBLEU"),
}


def metrics(record):
    return [{**entry, "seconds": None} for entry in read_metrics(record / "metrics.jsonl")]


def weights(record):
    return load_file(record / "checkpoint" / "weights.safetensors")


def test_the_whole_pipeline_translates_a_toy_language(run_toy, tmp_path):
    record = run_toy("reloss", "train.updates=120", "train.ordinary_weight=1")
    home = tmp_path / "runs" / "nmt" / "multi30k_de_en_nat"
    (baseline,) = home.glob("nll@*/seed0")
    for folder in (baseline, record):
        summary = read_json(folder / "summary.json")
        assert summary["status"] == "finished"
        assert summary["scores"].keys() == SCORES
        assert summary["scores"]["copied_source_sacreBLEU"] < 0.1
        entries = metrics(folder)
        assert [entry["epoch"] for entry in entries] == list(range(1, len(entries) + 1))
        assert entries[-1]["step"] == 120
        assert entries[-1]["train_loss"] < entries[0]["train_loss"]
        assert entries[-1]["validation_sacreBLEU"] == summary["scores"]["validation_sacreBLEU"]
        assert not any("surrogate" in name for name in weights(folder))
        assert "fairseq-train" in (folder / "commands" / "train.txt").read_text()
        check_logged(folder)
        assert "case:lc" in read_json(folder / "translations" / "sacrebleu.json")["sacreBLEU"]
    assert read_json(baseline / "summary.json")["scores"]["sacreBLEU"] > 0.8
    bank = PredictionBank.open(home / "bank")
    outputs, targets = bank.items(torch.arange(len(bank)))
    assert outputs.shape == (len(bank), 8, 8, 8)
    assert targets.shape == (len(bank), 8, 8, 2)
    values = token_bleu(outputs, targets)
    assert values[-5:].mean() > values[:5].mean() + 0.3
    predicted, _ = read_predictions(record)
    assert predicted.shape[1:] == (13, 8, 8)
    assert read_json(record / "summary.json")["diagnostics"]["runs"] == 2  # both on the same sentences


def test_losses_over_expected_ngrams_train(run_toy, tmp_path):
    # Any loss learns the toy language at this learning rate, so scores show nothing: look at what was trained with.
    learned = run_toy("reloss", "surrogate.features=expected")
    unlearned = run_toy("expected")
    home = tmp_path / "runs" / "nmt" / "multi30k_de_en_nat"
    cards = [read_json(folder / "surrogate.json") for folder in home.glob("surrogates/*/")]
    assert {card["class"] for card in cards} == {"ExpectedTranslation"}
    assert {card["options"]["metric"] for card in cards} == {None, "token_bleu"}
    for record, criterion in ((learned, "reloss_nat"), (unlearned, "expected_nat")):
        assert read_json(record / "summary.json")["status"] == "finished"
        assert f"--criterion {criterion}" in (record / "commands" / "train.txt").read_text()


def test_an_autoregressive_model_has_no_expected_ngrams(run_toy):
    with pytest.raises(
        UsageError, match=r"an autoregressive model has no such outputs: choose surrogate\.features=like"
    ):
        run_toy("reloss", "surrogate.features=expected", kind="at")


@pytest.mark.slow
def test_scores_are_sacrebleus_scores_of_the_translations(run_toy):
    record = run_toy()
    hypotheses = read_translations(record / "translations" / "generate-test.txt")
    (texts,) = record.parents[2].glob("prepared/*/texts")
    references = (texts / "test.en").read_text().splitlines()
    assert len(hypotheses) == len(references) == 11  # not a multiple of 8: fairseq's batching would lose 3
    scores = read_json(record / "summary.json")["scores"]
    assert scores["sacreBLEU"] == pytest.approx(float(bleu([hypotheses], [references])), abs=1e-6)
    kinds = read_json(record / "examples.json")
    translations = dict(zip((texts / "test.de").read_text().splitlines(), hypotheses, strict=True))
    assert sum(map(len, kinds.values())) == 11
    for kind, rows in kinds.items():
        for row in rows:
            assert row["translation"] == translations[row["source"]]
            assert (row["translation"] == row["reference"]) == (kind == "right")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "loss"), [("nat", "nll"), ("at", "label_smoothing")])
def test_the_longest_sentence_is_translated(run_toy, toy, tmp_path, kind, loss):
    shutil.copytree(toy, tmp_path / "data")
    for lang, word in (("de", "ba"), ("en", "zwei")):
        with (tmp_path / "data" / "multi30k" / f"test.{lang}").open("a") as lines:
            lines.write(f"{word} " * LONGEST + "\n")
    record = run_toy(loss, "train.updates=2", kind=kind, data=tmp_path / "data")
    assert len(read_translations(record / "translations" / "generate-test.txt")) == 12


def test_examples_are_wrong_and_right_translations():
    sources = [f"quelle {number}" for number in range(50)]
    references = ["A man walks ." if number % 2 else "a dog" for number in range(50)]
    kinds = examples(sources, ["a man walks ."] * 50, references, lowercase=True)
    assert [len(rows) for rows in kinds.values()] == [20, 20]
    assert kinds["right"][0] == {
        "source": "quelle 1", "translation": "a man walks .", "reference": "A man walks .", "chrF": "100.0",
    }  # fmt: skip
    assert all(row["reference"] == "a dog" and float(row["chrF"]) < 50 for row in kinds["wrong"])
    assert examples(sources, ["a man walks ."] * 50, references)["right"] == []


@pytest.mark.parametrize("when", ["in an epoch", pytest.param("before a checkpoint", marks=pytest.mark.slow)])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(run_toy, tmp_path, monkeypatch, when):
    whole = run_toy(runs=tmp_path / "whole", stage="baseline")

    def interrupted(self, *call):
        if self.epoch == 2:
            self.run.record.log(99, epoch=99)
            raise KeyboardInterrupt
        return original(self, *call)

    name = {"in an epoch": "trained", "before a checkpoint": "end_epoch"}[when]
    original = getattr(Watcher, name)
    with monkeypatch.context() as patched:
        patched.setattr(Watcher, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_toy(stage="baseline")
    (record,) = (tmp_path / "runs" / "nmt" / "multi30k_de_en_nat").glob("nll@*/seed0")
    assert read_json(record / "summary.json")["status"] == "interrupted"
    assert run_toy(stage="baseline") == record
    assert metrics(record) == metrics(whole)
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(record).items())
    banks = [PredictionBank.open(folder.parents[1] / "bank") for folder in (record, whole)]
    every = torch.arange(len(banks[1]))
    for ours, theirs in zip(*(bank.items(every) for bank in banks), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.slow
def test_learned_weights_resume_and_fine_tune(run_toy, tmp_path, monkeypatch):
    settings = ("expected", "train.ordinary_weight=learned", "train.init=baseline", "train.lr=0.001")
    whole = run_toy(*settings, runs=tmp_path / "whole")
    begin = Watcher.begin_epoch

    def interrupted(self, epoch):
        if epoch == 2 and self.run.loss == "expected":
            raise KeyboardInterrupt
        begin(self, epoch)

    with monkeypatch.context() as patched:
        patched.setattr(Watcher, "begin_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_toy(*settings)
    record = run_toy(*settings)
    assert metrics(record) == metrics(whole)
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(record).items())
    logged = [entry["ordinary_weight"] for entry in metrics(record)]
    assert len(set(logged)) == len(logged) > 1


@pytest.mark.slow
def test_a_finished_training_is_not_repeated(run_toy, monkeypatch):
    record = run_toy()
    before, entries = weights(record), metrics(record)
    (record / "summary.json").unlink()  # as after a kill before the evaluation
    commands = []
    run_command = training.run_command
    monkeypatch.setattr(training, "run_command", lambda name, *more: commands.append(name) or run_command(name, *more))
    run_toy()
    assert commands == ["generate"]
    assert metrics(record) == entries
    assert all(torch.equal(value, before[name]) for name, value in weights(record).items())


@pytest.mark.slow
def test_a_missing_bank_is_recorded_again(run_toy):
    record = run_toy(stage="baseline")
    bank = record.parents[1] / "bank"
    before = PredictionBank.open(bank)
    kept = before.items(torch.arange(len(before)))
    shutil.rmtree(bank)
    assert run_toy(stage="baseline") == record
    again = PredictionBank.open(bank)
    assert again.meta["complete"]
    assert all(torch.equal(*pair) for pair in zip(again.items(torch.arange(len(again))), kept, strict=True))


@pytest.mark.slow
def test_the_checkpoint_before_a_damaged_one_is_used(run_toy, capsys):
    record = run_toy()
    kept, scores = weights(record), read_json(record / "summary.json")["scores"]
    last = training._last_checkpoint(record / "checkpoint")
    last.write_bytes(last.read_bytes()[:1000])
    (record / "summary.json").unlink()
    run_toy()
    assert f"checkpoint {last} is damaged" in capsys.readouterr().err
    assert all(torch.equal(value, kept[name]) for name, value in weights(record).items())
    assert read_json(record / "summary.json")["scores"]["sacreBLEU"] == scores["sacreBLEU"]
    for path in (record / "checkpoint").glob("checkpoint*.pt"):
        path.write_bytes(b"no checkpoint")
    (record / "summary.json").unlink()
    with pytest.raises(RelossError, match=rf"is damaged; remove {record / 'checkpoint'} to train .* from scratch"):
        run_toy()


def test_checkpoints_of_epochs_without_metrics_are_skipped(tmp_path):
    for name in ("checkpoint1.pt", "checkpoint2.pt", "checkpoint_3_12.pt"):
        torch.save({}, tmp_path / name)
    names = {epochs: training._last_checkpoint(tmp_path, epochs).name for epochs in (3, 2, 1, 0)}
    assert names == {3: "checkpoint_3_12.pt", 2: "checkpoint2.pt", 1: "checkpoint1.pt", 0: "checkpoint_3_12.pt"}


def test_gold_tokens_are_computed_only_for_a_bank():
    watcher = Watcher(Namespace(bank=None))
    watcher.trained(lambda: pytest.fail("computed"), 5)
    assert watcher.update == 5
    batches, config = [], Namespace(recording=Namespace(length=3))
    watcher = Watcher(Namespace(bank=Namespace(append=lambda *batch: batches.append(batch)), config=config))
    watcher.trained(lambda: (torch.zeros(2, 4), torch.zeros(2, 4, 2)), 6)
    ((outputs, targets, step),) = batches
    assert (outputs.shape, targets.shape, step) == ((2, 3), (2, 3, 2), 6)


def test_fp16_without_a_gpu_names_the_remedy(run_toy, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match=r"fp16 needs a GPU: --set train.precision=no"):
        run_toy("nll", "train.precision=fp16")


@pytest.mark.slow
def test_fine_tuning_starts_from_the_baseline(run_toy):
    tuned = run_toy("bon", "train.init=baseline", "train.lr=1e-12", "train.updates=4")
    (baseline,) = tuned.parents[1].glob("nll@*/seed0")
    for name, value in weights(tuned).items():
        assert (value.float() - weights(baseline)[name].float()).abs().max() < 1e-6, name


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(run_toy, tmp_path):
    with pytest.raises(RelossError, match=r"diverged: .* update \d+"):
        run_toy("nll", "train.lr=1e30", seed=1)
    (record,) = (tmp_path / "runs" / "nmt" / "multi30k_de_en_nat").glob("nll@*/seed1")
    assert read_json(record / "summary.json")["status"] == "failed"


@pytest.mark.slow
def test_bfloat16_trains_on_a_cpu(run_toy):
    exact, rounded = (run_toy("nll", f"train.precision={name}") for name in ("no", "bf16"))
    assert all(value.dtype == torch.float32 for value in weights(rounded).values())
    assert any(not torch.equal(value, weights(exact)[name]) for name, value in weights(rounded).items())
    for ours, theirs in zip(metrics(rounded), metrics(exact), strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=0.05)


@pytest.mark.slow
def test_standard_output_is_only_the_record(toy, tmp_path, cli):
    words = ("--data", toy, "--runs", tmp_path, "--track", "off", "--set", "data.subwords=40", "train.updates=2")
    code, out, err = cli("run", "nmt/multi30k_de_en_at", *words, "recording.item_size=2", "model.width=32")
    assert code == 0, err
    assert out.splitlines() == [str(next((tmp_path / "nmt" / "multi30k_de_en_at").glob("label_smoothing@*/seed0")))]


@pytest.mark.slow
def test_a_teacher_is_distilled(run_toy, tmp_path):
    record = run_toy("label_smoothing", "train.updates=120", kind="at", runs=tmp_path / "elsewhere")
    (tmp_path / "elsewhere").rename(tmp_path / "runs")  # a record can be moved
    teacher = tmp_path / "runs" / record.relative_to(tmp_path / "elsewhere")
    assert read_json(teacher / "summary.json")["scores"]["sacreBLEU"] > 0.3
    named = f"data.teacher={teacher.relative_to(tmp_path / 'runs')}"
    student = ("data.distilled=true", "train.from_teacher=true", "model.positions=sinusoidal", named)
    record = run_toy("nll", *student)
    distilled = (teacher / "distilled" / "train.en").read_text().splitlines()
    assert len(distilled) == 480
    texts = [path / "texts" / "train.en" for path in record.parents[2].glob("prepared/*")]
    assert sorted(path.read_text().splitlines() == distilled for path in texts) == [False, True]
    dictionaries = {path.read_bytes() for path in record.parents[2].glob("prepared/*/dict.*.txt")}
    assert len(dictionaries) == 1  # student and teacher share their subwords
    with pytest.raises(UsageError, match="has embeddings of another size than this model's"):
        run_toy("bon", *student, "model.width=32")
    tuned = run_toy("reloss", "train.ordinary_weight=1", kind="at")
    assert read_json(tuned / "summary.json")["status"] == "finished"


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["bon", "approx"])
def test_other_losses_train(run_toy, loss):
    assert read_json(run_toy(loss) / "summary.json")["status"] == "finished"


def test_a_model_starts_from_the_weights_that_fit(tmp_path):
    small, large = (torch.nn.ModuleDict({"encoder": torch.nn.Module()}) for _ in range(2))
    for model, width in ((small, 3), (large, 3)):
        model["encoder"].embed_tokens = torch.nn.Embedding(5, width)
    large["head"] = torch.nn.Linear(3, 4)
    small["head"] = torch.nn.Linear(3, 2)
    torch.save({"model": small.state_dict()}, tmp_path / "checkpoint.pt")
    head = large["head"].weight.clone()
    load_fitting_weights(large, tmp_path / "checkpoint.pt")
    assert torch.equal(large["encoder"].embed_tokens.weight, small["encoder"].embed_tokens.weight)
    assert torch.equal(large["head"].weight, head)


@pytest.mark.slow
def test_two_processes_measure_what_one_process_measures(toy, tiny_settings, tmp_path, finish):
    settings = merged(tiny_settings, ("train.updates=120", "train.ordinary_weight=1"))
    homes = [tmp_path / name / "nmt" / "multi30k_de_en_nat" for name in ("one", "two")]
    for home, processes in zip(homes, (1, 2), strict=True):
        where = ("--data", toy, "--runs", home.parents[1], "--track", "off")
        finish("run", "nmt/multi30k_de_en_nat", "--loss", "reloss", *where, "--set", *settings, processes=processes)
    for loss in ("nll", "reloss"):
        one, two = (next(home.glob(f"{loss}@*/seed0")) for home in homes)
        ours, theirs = (read_metrics(folder / "metrics.jsonl") for folder in (two, one))
        assert ours[-1]["step"] == theirs[-1]["step"] == 120
        # Each step trains on as many tokens, in other batches.
        assert ours[0]["train_loss"] == pytest.approx(theirs[0]["train_loss"], rel=0.1)
        assert ours[-1]["train_loss"] < ours[0]["train_loss"]
        # The same sentences in the same order, although each process validates its own share.
        sentences = [read_predictions(folder)[1][..., 0] for folder in (two, one)]
        assert sentences[0].shape[1:] == (13, 8)
        assert torch.equal(*(epochs[0] for epochs in sentences))
        scores = [read_json(folder / "summary.json")["scores"] for folder in (two, one)]
        assert scores[0].keys() == scores[1].keys() == SCORES
        assert scores[0]["sacreBLEU"] == pytest.approx(scores[1]["sacreBLEU"], abs=0.2)
    banks = [PredictionBank.open(home / "bank") for home in homes]
    assert len(banks[1]) == pytest.approx(len(banks[0]), rel=0.1)  # each process drops incomplete items
    assert recorders(homes[1]) == [0, 1]


@pytest.mark.slow
def test_two_processes_measure_the_same_for_the_same_model(toy, tiny_settings, tmp_path, finish):
    """A learning rate of almost 0 leaves the model unchanged."""
    settings = merged(tiny_settings, ("train.updates=4", "train.lr=1e-20"))
    entries = []
    for name, processes in (("one", 1), ("two", 2)):
        where = ("--data", toy, "--runs", tmp_path / name, "--track", "off")
        finish("run", "nmt/multi30k_de_en_nat", "--loss", "nll", *where, "--set", *settings, processes=processes)
        (record,) = (tmp_path / name / "nmt" / "multi30k_de_en_nat").glob("nll@*/seed0")
        entries.append(read_metrics(record / "metrics.jsonl")[-1])
    for measured in ("validation_loss", "validation_nll_loss", "validation_sacreBLEU"):
        assert entries[1][measured] == pytest.approx(entries[0][measured], rel=1e-4), measured
    assert entries[1]["train_nll_loss"] == pytest.approx(entries[0]["train_nll_loss"], rel=0.05)  # on other sentences
