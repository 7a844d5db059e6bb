"""The official evaluations: SQuAD v1.1 and v2.0 compare normalised words, CMRC 2018 characters. Pure Python.

They differ in small ways, which the rules `squad1`, `squad2` and `cmrc2018` keep: their scores equal those of the
official scripts.

Exact match asks whether an answer equals a gold answer; F1 measures how much both texts share. Sources of the
definitions: Rajpurkar et al. (2016, section 6.1; 2018, section 3), Cui et al. (2019, section 4.1).
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from reloss_tasks.mrc.data import Question
from reloss_tasks.mrc.words import split_words

EXAMPLES = 20  # right and wrong answers in the record's examples.json, each
ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
CHINESE_PUNCTUATION = set("-:_*^/\\~`+=，。：？！“”；’《》…·、「」（）－～『』")
CHINESE = re.compile(r"([\u4e00-\u9fa5])")
SENTENCE = re.compile(r".*?[.!?。！？](?=\s|[^\x00-\x7f]|$)|.+", re.DOTALL)


class Score(NamedTuple):
    """The scores of one answer, both in [0, 1]."""

    f1: float
    exact_match: float


def normalize(text: str) -> str:
    """Return the text in lower case without punctuation, articles and superfluous space, as SQuAD compares answers."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def score(answer: str, question: Question, rules: str = "squad1") -> Score:
    """Return the best scores of an answer over the gold answers. An empty answer means no answer.

    If a question is unanswerable, an answer that normalises to nothing scores 1 and any other 0. In SQuAD 2.0, gold
    answers that normalise to nothing do not count; a question without others is unanswerable.

    Args:
        answer: the answer.
        question: holds the gold answers.
        rules: a key of `COMPARE`, the official script to follow.
    """
    compare = COMPARE[rules]
    golds = [gold for gold in question.answers if rules != "squad2" or normalize(gold)]
    if not golds:
        is_empty = compare(answer, "").exact_match
        return Score(is_empty, is_empty)
    pairs = [compare(answer, gold) for gold in golds]
    return Score(max(f1 for f1, _ in pairs), max(exact for _, exact in pairs))


def compare_words(answer: str, gold: str) -> Score:
    """Return F1 of the bags of normalised words, and whether the normalised texts are equal."""
    answer, gold = normalize(answer), normalize(gold)
    common = sum((Counter(answer.split()) & Counter(gold.split())).values())
    return Score(_f1(common, len(answer.split()), len(gold.split())), float(answer == gold))


def compare_characters(answer: str, gold: str) -> Score:
    """Return F1 of the longest common run of parts, and whether the texts are equal, both without punctuation.

    A part is a Chinese character, or a word of the text between Chinese characters (see `split_words`).
    """
    answer_parts, gold_parts = _chinese_parts(answer), _chinese_parts(gold)
    common = _longest_common_run(answer_parts, gold_parts)
    f1 = _f1(common, len(answer_parts), len(gold_parts))
    return Score(f1, float(_without_punctuation(answer) == _without_punctuation(gold)))


COMPARE: dict[str, Callable[[str, str], Score]] = {
    "squad1": compare_words,
    "squad2": compare_words,
    "cmrc2018": compare_characters,
}


def _f1(common: int, answer: int, gold: int) -> float:
    """Return F1 from the numbers of common parts, of the answer's and of the gold answer's; 0 if none are common."""
    return 2 * common / (answer + gold) if common else 0.0


def _without_punctuation(text: str) -> str:
    return "".join(c for c in text.lower().strip() if c not in CHINESE_PUNCTUATION)


def _chinese_parts(text: str) -> list[str]:
    pieces = CHINESE.split(_without_punctuation(text))  # every other piece is a Chinese character
    return [part for n, piece in enumerate(pieces) for part in ([piece] if n % 2 else split_words(piece))]


def _longest_common_run(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest contiguous sequence that both contain."""
    longest, lengths = 0, [0] * (len(second) + 1)  # lengths[j]: run that ends at the current part and at second[j - 1]
    for part in first:
        lengths = [0, *(lengths[j] + 1 if part == other else 0 for j, other in enumerate(second))]
        longest = max(longest, *lengths)
    return longest


def mean_scores(answers: dict[str, str], questions: Sequence[Question], rules: str = "squad1") -> dict[str, float]:
    """Return mean F1 and exact match. If some questions are unanswerable, also the means for each kind of question.

    Args:
        answers: answers by the ids of the questions; a missing one counts as no answer.
        questions: at least one question.
        rules: a key of `COMPARE`.
    """
    scores = [score(answers.get(question.id, ""), question, rules) for question in questions]
    means = _means(scores)
    if not all(question.answers for question in questions):
        for kind, answerable in (("has_answer", True), ("no_answer", False)):
            part = [s for s, question in zip(scores, questions, strict=True) if bool(question.answers) is answerable]
            means |= {f"{kind}_{name}": value for name, value in _means(part).items()} if part else {}
    return means


def _means(scores: Sequence[Score]) -> dict[str, float]:
    return {name: sum(getattr(s, name) for s in scores) / len(scores) for name in Score._fields}


def best_threshold(
    answers: dict[str, str], leads: dict[str, float], questions: Sequence[Question], rules: str = "squad1"
) -> dict[str, float]:
    """Return the best F1 that any threshold on the lead of no answer reaches, and that threshold.

    SQuAD 2.0's evaluation reports it as well. It is optimistic: the threshold is chosen on the test questions.

    Args:
        answers: text of the best span for every question, by id.
        leads: score of no answer minus score of the best span, by id.
        questions: at least one question.
        rules: a key of `COMPARE`.
    """
    total = sum(float(not question.answers) for question in questions)  # F1 if no question is answered
    best, threshold = total, math.nextafter(min(leads.values()), -math.inf)
    for question in sorted(questions, key=lambda question: leads[question.id]):
        answer = answers[question.id]
        total += score(answer, question, rules).f1 if question.answers else -float(answer != "")
        if total > best:
            best, threshold = total, leads[question.id]
    return {"best_f1": best / len(questions), "best_f1_threshold": threshold}


def first_sentence(context: str) -> str:
    """Return the first sentence of a passage, the answer of a model that does not read."""
    match = SENTENCE.match(context.strip())
    return match.group().strip() if match else ""


def examples(answers: dict[str, str], questions: Sequence[Question], rules: str) -> dict[str, list[dict[str, Any]]]:
    """Return the first wrong and the first right answers, with questions, gold answers and scores."""
    kinds: dict[str, list[dict[str, Any]]] = {"wrong": [], "right": []}
    for question in questions:
        answer = answers[question.id]
        result = score(answer, question, rules)
        rows = kinds["right" if result.exact_match else "wrong"]
        if len(rows) < EXAMPLES:
            rows.append(
                {
                    "id": question.id,
                    "question": question.text,
                    "answer": answer,
                    "gold": list(dict.fromkeys(question.answers)),
                    "f1": round(result.f1, 4),
                    "context": question.context,
                }
            )
    return kinds
