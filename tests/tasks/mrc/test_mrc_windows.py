import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reloss.metrics import MASKED
from reloss_tasks.mrc import windows as features
from reloss_tasks.mrc.config import Data
from reloss_tasks.mrc.data import Question
from reloss_tasks.mrc.models import character_tokenizer
from reloss_tasks.mrc.windows import make_windows, read_answers

KINDS = ("pieces", "bytes", "characters")
DIFFICULT = [
    "Anna lives in Berlin.",
    "Anna\tlives\n\nin  New York .",
    "安娜住在北京市，她喜欢Oslo。",
    "Zürich cafe\u0301 naïve ﬁle ½ ＡＢＣ",  # combining accent, ligature, full width
    "👩‍👩‍👧 family 🇩🇪 flag",
    "zero\u200bwidth and nbsp\u00a0here",
    "ctrl\x07char",
    "مرحبا بالعالم",
    "İstanbul ĲSSEL ẞ",  # lower case has another length
    "",
    " ",
]


def config(**changes) -> Data:
    fields = {"name": "squad", "folder": "squad", "train_file": "a.json", "test_file": "b.json"}
    return Data(**{**fields, "max_length": 40, "stride": 8, "max_question": 16, **changes})


def ask(context: str, *spans: tuple[int, int], text: str = "Where does Anna live?", name: str = "q") -> Question:
    return Question(name, text, context, tuple(context[a:b] for a, b in spans), spans, 0)


def perfect(windows) -> torch.Tensor:
    """Logits of a perfect reader, which predicts the first gold span of each window."""
    outputs = torch.zeros(*windows.passage.shape[:1], 2, windows.passage.shape[1])
    gold = windows.targets[:, 0].clamp(min=0)
    answerable = windows.targets[:, 0, 0] >= 0
    outputs.scatter_(2, gold[..., None], (5.0 + 5.0 * answerable)[:, None, None].expand(-1, 2, 1))
    return outputs.where(windows.passage[:, None], MASKED)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("context", DIFFICULT)
def test_words_of_difficult_text_are_read_back(tokenizers, kind, context):
    """Every word is placed on tokens by its characters, and read back from these tokens."""
    words, place = [], 0
    for word in context.split():
        place = context.index(word, place)
        words.append((place, place + len(word)))
        place += len(word)
    if not words:
        windows = make_windows([ask(context)], tokenizers[kind], config())
        texts, lead = read_answers(perfect(windows), windows, [ask(context)], 30)
        assert texts == [""]
        assert lead.isfinite().all()
        return
    questions = [ask(context, word, name=str(word)) for word in words]
    windows = make_windows(questions, tokenizers[kind], config(max_length=160, stride=64))
    texts, lead = read_answers(perfect(windows), windows, questions, 100)
    for question, text, lead_of_no_answer in zip(questions, texts, lead.tolist(), strict=True):
        if lead_of_no_answer < 0:  # the word was placed
            assert question.answers[0].strip("\u200b\x07") in text
            assert len(text) <= len(question.answers[0]) + 12  # a token may be longer than the word
    assert (lead < 0).float().mean() > 0.6


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_long_passages_are_covered_by_windows(tokenizers, kind, data):
    words = data.draw(
        st.lists(st.sampled_from(["Anna", "lives", "北京市", "Rio", "x", "Zürich,"]), min_size=1, max_size=60)
    )
    space = data.draw(st.sampled_from([" ", "  ", "\n"]))
    context = space.join(words)
    number = data.draw(st.integers(0, len(words) - 1))
    begin = sum(len(word) + len(space) for word in words[:number])
    question = ask(context, (begin, begin + len(words[number])))
    windows = make_windows([question, ask("Anna lives.", (0, 4))], tokenizers[kind], config())
    first = windows.owners == 0
    assert windows.lengths.max() <= 40
    # Every token of the passage is in a window, and at least one window contains the short answer whole.
    inside = windows.targets[first, 0, 0] >= 0
    assert inside.any()
    texts, _ = read_answers(perfect(windows), windows, [question, ask("Anna lives.", (0, 4))], 30)
    assert texts[0] == question.answers[0] or (kind == "bytes" and question.answers[0] in texts[0])
    assert texts[1] == "Anna"
    covered = np.zeros(len(context), dtype=bool)
    for begin, end in windows.offsets[first][windows.passage[first]].tolist():
        covered[begin:end] = True
    assert all(covered[i] for i, c in enumerate(context) if not c.isspace())


def test_places_equal_loops_over_tokens():
    generator = np.random.default_rng(0)
    f, t, g = 40, 12, 3
    owners = np.sort(generator.integers(0, 15, f))
    passage = np.zeros((f, t), dtype=bool)
    offsets = np.zeros((f, t, 2), dtype=np.int32)
    for row in range(f):
        begin, count = generator.integers(1, 5), generator.integers(1, 7)
        passage[row, begin : begin + count] = True
        edges = np.sort(generator.choice(30, 2 * count, replace=False))
        offsets[row, begin : begin + count] = edges.reshape(-1, 2)
    spans = np.sort(generator.integers(0, 30, (f, g, 2)), -1)
    spans[..., 1] += 1
    spans[generator.random((f, g)) < 0.2] = -1
    placed = features._place(spans, offsets, passage, owners)
    for row in range(f):
        expected = []
        tokens = np.flatnonzero(passage[row])
        left = 0 if row == 0 or owners[row - 1] != owners[row] else offsets[row, tokens[0], 0]
        right = 99 if row == f - 1 or owners[row + 1] != owners[row] else offsets[row, tokens[-1], 1]
        for begin, end in spans[row].tolist():
            on = [i for i in tokens if offsets[row, i, 0] < end and offsets[row, i, 1] > begin]
            if on and left <= begin and end <= right:
                expected.append([on[0], on[-1]])
        rest = [[-2, -2]] * (g - len(expected))
        if not expected:
            rest[0] = [-1, -1]
        assert placed[row].tolist() == expected + rest


def test_an_answer_that_fits_no_window_is_no_answer(tokenizers):
    context = "Anna " * 60
    question = ask(context, (0, len(context) - 1))
    windows = make_windows([question], tokenizers["pieces"], config())
    assert len(windows) > 2
    assert windows.targets[:, 0].tolist() == [[-1, -1]] * len(windows)


def test_an_empty_passage_has_no_answer(tokenizers):
    for kind in KINDS:
        windows = make_windows([ask("")], tokenizers[kind], config())
        assert windows.passage.sum().item() == 1
        assert windows.passage[0, 0]
        assert windows.targets.tolist() == [[[-1, -1]]]
        texts, _ = read_answers(perfect(windows), windows, [ask("")], 30)
        assert texts == [""]


def test_only_position_0_and_the_passage_can_be_answers(tokenizers):
    for kind in KINDS:
        windows = make_windows([ask("Anna lives in Oslo.")], tokenizers[kind], config())
        (ids,), (open_,) = windows.input_ids, windows.passage
        texts = tokenizers[kind].convert_ids_to_tokens(ids[open_].tolist())
        assert texts[0] == tokenizers[kind].cls_token
        assert "".join(texts[1:]).replace("##", "").replace("Ġ", "").lower() == "annalivesinoslo."
        assert windows.lengths.item() == (ids != tokenizers[kind].pad_token_id).sum()


def test_long_questions_are_cut(tokenizers):
    windows = make_windows([ask("Anna lives in Oslo.", text="where " * 200)], tokenizers["pieces"], config())
    assert windows.owners.tolist() == [0] * len(windows)
    assert windows.passage.sum(1).max() > 5
    first = windows.passage[0].float()[1:].argmax() + 1
    assert first == 1 + 16 + 1  # [CLS], 16 tokens, [SEP]


def test_several_gold_spans_and_the_best_window(tokenizers):
    context = "Anna lives in Oslo, Norway. " + "She walks a lot. " * 10 + "Anna loves Oslo."
    late = context.rindex("Oslo")
    question = ask(context, (14, 18), (14, 26), (late, late + 4))
    windows = make_windows([question], tokenizers["pieces"], config())
    assert windows.targets.shape[1] == 3
    assert (windows.targets[0, :2] > 0).all()
    assert windows.targets[0, 2].tolist() == [-2, -2]
    assert (windows.targets[-1, 0] > 0).all()
    outputs = torch.zeros(len(windows), 2, 40).where(windows.passage[:, None], MASKED)
    place = windows.targets[-1, 0, 0]
    outputs[-1, :, place : windows.targets[-1, 0, 1] + 1] = 3.0
    outputs[:, :, 0] = torch.arange(len(windows))[:, None]
    (text,), (lead,) = (
        read_answers(outputs, windows, [question], 1)[0],
        read_answers(outputs, windows, [question], 1)[1],
    )
    assert text in ("oslo", "Oslo", "O", "Os")
    assert lead == 0 - 6  # the lowest score of no answer, in window 0, minus two logits of 3


def test_windows_are_cached_and_a_damaged_cache_is_replaced(tokenizers, tmp_path, monkeypatch):
    questions = [ask("Anna lives in Oslo.", (14, 18))]
    first = make_windows(questions, tokenizers["pieces"], config())
    (path,) = (tmp_path / "cache" / "windows").iterdir()
    monkeypatch.setattr(features, "_chunk", None)  # nothing may be computed
    again = make_windows(questions, tokenizers["pieces"], config())
    monkeypatch.undo()
    monkeypatch.setenv("RELOSS_CACHE", str(tmp_path / "cache"))
    for name, value in dataclasses.asdict(first).items():
        assert torch.equal(value, getattr(again, name))
    for changed in (config(stride=9), config(max_length=44), config(max_question=12)):
        make_windows(questions, tokenizers["pieces"], changed)
    make_windows(questions, tokenizers["characters"], config())
    make_windows([ask("Anna lives in Oslo!", (14, 18))], tokenizers["pieces"], config())
    assert len(list(path.parent.iterdir())) == 6
    path.write_bytes(b"damaged")
    assert torch.equal(make_windows(questions, tokenizers["pieces"], config()).targets, first.targets)


@pytest.mark.parametrize("word", ["हिंदू", "দুঃখ", "தமிழ்", "ไทย้", "cafe\u0301"])
def test_marks_of_a_word_are_read_back_even_if_the_tokenizer_strips_them(word):
    context = f"{word} x"
    question = ask(context, (0, len(word)))
    tokenizer = character_tokenizer([context])
    windows = make_windows([question], tokenizer, config())
    (text,), _ = read_answers(perfect(windows), windows, [question], 30)
    assert text == word
