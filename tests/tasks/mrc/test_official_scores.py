"""Scores equal those of the official scripts, on 10,000 random answers for each.

The oracles are written from the scripts' rules with other tools: torchmetrics has SQuAD's normalisation, NLTK the word
tokenizer of CMRC 2018's script, and difflib finds its longest common run.
"""

import random
import re
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from functools import cache

import pytest
from nltk.tokenize import NLTKWordTokenizer
from torchmetrics.functional.text.squad import _normalize_text

from reloss_tasks.mrc.data import Question
from reloss_tasks.mrc.scoring import mean_scores, score
from reloss_tasks.mrc.words import split_words

ANSWERS = 10_000
ENGLISH = [*("the", "a", "an", "The", "Oslo", "oslo,", "New", "York", "1,000", "U.S.", "dog's", "naïve", "北京", "½")]
ENGLISH += [*("", "-", "...", "(a)", "“x”", "an-other", "\u00a0", "\t")]
CHINESE = [*("北", "京", "市", "的", "一", "龥", "。", "，", "《", "》", "、", "…", "—", "・")]
CHINESE += [*("6.40", "2,052", "12%", "$5", "u.s.", "NBA", "can't", "cannot", "'s", "gonna", " ", "(", ")", '"', "'")]
CHINESE += [*(".", ",", "!", "?", ";", ":", "-", "~", "½", "é", "İ", "[", "]", "&", "''", "a", "b", "\n", "\u3000")]
IGNORED = "-:_*^/\\~`+=，。：？！“”；’《》……·、「」（）－～『』"


def question(golds: Sequence[str]) -> Question:
    return Question("q", "?", "", tuple(golds), (), 0)


def texts(vocabulary: Sequence[str], separator: str, length: int) -> Callable[[random.Random], tuple[str, list[str]]]:
    """Return a function that draws an answer and one or two gold answers. Most share words with it."""

    def draw(generator: random.Random) -> tuple[str, list[str]]:
        words = generator.choices(vocabulary, k=generator.randint(0, length))
        golds = []
        for _ in range(generator.randint(1, 2)):
            begin = generator.randint(0, len(words))
            shared = words[begin : begin + generator.randint(0, length)]
            golds.append(separator.join(shared + generator.choices(vocabulary, k=generator.choice((0, 0, 1, 3)))))
        return separator.join(words), golds

    return draw


def harmonic_mean(common: int, first: int, second: int) -> float:
    if common == 0:
        return 0.0
    precision, recall = common / first, common / second
    return 2 * precision * recall / (precision + recall)


def squad1(answer: str, golds: list[str]) -> tuple[float, float]:
    def f1(gold: str) -> float:
        first, second = _normalize_text(answer).split(), _normalize_text(gold).split()
        common = sum(min(first.count(word), second.count(word)) for word in set(first))
        return harmonic_mean(common, len(first), len(second))

    return max(map(f1, golds)), float(any(_normalize_text(answer) == _normalize_text(gold) for gold in golds))


def squad2(answer: str, golds: list[str]) -> tuple[float, float]:
    kept = [gold for gold in golds if _normalize_text(gold)]
    if not kept:
        empty = float(not _normalize_text(answer))
        return empty, empty
    return squad1(answer, kept)


tokenize = cache(NLTKWordTokenizer().tokenize)


def plain(text: str) -> str:
    return "".join(character for character in text.lower().strip() if character not in IGNORED)


def parts(text: str) -> list[str]:
    words = re.findall("[\u4e00-\u9fa5]|[^\u4e00-\u9fa5]+", plain(text))
    return [part for word in words for part in ([word] if "\u4e00" <= word <= "\u9fa5" else tokenize(word))]


def cmrc2018(answer: str, golds: list[str]) -> tuple[float, float]:
    first = parts(answer)

    def f1(gold: str) -> float:
        second = parts(gold)
        common = SequenceMatcher(None, first, second, autojunk=False).find_longest_match().size
        return harmonic_mean(common, len(first), len(second))

    return max(map(f1, golds)), float(any(plain(answer) == plain(gold) for gold in golds))


@pytest.mark.parametrize(
    ("oracle", "draw"),
    [
        (squad1, texts(ENGLISH, " ", 5)),
        (squad2, texts(ENGLISH, " ", 5)),
        (cmrc2018, texts(CHINESE, "", 6)),
    ],
)
def test_scores_equal_the_official_scripts(oracle, draw):
    generator = random.Random(0)
    differences = []
    for _ in range(ANSWERS):
        answer, golds = draw(generator)
        (f1, exact), expected = score(answer, question(golds), oracle.__name__), oracle(answer, golds)
        if abs(f1 - expected[0]) > 1e-12 or exact != expected[1]:
            differences.append((answer, golds, f1, exact, expected))
    assert differences == []


def test_words_equal_nltks():
    generator = random.Random(1)
    alphabet = [*"ab1 .,'\";@#$%&?!()[]{}<>«»‘„–é\n²º", "'s", "'ll", "n't", "cannot", "wanna", " 'tis", "d'ye", "u.s."]
    texts = ["".join(generator.choices(alphabet, k=generator.randint(1, 12))) for _ in range(ANSWERS)]
    assert list(map(split_words, texts)) == list(map(tokenize, texts))


@pytest.mark.parametrize(
    ("rules", "answer", "golds", "f1", "exact"),
    [
        ("cmrc2018", "6.40元", ["6.40美元"], 2 * 1 / (2 + 3), 0),  # a number is one part
        ("cmrc2018", "2,052人", ["2,052"], 2 * 1 / (2 + 1), 0),
        ("cmrc2018", "。", ["，"], 0, 1),
        ("cmrc2018", "", [], 1, 1),
        ("squad1", "the", ["the", "Oslo"], 0, 1),
        ("squad2", "the", ["the", "Oslo"], 0, 0),  # a gold answer that normalises to nothing does not count
        ("squad2", "", ["a"], 1, 1),
        ("squad2", "Oslo", ["a"], 0, 0),
    ],
)
def test_answers_that_normalise_to_nothing_and_numbers(rules, answer, golds, f1, exact):
    assert score(answer, question(golds), rules) == pytest.approx((f1, exact))


def test_a_missing_answer_scores_zero():
    for rules in ("squad1", "squad2", "cmrc2018"):
        assert mean_scores({}, [question(["Oslo"])], rules) == {"f1": 0, "exact_match": 0}
