"""Questions on passages, from files in SQuAD's JSON."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from reloss.runtime.errors import RelossError
from reloss.runtime.files import read_json
from reloss_tasks.mrc.config import Data


@dataclass(frozen=True)
class Question:
    """A question on a passage.

    Attributes:
        id: in the file, which predictions are named by.
        text: of the question.
        context: the passage.
        answers: gold texts, with which an answer is compared; none if the question is unanswerable.
        spans: where they stand, (first character, character after the last) of each that was found; each place once.
        article: that the passage is of; articles are held out as a whole.
    """

    id: str
    text: str
    context: str
    answers: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]
    article: int


class Splits(NamedTuple):
    """Questions to train on, to draw the curve with (the tested ones if none are held out), and to test on."""

    train: list[Question]
    validation: list[Question]
    test: list[Question]


def load(config: Data, root: Path) -> Splits:
    """Return the questions of `config` below the folder `root`.

    Questions whose answers cannot be found in their passage are not trained on.

    Raises:
        RelossError: a file is missing, or not in SQuAD's JSON, or there are too few questions.
    """
    trained = read(_path(config, root, config.train_file))
    if config.test_file is not None:
        test = read(_path(config, root, config.test_file))
    else:
        tested = _last_passages(trained, config.test_fraction)
        test, trained = [q for q in trained if q.context in tested], [q for q in trained if q.context not in tested]
    train, held_out = _hold_out(trained, config.held_out)
    train = [question for question in train if question.spans or (config.unanswerable and not question.answers)]
    for count, found, what in (
        (config.held_out, held_out, "held_out"),
        (config.train_questions or 1, train, "train_questions"),
        (config.test_questions or 1, test, "test_questions"),
    ):
        if len(found) < count:
            raise RelossError(f"{config.name} has {len(found)} questions left for data.{what}, fewer than {count}")
    test = _draw(test, config.test_questions)
    return Splits(_draw(train, config.train_questions), held_out or test, test)


def read(path: Path) -> list[Question]:
    """Return the questions of a file in SQuAD's JSON, v1.1 or v2.0.

    Raises:
        RelossError: it is missing, or not such a file.
    """
    try:
        return [
            _question(entry, paragraph["context"], number)
            for number, article in enumerate(read_json(path)["data"])
            for paragraph in article["paragraphs"]
            for entry in paragraph["qas"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise RelossError(f"{path} is not in SQuAD's JSON: {type(error).__name__} {error}") from error


def _question(entry: dict[str, Any], context: str, article: int) -> Question:
    answers = () if entry.get("is_impossible") else tuple(answer["text"] for answer in entry["answers"])
    found = [_find(context, answer["text"], answer.get("answer_start", -1)) for answer in entry["answers"]]
    spans = dict.fromkeys(span for span in found if span is not None) if answers else {}
    return Question(str(entry["id"]), entry["question"], context, answers, tuple(spans), article)


def _find(context: str, text: str, start: int) -> tuple[int, int] | None:
    """Return where an answer stands, without the space around it: at `start`, or where it occurs nearest to that."""
    start += len(text) - len(text.lstrip())
    text = text.strip()
    if not text:
        return None
    if start < 0 or context[start : start + len(text)] != text:
        before, after = context.rfind(text, 0, max(start, 0) + len(text)), context.find(text, max(start, 0))
        places = [place for place in (before, after) if place >= 0]
        if not places:
            return None
        start = min(places, key=lambda place: abs(place - start))
    return start, start + len(text)


def _last_passages(questions: Sequence[Question], fraction: float) -> set[str]:
    passages = list(dict.fromkeys(question.context for question in questions))
    return set(passages[len(passages) - round(len(passages) * fraction) :])


def _hold_out(questions: list[Question], count: int) -> tuple[list[Question], list[Question]]:
    """Hold out `count` questions, of whole articles drawn once for all seeds; what is left of the last is not used."""
    if count == 0:
        return questions, []
    articles = np.random.default_rng(0).permutation(max(question.article for question in questions) + 1)
    sizes = np.bincount([question.article for question in questions], minlength=len(articles))
    enough = int(np.searchsorted(sizes[articles].cumsum(), count)) + 1
    chosen = set(articles[:enough].tolist())
    held_out = _draw([question for question in questions if question.article in chosen], count)
    return [question for question in questions if question.article not in chosen], held_out


def _draw(questions: list[Question], count: int | None) -> list[Question]:
    """Return `count` questions in their order, the same ones for every seed of a run; all by default."""
    if count is None or count >= len(questions):
        return questions
    return [questions[i] for i in np.sort(np.random.default_rng(0).permutation(len(questions))[:count])]


def _path(config: Data, root: Path, file: str) -> Path:
    path = root / config.folder / file
    if not path.exists():
        raise RelossError(
            f"{config.name}: {path} is missing; run `reloss data fetch {config.name} --data {root}`, or put the file, "
            "in SQuAD's JSON, there"
        )
    return path


def _files(config: Data) -> list[str]:
    return [config.train_file] + ([config.test_file] if config.test_file is not None else [])


def check(config: Data, root: Path) -> str:
    """Return one line that says what was found.

    Raises:
        RelossError: a file is missing or not in SQuAD's JSON.
    """
    splits = load(config, root)
    counts = ", ".join(f"{len(getattr(splits, name)):,} {name}" for name in Splits._fields)
    empty = sum(not question.answers for question in splits.test)
    return f"{config.name} in {root / config.folder}: {counts} questions, {empty:,} of the test without an answer"


def fingerprint(config: Data, root: Path) -> str:
    """Return a hash of the files."""
    digest = hashlib.sha256()
    for file in _files(config):
        digest.update(_path(config, root, file).read_bytes())
    return digest.hexdigest()[:12]
