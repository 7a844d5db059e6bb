"""The official evaluations: SQuAD v1.1 and v2.0 by normalised words, CMRC 2018 by characters. Pure Python.

Written from their published definitions: Rajpurkar et al. (2016, section 6.1; 2018, section 3), Cui et al. (2019,
section 4.1).
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from reloss_tasks.mrc.data import Question

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
CHINESE_PUNCTUATION = set("-:_*^/\\~`+=，。：？！“”；’《》…·、「」（）－～『』")
CHINESE_PARTS = re.compile(r"[\u4e00-\u9fa5]|[^\W\u4e00-\u9fa5]+|[^\w\s]")
SENTENCE = re.compile(r".*?[.!?。！？](?=\s|[^\x00-\x7f]|$)|.+", re.DOTALL)


class Score(NamedTuple):
    """Of one answer, both in [0, 1]."""

    f1: float
    exact_match: float


def normalize(text: str) -> str:
    """Return the text in lower case without punctuation, articles and superfluous space, as SQuAD compares answers."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def score(answer: str, question: Question, language: str = "en") -> Score:
    """Return the best scores of an answer over the gold texts; the empty answer says that there is none.

    Where a question has no answer, the empty one scores 1 and any other 0.
    """
    compare = COMPARE[language]
    golds = question.answers or ("",)
    pairs = [compare(answer, gold) for gold in golds]
    return Score(max(f1 for f1, _ in pairs), max(exact for _, exact in pairs))


def compare_words(answer: str, gold: str) -> Score:
    """Return F1 of the bags of normalised words, and whether they are equal (SQuAD v2.0's rule for the empty)."""
    ours, theirs = normalize(answer), normalize(gold)
    common = sum((Counter(ours.split()) & Counter(theirs.split())).values())
    return Score(_f1(common, len(ours.split()), len(theirs.split())), float(ours == theirs))


def compare_characters(answer: str, gold: str) -> Score:
    """Return F1 of the longest common run of Chinese characters and other words, and whether the texts are equal.

    Both without punctuation. CMRC 2018's script cuts what is not Chinese into words with NLTK; here runs of letters and
    digits are words and what else there is stands alone.
    """
    ours, theirs = _chinese_parts(answer), _chinese_parts(gold)
    common = _longest_common_run(ours, theirs)
    return Score(_f1(common, len(ours), len(theirs)), float(_without_punctuation(answer) == _without_punctuation(gold)))


COMPARE: dict[str, Callable[[str, str], Score]] = {"en": compare_words, "zh": compare_characters}


def _f1(common: int, ours: int, theirs: int) -> float:
    if ours == 0 or theirs == 0:
        return float(ours == theirs)
    return 2 * common / (ours + theirs)


def _without_punctuation(text: str) -> str:
    return "".join(c for c in text.lower().strip() if c not in CHINESE_PUNCTUATION)


def _chinese_parts(text: str) -> list[str]:
    return CHINESE_PARTS.findall(_without_punctuation(text))


def _longest_common_run(ours: Sequence[str], theirs: Sequence[str]) -> int:
    """Return the length of the longest sequence of neighbours that both have."""
    longest, ending = 0, [0] * (len(theirs) + 1)  # ending[j]: of the run that ends at ours[i], theirs[j - 1]
    for part in ours:
        ending = [0, *(ending[j] + 1 if part == other else 0 for j, other in enumerate(theirs))]
        longest = max(longest, *ending)
    return longest


def mean_scores(answers: dict[str, str], questions: Sequence[Question], language: str = "en") -> dict[str, float]:
    """Return F1 and exact match, and, where some have no answer, those of either kind of question.

    Args:
        answers: by the questions' ids; one that is missing counts as no answer.
        questions: at least one.
        language: see `COMPARE`.
    """
    scores = [score(answers.get(question.id, ""), question, language) for question in questions]
    found = _means(scores)
    kinds = {"has_answer": True, "no_answer": False}
    if not all(question.answers for question in questions):
        for name, kind in kinds.items():
            some = [s for s, question in zip(scores, questions, strict=True) if bool(question.answers) is kind]
            found |= {f"{name}_{key}": value for key, value in _means(some).items()} if some else {}
    return found


def _means(scores: Sequence[Score]) -> dict[str, float]:
    return {name: sum(getattr(s, name) for s in scores) / len(scores) for name in Score._fields}


def best_threshold(
    answers: dict[str, str], leads: dict[str, float], questions: Sequence[Question], language: str = "en"
) -> dict[str, float]:
    """Return the best F1 that a threshold on the lead of no answer could have reached, and that threshold.

    As SQuAD 2.0's evaluation reports it beside the scores; chosen on the tested questions themselves.

    Args:
        answers: the best span's text for every question.
        leads: how far no answer is ahead of it.
        questions: at least one.
        language: see `COMPARE`.
    """
    total = sum(float(not question.answers) for question in questions)  # nothing is answered
    best, threshold = total, float("-inf")
    for question in sorted(questions, key=lambda question: leads[question.id]):
        total += score(answers[question.id], question, language).f1 - float(not question.answers)
        if total > best:
            best, threshold = total, leads[question.id]
    return {"best_f1": best / len(questions), "best_f1_threshold": threshold}


def first_sentence(context: str) -> str:
    """Return the first sentence of a passage: what a reader that does not read may answer."""
    found = SENTENCE.match(context.strip())
    return found.group().strip() if found else ""
