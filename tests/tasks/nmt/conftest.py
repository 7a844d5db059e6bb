import random
from collections.abc import Callable
from pathlib import Path

import pytest
from small import merged, run_small

WORDS = {"ba": "zwei", "ko": "hund", "mi": "rot", "lu": "haus", "se": "baum", "ta": "lauf", "ni": "gut", "po": "weg"}
COUNTS = {"train": 480, "valid": 13, "test": 11}
TINY = (
    *("data.subwords=64", "model.width=64", "model.feedforward=64", "model.heads=2", "model.layers=1"),
    *("model.dropout=0", "train.updates=16", "train.warmup_updates=4", "train.max_tokens=400", "train.lr=0.005"),
    *("data.distilled=false", "train.from_teacher=false", "model.positions=learned"),
    *("train.precision=no", "recording.item_size=8", "recording.length=8", "learn.steps=4", "learn.items=4"),
)


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a toy language: every word has one translation, sentences have 2 to 6 words."""
    folder = tmp_path_factory.mktemp("toy")
    (folder / "multi30k").mkdir()
    generator = random.Random(0)
    for split, count in COUNTS.items():
        sources = [generator.choices(list(WORDS), k=generator.randint(2, 6)) for _ in range(count)]
        for lang, table in (("de", {word: word for word in WORDS}), ("en", WORDS)):
            lines = [" ".join(table[word] for word in sentence).capitalize() for sentence in sources]
            (folder / "multi30k" / f"{split}.{lang}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def tiny_settings() -> tuple[str, ...]:
    """Settings that make an experiment small enough for the toy language."""
    return TINY


@pytest.fixture
def run_toy(toy: Path, tmp_path: Path) -> Callable[..., Path]:
    """Run an experiment of Multi30k on the toy language and return the record."""

    def start(loss: str = "nll", *settings: str, kind: str = "nat", runs: Path = tmp_path / "runs", **more: object):
        name = f"nmt/multi30k_de_en_{kind}"
        return run_small(name, loss, merged(TINY, settings), **{"data": toy, "runs": runs, **more})  # type: ignore[arg-type]

    return start
