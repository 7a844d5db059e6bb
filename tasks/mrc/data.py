"""Questions about passages, from files in the JSON format of SQuAD."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from reloss.runtime.errors import RelossError
from reloss.runtime.files import read_data
from reloss_tasks.mrc import download
from reloss_tasks.mrc.config import Data

SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Question:
    """A question about a passage.

    Attributes:
        id: id in the file; predictions are named by it.
        text: text of the question.
        context: the passage.
        answers: gold answers; empty if the question is unanswerable.
        spans: position of each gold answer that occurs in the passage, without duplicates, as (first character,
            character after the last).
        article: number of the passage's article. Articles are held out as a whole.
    """

    id: str
    text: str
    context: str
    answers: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]
    article: int


class Splits(NamedTuple):
    """Questions for training, validation (the test questions if none are held out) and test."""

    train: list[Question]
    validation: list[Question]
    test: list[Question]


def load(config: Data, root: Path) -> Splits:
    """Return the questions of `config` in the data folder `root`.

    Training skips questions whose answers do not occur in their passage.

    Raises:
        RelossError: a file is missing or not in SQuAD's JSON, there are too few questions, or two that are scored have
            the same id.
    """
    questions = read(_path(config, root, config.train_file))
    if config.test_file is not None:
        test = read(_path(config, root, config.test_file))
    else:
        passages = _last_passages(questions, config.test_fraction)
        test = [question for question in questions if question.context in passages]
        questions = [question for question in questions if question.context not in passages]
    train, held_out = _hold_out(questions, config.held_out)
    train = [question for question in train if question.spans or (config.unanswerable and not question.answers)]
    for key, split, count in (
        ("held_out", held_out, config.held_out),
        ("train_questions", train, config.train_questions or 1),
        ("test_questions", test, config.test_questions or 1),
    ):
        if len(split) < count:
            raise RelossError(f"{config.name} has only {len(split)} of {count} questions for data.{key}; lower it")
    for split in (held_out, test):
        _check_ids(config, split)
    test = _draw(test, config.test_questions)
    return Splits(_draw(train, config.train_questions), held_out or test, test)


def read(path: Path) -> list[Question]:
    """Return the questions of a file in SQuAD's JSON, v1.1 or v2.0.

    Raises:
        RelossError: the file is missing or has another format.
    """
    content = read_data(path)
    try:
        return [
            _question(entry, paragraph["context"], number)
            for number, article in enumerate(content["data"])
            for paragraph in article["paragraphs"]
            for entry in paragraph["qas"]
        ]
    except RelossError as error:
        raise RelossError(f"{path}: {error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise RelossError(
            f"{path} is not in SQuAD's JSON: {type(error).__name__} {error}; restore or convert the file"
        ) from error


def _question(entry: dict[str, Any], context: str, article: int) -> Question:
    """Return a question from its entry in the file.

    Raises:
        RelossError: a field has the wrong type, or a text is not Unicode; the message names the question.
    """
    name = str(entry["id"])
    _check_text(name, "id", name)
    impossible = entry.get("is_impossible", False)
    if not isinstance(impossible, bool):
        raise RelossError(f"question {name}: is_impossible is {impossible!r}; write true or false, without quotes")
    golds = [(answer["text"], answer.get("answer_start", -1)) for answer in entry["answers"]]
    for field, text in (
        ("context", context),
        ("question", entry["question"]),
        *(("answers", text) for text, _ in golds),
    ):
        _check_text(name, field, text)
    for _, start in golds:
        if not isinstance(start, int) or isinstance(start, bool):
            raise RelossError(f"question {name}: answer_start is {start!r}; write a whole number, without quotes")
    answers = () if impossible else tuple(text for text, _ in golds)
    places = [_find(context, text, start) for text, start in golds]
    spans = dict.fromkeys(place for place in places if place is not None) if answers else {}
    return Question(name, entry["question"], context, answers, tuple(spans), article)


def _check_text(name: str, field: str, text: Any) -> None:
    """Raise RelossError unless the text of a question's field is a string of Unicode characters."""
    if not isinstance(text, str):
        raise RelossError(f"question {name}: {field} holds {text!r:.40}, which is not a text; put it in quotes")
    if surrogate := SURROGATE.search(text):
        raise RelossError(
            f"question {name}: {field} holds half a character (\\u{ord(surrogate.group()):04x}, an unpaired surrogate) "
            f"at position {surrogate.start()}; remove or repair it"
        )


def _check_ids(config: Data, questions: Sequence[Question]) -> None:
    """Raise RelossError if two questions have the same id: answers are scored, and written, by id."""
    counts = Counter(question.id for question in questions)
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        raise RelossError(
            f"{config.name}: {len(repeated)} ids of test or validation questions occur more than once, such as "
            f"{repeated[0]}; give every question its own id"
        )


def _find(context: str, text: str, start: int) -> tuple[int, int] | None:
    """Return the span of an answer without surrounding space: at `start`, else its occurrence nearest to `start`."""
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
    """Hold out `count` questions from whole articles; the choice is the same for every seed.

    Returns the questions of the other articles, and the held-out ones. The rest of the last article is not used.
    """
    if count == 0:
        return questions, []
    articles = np.random.default_rng(0).permutation(max(question.article for question in questions) + 1)
    sizes = np.bincount([question.article for question in questions], minlength=len(articles))
    enough = int(np.searchsorted(sizes[articles].cumsum(), count)) + 1
    chosen = set(articles[:enough].tolist())
    held_out = _draw([question for question in questions if question.article in chosen], count)
    return [question for question in questions if question.article not in chosen], held_out


def _draw(questions: list[Question], count: int | None) -> list[Question]:
    """Return `count` questions in their order, all if None; the choice is the same for every seed."""
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
    """Return one line that describes the questions.

    Raises:
        RelossError: see `load`.
    """
    splits = load(config, root)
    counts = ", ".join(f"{len(getattr(splits, name)):,} {name}" for name in Splits._fields)
    empty = sum(not question.answers for question in splits.test)
    return f"{config.name} in {root / config.folder}: {counts} questions, {empty:,} test questions without an answer"


def fetch(config: Data, root: Path) -> None:
    """Download the files into ROOT/<folder>, verified where a checksum is known. Existing files are kept.

    Raises:
        UsageError: the data set has no such file.
        RelossError: a file cannot be downloaded; running the command again resumes.
    """
    download.fetch_files(config.name, root / config.folder, _files(config))


def fingerprint(config: Data, root: Path) -> str:
    """Return a hash of the files.

    Raises:
        RelossError: a file is missing.
    """
    digest = hashlib.sha256()
    for file in _files(config):
        digest.update(_path(config, root, file).read_bytes())
    return digest.hexdigest()[:12]
