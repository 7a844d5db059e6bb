import shutil
from pathlib import Path

import pytest
from fairseq.data import Dictionary
from fairseq.data.data_utils import load_indexed_dataset
from small import merged

from reloss.experiment.config import FITTED_LOSSES
from reloss.experiment.settings import override
from reloss.experiment.task import tasks
from reloss.runtime.errors import RelossError, UsageError
from reloss.runtime.files import write_json, write_text
from reloss_tasks.nmt import arguments
from reloss_tasks.nmt.arguments import TrainPaths
from reloss_tasks.nmt.data import check, fingerprint
from reloss_tasks.nmt.fairseq_commands import parse
from reloss_tasks.nmt.preparation import prepare, spell_symbols
from reloss_tasks.nmt.teacher import prepare_with_teacher
from reloss_tasks.nmt.texts import read_sentences

TASK = tasks()["nmt"]
EVERY = [(name, loss) for name, make in TASK.experiments.items() for loss in make().losses]
HERE = Path("prepared")


@pytest.mark.parametrize(("name", "loss"), EVERY)
def test_the_parser_of_fairseq_accepts_the_arguments_of_a_training(name, loss):
    config = TASK.experiments[name]()
    surrogate = Path("surrogate") if loss in FITTED_LOSSES else None
    words = arguments.train(config, loss, 3, TrainPaths(HERE, Path("checkpoint"), surrogate))
    parsed = parse("train", words)
    recipe, model = config.train, parsed.model
    assert parsed.optimization.max_update == recipe.updates
    assert parsed.optimization.lr == [recipe.lr]
    assert parsed.optimization.update_freq == [recipe.accumulate]
    assert (parsed.dataset.max_tokens, parsed.common.fp16) == (recipe.max_tokens, recipe.precision == "fp16")
    assert parsed.task._name.startswith("reloss_translation")
    assert parsed.criterion.label_smoothing == recipe.label_smoothing
    assert getattr(parsed.criterion, "surrogate", None) == (str(surrogate) if surrogate else None)
    assert (model.encoder_embed_dim, model.decoder_layers) == (config.model.width, config.model.layers)
    assert model.share_all_embeddings
    # fairseq copies source embeddings by position, counted from the left, so padding there would be copied as words.
    assert parsed.task.left_pad_source == (config.model.kind == "at")
    assert parsed.dataset.required_batch_size_multiple == 1


@pytest.mark.parametrize(
    ("accumulate", "processes", "max_tokens", "update_freq"),
    [(8, 1, 8000, 8), (8, 4, 8000, 2), (8, 16, 4000, 1), (4, 6, 2666, 2), (1, 2, 4000, 1)],
)
def test_processes_share_batches_before_they_shrink(monkeypatch, accumulate, processes, max_tokens, update_freq):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    config = override(TASK.experiments["nmt/wmt14_en_de_at"](), [f"train.accumulate={accumulate}"])
    words = arguments.train(config, "label_smoothing", 3, TrainPaths(HERE, Path("checkpoint")), processes)
    parsed = parse("train", words)
    assert (parsed.dataset.max_tokens, parsed.optimization.update_freq) == (max_tokens, [update_freq])


@pytest.mark.parametrize("name", TASK.experiments)
def test_the_parser_of_fairseq_accepts_the_arguments_of_the_other_commands(name):
    config = TASK.experiments[name]()
    parsed = parse("generate", arguments.generate(config, HERE, Path("translator.pt"), "test", Path("results")))
    assert parsed.common_eval.post_process == "sentencepiece"
    if config.model.kind == "nat":
        assert (parsed.task._name, parsed.generation.iter_decode_max_iter) == ("translation_lev", 0)
    else:
        assert (parsed.task._name, parsed.generation.beam) == ("translation", 4)
    assert parse("preprocess", arguments.preprocess(config.data, HERE, HERE)).joined_dictionary


def test_data_are_checked(toy, tmp_path, cli):
    code, out, err = cli("data", "check", "multi30k", "--data", toy)
    assert code == 0, err
    assert "de-en sentence pairs: 480 train, 13 valid, 11 test" in out
    data = TASK.experiments["nmt/multi30k_de_en_nat"]().data
    with pytest.raises(RelossError, match=r"train.de is missing; put parallel texts"):
        check(data, tmp_path)
    for name in ("train", "valid", "test"):
        for lang, text in (("de", "a\nb\n"), ("en", "a\nb\n" if name != "valid" else "a\n")):
            path = tmp_path / "multi30k" / f"{name}.{lang}"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    with pytest.raises(RelossError, match=r"2 lines in .*valid.de and 1 lines in .*valid.en: both must have the same"):
        check(data, tmp_path)
    (tmp_path / "multi30k" / "valid.en").write_text("a\nb\n")
    before = fingerprint(data, tmp_path)
    (tmp_path / "multi30k" / "valid.en").write_text("a\nc\n")
    assert fingerprint(data, tmp_path) != before


@pytest.fixture
def changed_toy(toy, tmp_path):
    """Copy the toy language, change one line of one file, and return the data folder."""

    def change(name, line, text):
        shutil.copytree(toy, tmp_path / "data", dirs_exist_ok=True)
        path = tmp_path / "data" / "multi30k" / name
        lines = path.read_bytes().split(b"\n")
        lines[line - 1] = text
        path.write_bytes(b"\n".join(lines))
        return tmp_path / "data"

    return change


def test_only_a_line_feed_ends_a_line(changed_toy, toy, tmp_path, tiny_settings):
    data = override(TASK.experiments["nmt/multi30k_de_en_nat"](), tiny_settings).data
    folder = changed_toy("train.de", 5, "ba\rko\x85mi\u2028lu\r".encode())
    assert "480 train" in check(data, folder)
    plain, changed = (prepare(data, root, tmp_path) / "texts" for root in (toy, folder))
    expected, lines = ((texts / "train.de").read_bytes().split(b"\n") for texts in (plain, changed))
    assert lines[4] == b"ba ko mi lu"
    assert lines[:4] + lines[5:] == expected[:4] + expected[5:]


def test_a_line_that_is_not_utf8_is_named(changed_toy, cli):
    folder = changed_toy("valid.en", 3, "weiß".encode("latin-1"))
    code, _, err = cli("data", "check", "multi30k", "--data", folder)
    assert code == 1
    assert f"{folder / 'multi30k' / 'valid.en'}: line 3 is not UTF-8" in err


def test_sentences_that_are_too_long_are_named(changed_toy, tmp_path, tiny_settings):
    data = override(TASK.experiments["nmt/multi30k_de_en_nat"](), tiny_settings).data
    with pytest.raises(RelossError, match=r"test.de: sentences of more than 800 subwords.* are on 1 lines: 7; remove"):
        prepare(data, changed_toy("test.de", 7, b"ba " * 801), tmp_path)
    assert list((tmp_path / "nmt" / "prepared").iterdir()) == []


def test_too_many_subwords_are_named(toy, tmp_path):
    config = override(TASK.experiments["nmt/multi30k_de_en_at"](), ["data.subwords=900"])
    with pytest.raises(UsageError, match="sentencepiece cannot learn 900 subwords of multi30k"):
        prepare(config.data, toy, tmp_path)
    assert list((tmp_path / "nmt" / "prepared").iterdir()) == []


def test_heads_share_the_width():
    with pytest.raises(UsageError, match=r"model.width=510 must be a multiple of model.heads=8"):
        override(TASK.experiments["nmt/wmt14_en_de_nat"](), ["model.width=510"])


def test_prepared_data_are_reused_and_named_by_a_hash_of_their_inputs(toy, tmp_path):
    configs = [
        override(TASK.experiments["nmt/multi30k_de_en_at"](), [f"data.subwords={size}", "data.workers=3"]).data
        for size in (50, 60)
    ]
    first, second = (prepare(config, toy, tmp_path) for config in configs)
    assert first != second
    written = (first / "train.de-en.en.bin").stat().st_mtime_ns
    assert prepare(configs[0].model_copy(update={"workers": 0, "teacher": "other"}), toy, tmp_path) == first
    assert (first / "train.de-en.en.bin").stat().st_mtime_ns == written
    vocabularies = [(folder / "subwords.vocab").read_text().splitlines() for folder in (first, second)]
    assert [len(words) for words in vocabularies] == [50, 60]
    text = (first / "texts" / "valid.de").read_text()
    assert text == text.lower()
    assert len(text.splitlines()) == 13


def test_a_missing_teacher_is_named(toy, tmp_path):
    config = TASK.experiments["nmt/multi30k_de_en_nat"]()
    with pytest.raises(UsageError, match=r"reloss run nmt/multi30k_de_en_at --loss label_smoothing --seed 0"):
        prepare_with_teacher(config.data, toy, tmp_path)


def test_a_teacher_without_a_name_is_an_error(toy, tmp_path):
    data = override(TASK.experiments["nmt/multi30k_de_en_at"](), ["data.distilled=true"]).data
    with pytest.raises(UsageError, match=r"data.teacher is empty: name the record in .* of de-en, such as"):
        prepare_with_teacher(data, toy, tmp_path)


def test_a_teacher_trained_on_other_texts_is_refused(toy, tmp_path):
    data = TASK.experiments["nmt/multi30k_de_en_nat"]().data
    record = tmp_path / data.teacher
    write_text(record / "checkpoint" / "translator.pt", "")
    write_text(record / "distilled" / "train.en", "other sentences\n" * 480)
    write_json(record / "environment.json", {"data": "0123456789ab"})
    current = fingerprint(data, toy)
    with pytest.raises(UsageError, match=rf"trained on other texts .*fingerprint was 0123456789ab, now {current}"):
        prepare_with_teacher(data, toy, tmp_path)


@pytest.mark.parametrize("name", [name for name in TASK.experiments if name.endswith("_nat")])
def test_every_non_autoregressive_model_can_be_distilled(name):
    config = override(TASK.experiments[name](), ["data.distilled=true"])
    teacher = name.removesuffix("_nat") + "_at"
    assert config.required_runs() == [(teacher, "label_smoothing", 0)]
    assert config.data.teacher == f"{teacher}/label_smoothing/seed0"
    shared = {"distilled", "teacher", "workers"}
    assert TASK.experiments[teacher]().data.model_dump(exclude=shared) == config.data.model_dump(exclude=shared)


def test_the_recipe_of_fairseqs_example_of_a_nat():
    config = TASK.experiments["nmt/wmt14_en_de_nat"]()
    assert (config.model.dropout, config.train.lr, config.train.weight_decay) == (0.3, 5e-4, 0.01)
    assert (config.train.max_tokens * config.train.accumulate, config.train.updates) == (64_000, 300_000)


def test_a_byte_order_mark_is_dropped(tmp_path):
    (tmp_path / "train.de").write_bytes("\ufeffein \ufeff Hund\n\ufeffzwei\n".encode())
    assert list(read_sentences(tmp_path / "train.de")) == ["ein \ufeff Hund", "\ufeffzwei"]


def test_a_text_stays_as_it_is_and_symbols_of_fairseq_are_spelled(changed_toy, tmp_path, tiny_settings):
    text = "º ½ ™ ﬁ zwei <s> hund </s>x<s>y<pad>z<unk>"
    folder = changed_toy("train.en", 1, text.encode())
    test = folder / "multi30k" / "test.en"
    test.write_text(f"{text}\n" + test.read_text().partition("\n")[2], encoding="utf-8")
    data = override(TASK.experiments["nmt/multi30k_de_en_nat"](), merged(tiny_settings, ["data.subwords=80"])).data
    prepared = prepare(data, folder, tmp_path)
    dictionary = Dictionary.load(str(prepared / "dict.en.txt"))
    tokens = load_indexed_dataset(str(prepared / "test.de-en.en"), dictionary)[0]
    assert not {dictionary.bos(), dictionary.pad(), dictionary.unk()} & set(tokens.tolist())
    assert tokens.tolist().index(dictionary.eos()) == len(tokens) - 1
    assert dictionary.string(tokens, "sentencepiece") == text
    assert (prepared / "texts" / "test.en").read_text(encoding="utf-8").startswith(f"{text}\n")
    assert spell_symbols(["▁a", "<s>", "</s>", "▁<s>", "<pad>"]) == ["▁a", *"<s>", *"</s>", "▁<s>", *"<pad>"]
