import os
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported: no test waits for the hub

import numpy as np
import pytest
import torch
from small import merged, run_small
from tokenizers import ByteLevelBPETokenizer
from tokenizers.implementations import BertWordPieceTokenizer
from transformers import BertConfig, BertForQuestionAnswering, BertTokenizerFast, RobertaTokenizerFast

from reloss.runtime.files import write_json
from reloss_tasks.mrc.models import character_tokenizer

NAMES = ["Anna", "Bob", "Clara", "David", "Emma", "Felix", "Greta", "Hugo"]
CITIES = ["Berlin", "New York", "Paris", "Rio de Janeiro", "北京市", "Zürich", "Oslo", "Cairo"]
TEXT = [f"{name} lives in {city} . Where does {name} live ?" for name in NAMES for city in CITIES]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELOSS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Three kinds of fast tokenizers, trained here: word pieces, bytes (as RoBERTa's) and characters."""
    folder = tmp_path_factory.mktemp("tokenizers")
    pieces = BertWordPieceTokenizer()
    pieces.train_from_iterator(TEXT, vocab_size=120, min_frequency=1, show_progress=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bytes_ = ByteLevelBPETokenizer()
    bytes_.train_from_iterator(TEXT, vocab_size=320, min_frequency=1, special_tokens=special, show_progress=False)
    for name, tokenizer in (("pieces", pieces), ("bytes", bytes_)):
        (folder / name).mkdir()
        tokenizer.save_model(str(folder / name))
    return {
        "pieces": BertTokenizerFast.from_pretrained(str(folder / "pieces")),
        "bytes": RobertaTokenizerFast.from_pretrained(str(folder / "bytes")),
        "characters": character_tokenizer(TEXT),
    }


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory, tokenizers: dict[str, object]) -> Path:
    """A folder with a tiny random BERT and its tokenizer, written by `save_pretrained`."""
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = tokenizers["pieces"]
    torch.manual_seed(0)
    shape = BertConfig(
        vocab_size=len(tokenizer),  # type: ignore[arg-type]
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertForQuestionAnswering(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)  # type: ignore[attr-defined]
    return folder


def article(generator: np.random.Generator, title: str, paragraphs: int, unanswerable: bool) -> dict:
    """Paragraphs that state who lives where, with questions; in 2.0, every third question is unanswerable."""
    contexts = []
    for number in range(paragraphs):
        people = generator.permutation(NAMES)
        cities = generator.choice(CITIES, 3)
        context = " ".join(f"{name} lives in {city}." for name, city in zip(people[:3], cities, strict=True))
        questions = []
        for place in range(3):
            impossible = unanswerable and place == 2
            name, city = people[5 if impossible else place], cities[place]
            start = context.index(f"{name} lives in {city}") + len(f"{name} lives in ") if not impossible else 0
            entry = {"id": f"{title}-{number}-{place}", "question": f"Where does {name} live?"}
            entry["answers"] = [] if impossible else [{"text": city, "answer_start": start}]
            questions.append({**entry, "is_impossible": impossible} if unanswerable else entry)
        contexts.append({"context": context, "qas": questions})
    return {"title": title, "paragraphs": contexts}


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder: 48 training and 18 test questions in SQuAD v1.1 and v2.0, and all 66 in one file."""
    folder = tmp_path_factory.mktemp("questions")
    for version, unanswerable in (("v1.1", False), ("v2.0", True)):
        generator = np.random.default_rng(0)
        articles = [article(generator, f"train{i}", 4, unanswerable) for i in range(4)]
        test = [article(generator, f"test{i}", 3, unanswerable) for i in range(2)]
        write_json(folder / "squad" / f"train-{version}.json", {"version": version, "data": articles})
        write_json(folder / "squad" / f"dev-{version}.json", {"version": version, "data": test})
        if not unanswerable:
            write_json(folder / "cmrc2018" / "trial.json", {"version": "1", "data": articles + test})
    return folder


@pytest.fixture
def tiny_settings(encoder: Path) -> tuple[str, ...]:
    """Settings that run squad_minilm in a second, with the tiny encoder."""
    return (
        *("data.max_length=40", "data.stride=8", "data.max_question=16", "data.train_questions=30"),
        *("data.held_out=6", "data.test_questions=16", "train.batch_size=8", "train.precision=no"),
        *("train.lr=0.002", "recording.item_size=2", "learn.steps=4", "learn.items=4", f"model.name={encoder}"),
    )


@pytest.fixture
def run_reading(questions: Path, tiny_settings: tuple[str, ...], tmp_path: Path) -> Callable[..., Path]:
    """Run squad_minilm, or another experiment, at a small size and return the record."""

    def start(loss: str = "ce", *settings: str, experiment: str = "mrc/squad_minilm", **more: object) -> Path:
        options = {"data": questions, "runs": tmp_path / "runs", **more}
        return run_small(experiment, loss, merged(tiny_settings, settings), **options)  # type: ignore[arg-type]

    return start
