import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.text import squad

from reloss_tasks.mrc.data import Question
from reloss_tasks.mrc.scoring import best_threshold, compare_characters, first_sentence, mean_scores, normalize, score


def question(*answers: str, name: str = "q") -> Question:
    return Question(name, "?", "", tuple(answers), (), 0)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Oslo Airport", "oslo airport"),
        ("  a  dog's tail! ", "dogs tail"),
        ("an-other", "another"),
        ("Theatre", "theatre"),
        ("the", ""),
        ("$1,000.50", "100050"),
        ("U.S.A.", "usa"),
        ("naïve\tcafé\n“x”", "naïve café “x”"),
    ],
)
def test_normalization(text, normal):
    assert normalize(text) == normal


SOME = ["the", "a", "an", "Oslo", "oslo,", "Oslo.", "New", "York", "new-york", "1,000", "1000", "U.S.", "北京", "café"]
WORDS = st.lists(st.sampled_from(SOME), max_size=5)


@given(st.lists(st.tuples(WORDS, st.lists(WORDS.filter(bool), min_size=1, max_size=3)), min_size=1, max_size=6))
@settings(max_examples=150, deadline=None)
def test_equals_torchmetrics_squad(pairs):
    """Except for texts that only consist of articles, where SQuAD 2.0 has another rule."""
    questions, answers = [], {}
    for number, (answer, golds) in enumerate(pairs):
        texts = [" ".join(gold) for gold in golds]
        if not normalize(" ".join(answer)) or not all(map(normalize, texts)):
            continue
        questions.append(question(*texts, name=str(number)))
        answers[str(number)] = " ".join(answer)
    if not questions:
        return
    scores = mean_scores(answers, questions)
    expected = squad(
        [{"id": name, "prediction_text": text} for name, text in answers.items()],
        [{"id": q.id, "answers": {"text": list(q.answers), "answer_start": [0] * len(q.answers)}} for q in questions],
    )
    assert scores["f1"] == pytest.approx(float(expected["f1"]) / 100, abs=1e-5)
    assert scores["exact_match"] == pytest.approx(float(expected["exact_match"]) / 100, abs=1e-5)


@pytest.mark.parametrize(
    ("answer", "golds", "f1", "exact"),
    [
        ("Denver Broncos", ["Denver Broncos", "Broncos"], 1, 1),
        ("the Broncos of Denver", ["Denver Broncos"], 2 * 2 / (3 + 2), 0),
        ("Oslo Oslo", ["Oslo"], 2 * 1 / (2 + 1), 0),
        ("", [], 1, 1),
        ("Oslo", [], 0, 0),
        ("", ["Oslo"], 0, 0),
        ("the", [], 1, 1),
    ],
)
def test_by_hand(answer, golds, f1, exact):
    assert score(answer, question(*golds)) == pytest.approx((f1, exact))


@pytest.mark.parametrize(
    ("answer", "gold", "f1", "exact"),
    [
        ("北京市", "北京市", 1, 1),
        ("北京", "北京市", 2 * 2 / (2 + 3), 0),
        ("北市", "北京市", 2 * 1 / (2 + 3), 0),  # the longest run, not the bag
        ("《北京》。", "北京", 1, 1),  # punctuation does not count
        ("1993年", "1993年。", 1, 1),
        ("1993年", "1994年", 2 * 1 / (2 + 2), 0),  # a number is one part
        ("NBA联赛", "nba 联赛", 1, 0),
        ("", "北京", 0, 0),
        ("上海", "北京", 0, 0),
    ],
)
def test_chinese_by_hand(answer, gold, f1, exact):
    assert compare_characters(answer, gold) == pytest.approx((f1, exact))
    assert score(answer, question("纽约", gold), "cmrc2018") == pytest.approx((f1, exact))


@given(st.text("ab北京", max_size=8), st.text("ab北京", max_size=8))
@settings(max_examples=80, deadline=None)
def test_longest_common_run_equals_an_exhaustive_search(answer, gold):
    from reloss_tasks.mrc.scoring import _chinese_parts, _longest_common_run

    first, second = _chinese_parts(answer), _chinese_parts(gold)
    runs = [first[i:j] for i, j in itertools.combinations(range(len(first) + 1), 2)]
    common = [len(r) for r in runs if any(second[k : k + len(r)] == r for k in range(len(second)))]
    assert _longest_common_run(first, second) == max(common, default=0)


def test_scores_for_each_kind_of_question():
    questions = [question("Oslo", name="1"), question("Paris", name="2"), question(name="3"), question(name="4")]
    scores = mean_scores({"1": "Oslo", "2": "", "3": "Rome"}, questions)
    assert scores == {
        "f1": 0.5,
        "exact_match": 0.5,
        "has_answer_f1": 0.5,
        "has_answer_exact_match": 0.5,
        "no_answer_f1": 0.5,
        "no_answer_exact_match": 0.5,
    }
    assert mean_scores({"1": "Oslo"}, questions[:1]) == {"f1": 1, "exact_match": 1}


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(-5, 5)), min_size=1, max_size=8))
@settings(max_examples=80, deadline=None)
def test_best_threshold_equals_an_exhaustive_search(cases):
    questions = [question(*(["Oslo"] if has else []), name=str(i)) for i, (has, _, _) in enumerate(cases)]
    answers = {str(i): "Oslo" if right else "Rome" for i, (_, right, _) in enumerate(cases)}
    leads = {str(i): lead + i / 100 for i, (_, _, lead) in enumerate(cases)}  # all different

    def f1(threshold: float) -> float:
        final = {name: "" if leads[name] > threshold else text for name, text in answers.items()}
        return mean_scores(final, questions)["f1"]

    scores = best_threshold(answers, leads, questions)
    assert scores["best_f1"] == pytest.approx(max(f1(threshold) for threshold in (float("-inf"), *leads.values())))
    assert f1(scores["best_f1_threshold"]) == pytest.approx(scores["best_f1"])


@pytest.mark.parametrize(
    ("context", "sentence"),
    [
        ("He came. She went.", "He came."),
        ("It cost 3.5 dollars! Yes.", "It cost 3.5 dollars!"),
        ("他来了。她走了。", "他来了。"),
        ("no end", "no end"),
        ("  ", ""),
        ("", ""),
    ],
)
def test_first_sentence(context, sentence):
    assert first_sentence(context) == sentence
