from collections import Counter

import pytest
import torch
from sacrebleu import corpus_bleu

from reloss.errors import RelossError
from reloss.metrics import NO_ANSWER, SPAN_PADDING, bleu, span_exact_match, span_f1, token_exact_match, token_f1

ENGLISH = ["the cat sat on the mat .", "a dog barks at night", "he reads the old book", "rain falls on the town today"]


def bag_f1(ours: list[int], theirs: list[int]) -> float:
    """F1 of two bags of tokens, as SQuAD 2.0's evaluation defines it."""
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))


def span_of(row: list[int]) -> list[int]:
    first, last = row
    return [-1] if first == NO_ANSWER else list(range(first, last + 1))


def test_token_metrics_equal_the_reference_on_lists() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randint(-1, 4, (40, 3, 6), generator=generator)
    targets = torch.randint(-1, 4, (40, 3, 5), generator=generator)
    outputs[:8, :, :5] = targets[:8]
    outputs[:8, :, 5] = -1
    outputs[5, 0] = targets[6, 1] = -1
    lists = [
        [([t for t in o if t != -1], [t for t in g if t != -1]) for o, g in zip(ours, theirs, strict=True)]
        for ours, theirs in zip(outputs.tolist(), targets.tolist(), strict=True)
    ]
    expected = torch.tensor([sum(bag_f1(o, g) for o, g in item) / 3 for item in lists])
    torch.testing.assert_close(token_f1(outputs, targets), expected)
    exact = torch.tensor([sum(o == g for o, g in item) / 3 for item in lists])
    torch.testing.assert_close(token_exact_match(outputs, targets), exact)
    assert exact.max() == 1


def test_span_metrics_equal_the_reference_on_positions() -> None:
    generator = torch.Generator().manual_seed(1)
    outputs = torch.randint(0, 6, (30, 4, 2), generator=generator).sort(-1).values
    targets = torch.randint(0, 6, (30, 4, 3, 2), generator=generator).sort(-1).values
    outputs[::5] = torch.tensor([NO_ANSWER, NO_ANSWER])
    targets[::7, :, 0] = torch.tensor([NO_ANSWER, NO_ANSWER])
    targets[:, ::2, 2] = SPAN_PADDING
    f1, exact = [], []
    for ours, theirs in zip(outputs.tolist(), targets.tolist(), strict=True):
        golds = [[span_of(row) for row in rows if row[0] != SPAN_PADDING] for rows in theirs]
        pairs = list(zip([span_of(row) for row in ours], golds, strict=True))
        f1.append(sum(max(bag_f1(o, g) for g in rows) for o, rows in pairs) / 4)
        exact.append(sum(o in rows for o, rows in pairs) / 4)
    torch.testing.assert_close(span_f1(outputs, targets), torch.tensor(f1))
    torch.testing.assert_close(span_exact_match(outputs, targets), torch.tensor(exact))


def test_spans_without_an_answer_and_padding() -> None:
    nothing = torch.tensor([[[NO_ANSWER, NO_ANSWER]]])
    something = torch.tensor([[[3, 4]]])
    gold_nothing, gold_something = nothing[:, :, None], something[:, :, None]
    assert span_f1(nothing, gold_nothing).item() == 1
    assert span_f1(nothing, gold_something).item() == 0
    assert span_f1(something, gold_nothing).item() == 0
    assert span_f1(something, torch.full((1, 1, 2, 2), SPAN_PADDING)).item() == 0
    assert span_f1(torch.tensor([[[4, 3]]]), gold_something).item() == 0  # ends before it starts


def test_bleu_is_sacrebleus() -> None:
    outputs = [ENGLISH, ENGLISH[:2], ["wrong words"], ["the cat sat on a mat .", "a dog barks at noon"]]
    targets = [ENGLISH, ENGLISH[2:], ["nothing alike here"], ENGLISH[:2]]
    expected = [corpus_bleu(o, [t]).score / 100 for o, t in zip(outputs, targets, strict=True)]
    torch.testing.assert_close(bleu(outputs, targets), torch.tensor(expected))
    assert expected[0] == pytest.approx(1)
    assert expected[2] == 0


def test_bleu_names_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"\[2\] and \[1\]"):
        bleu([["a", "b"]], [["a"]])
    with pytest.raises(ValueError, match=r"\[0\]"):
        bleu(["not a list"], ["not a list"])
    monkeypatch.setitem(__import__("sys").modules, "sacrebleu", None)
    with pytest.raises(RelossError, match="pip install sacrebleu"):
        bleu([["a"]], [["a"]])


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match="targets"):
        span_f1(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2))
    with pytest.raises(ValueError, match="outputs"):
        token_f1(torch.zeros(2, 2), torch.zeros(2, 2, 2))
