"""Text metrics equal SQuAD's rules and sacrebleu, and define every edge case."""

import sys
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reloss.metrics import (
    NO_ANSWER,
    SPAN_PADDING,
    bleu,
    span_exact_match,
    span_f1,
    token_bleu,
    token_exact_match,
    token_f1,
)
from reloss.runtime.errors import RelossError

PAD = -1


def bag_f1(output: list[int], target: list[int]) -> float:
    """Return the F1 of SQuAD 2.0 on lists of tokens."""
    if not output or not target:
        return float(output == target)
    common = sum((Counter(output) & Counter(target)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(output), common / len(target)
    return 2 * precision * recall / (precision + recall)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


class TestSpans:
    def spans(self, seed: int, n: int, b: int, g: int = 3, length: int = 6) -> tuple[Tensor, Tensor]:
        """Return spans in a text of `length`. Some are no answer, outputs may be inverted, gold rows may be padding."""
        generator = torch.Generator().manual_seed(seed)
        outputs = torch.randint(length, (n, b, 2), generator=generator)
        targets = torch.randint(length, (n, b, g, 2), generator=generator).sort(-1).values
        outputs[torch.rand(n, b, generator=generator) < 0.2, 0] = NO_ANSWER
        targets[torch.rand(n, b, g, generator=generator) < 0.2, 0] = NO_ANSWER
        targets[torch.rand(n, b, g, generator=generator) < 0.3] = SPAN_PADDING
        return outputs, targets

    @staticmethod
    def score(output: list[int], gold: list[list[int]]) -> tuple[float, float]:
        """Return F1 and exact match of one span, computed on lists of positions."""

        def positions(span: list[int]) -> list[int]:
            return [] if span[0] == NO_ANSWER else list(range(span[0], span[1] + 1))

        f1, exact = [0.0], [0.0]
        for span in (row for row in gold if row[0] != SPAN_PADDING):
            inverted = output[0] != NO_ANSWER and not positions(output)
            f1.append(0.0 if inverted else bag_f1(positions(output), positions(span)))
            exact.append(float(not inverted and positions(output) == positions(span)))
        return max(f1), max(exact)

    @pytest.mark.parametrize("b", [1, 8])
    @pytest.mark.parametrize("g", [1, 3])
    def test_equal_the_rule_of_squad_on_positions(self, b, g):
        outputs, targets = self.spans(b + g, 200, b, g)
        expected = [
            [self.score(*pair) for pair in zip(*item, strict=True)]
            for item in zip(outputs.tolist(), targets.tolist(), strict=True)
        ]
        f1s = [mean([f1 for f1, _ in item]) for item in expected]
        exacts = [mean([exact for _, exact in item]) for item in expected]
        assert span_f1(outputs, targets).tolist() == pytest.approx(f1s, abs=1e-6)
        assert span_exact_match(outputs, targets).tolist() == pytest.approx(exacts, abs=1e-6)
        assert mean(f1s) > mean(exacts) > 0.02

    @pytest.mark.parametrize(
        ("output", "gold", "f1", "exact"),
        [
            ([2, 4], [[2, 4]], 1, 1),
            ([2, 4], [[3, 6]], 2 * 2 / (3 + 4), 0),
            ([2, 4], [[5, 6]], 0, 0),
            ([2, 4], [[9, 9], [2, 3], [-2, -2]], 2 * 2 / (3 + 2), 0),
            ([4, 2], [[2, 4]], 0, 0),
            ([-1, 7], [[-1, -1], [-2, -2]], 1, 1),
            ([-1, -1], [[0, 3]], 0, 0),
            ([0, 3], [[-1, -1]], 0, 0),
            ([0, 3], [[-1, -1], [0, 3]], 1, 1),
            ([0, 0], [[-1, 5]], 0, 0),
            ([-1, -1], [[-2, -2]], 0, 0),
            ([0, 3], [[-2, -2], [-2, 3]], 0, 0),
        ],
    )
    def test_by_hand(self, output, gold, f1, exact):
        pair = torch.tensor([[output]]), torch.tensor([[gold]])
        assert span_f1(*pair).item() == pytest.approx(f1)
        assert span_exact_match(*pair).item() == exact

    @given(st.integers(0, 10_000), st.integers(1, 10))
    @settings(max_examples=25, deadline=None)
    def test_values_are_in_range_and_ignore_the_order_of_examples_and_gold_spans(self, seed, b):
        outputs, targets = self.spans(seed, 3, b)
        order = torch.randperm(b, generator=torch.Generator().manual_seed(seed))
        f1, exact = span_f1(outputs, targets), span_exact_match(outputs, targets)
        assert f1.dtype == exact.dtype == torch.float32
        assert exact.min() >= 0
        assert f1.max() <= 1
        assert (exact <= f1).all()
        padded = torch.cat([targets.flip(2), torch.full((3, b, 2, 2), SPAN_PADDING)], 2)
        for metric, values in ((span_f1, f1), (span_exact_match, exact)):
            assert metric(outputs[:, order], padded[:, order]).tolist() == pytest.approx(values.tolist(), abs=1e-6)

    @pytest.mark.parametrize("metric", [span_f1, span_exact_match])
    @pytest.mark.parametrize(
        ("outputs", "targets"),
        [((2, 4, 2), (2, 4, 2)), ((2, 4, 3), (2, 4, 1, 2)), ((2, 4, 2), (2, 5, 1, 2)), ((2, 4, 2), (2, 4, 0, 2))],
    )
    def test_shapes_must_agree(self, metric, outputs, targets):
        with pytest.raises(ValueError, match=r"expected outputs \[N, B, 2\] and targets \[N, B, G, 2\].*not \["):
            metric(torch.zeros(outputs), torch.zeros(targets))

    def test_no_items_give_no_values(self):
        assert span_f1(torch.zeros(0, 4, 2), torch.zeros(0, 4, 1, 2)).shape == (0,)


class TestTokens:
    def sequences(self, seed: int, n: int, b: int, s: int = 6, t: int = 8, words: int = 4) -> tuple[Tensor, Tensor]:
        """Return sequences of few words, which repeat, with padding anywhere. Some are empty, some are equal."""
        generator = torch.Generator().manual_seed(seed)

        def random_tokens(length: int) -> Tensor:
            tokens = torch.randint(words, (n, b, length), generator=generator)
            share = torch.rand(n, b, 1, generator=generator) * 1.5 - 0.25
            return tokens.where(torch.rand(n, b, length, generator=generator) < share, PAD)

        outputs, targets = random_tokens(s), random_tokens(t)
        equal = torch.rand(n, b, generator=generator) < 0.2
        shorter = min(s, t)
        outputs[..., :-shorter][equal] = PAD
        targets[equal] = PAD
        targets[..., -shorter:][equal] = outputs[..., -shorter:][equal]
        return outputs, targets

    @pytest.mark.parametrize("shape", [(200, 1), (50, 16), (50, 8, 12, 3), (50, 8, 1, 1, 2)])
    def test_equal_the_rule_of_squad_on_lists(self, shape):
        outputs, targets = self.sequences(0, *shape)
        f1s, exacts = [], []
        for item in zip(outputs.tolist(), targets.tolist(), strict=True):
            pairs = [[[i for i in tokens if i != PAD] for tokens in pair] for pair in zip(*item, strict=True)]
            f1s.append(mean([bag_f1(*pair) for pair in pairs]))
            exacts.append(mean([float(output == target) for output, target in pairs]))
        assert token_f1(outputs, targets).tolist() == pytest.approx(f1s, abs=1e-6)
        assert token_exact_match(outputs, targets).tolist() == pytest.approx(exacts, abs=1e-6)
        assert 1 > mean(f1s) >= mean(exacts) > 0.05

    @pytest.mark.parametrize(
        ("output", "target", "f1", "exact"),
        [
            ([5, 6, 7], [5, 6, 7], 1, 1),
            ([7, 5, 6], [5, 6, 7], 1, 0),
            ([5, 5, 5], [5, 5, 6], 2 / 3, 0),
            ([5, 5, -1], [5, -1, -1], 2 * 1 / (2 + 1), 0),
            ([-1, 5, -1], [5, -1, -1], 1, 1),
            ([5], [5, -1, -1], 1, 1),
            ([-1, -1], [-1], 1, 1),
            ([-1, -1], [5], 0, 0),
            ([5], [-1], 0, 0),
        ],
    )
    def test_by_hand(self, output, target, f1, exact):
        pair = torch.tensor([[output]]), torch.tensor([[target]])
        assert token_f1(*pair).item() == pytest.approx(f1)
        assert token_exact_match(*pair).item() == exact

    def test_any_padding_and_integer_type(self):
        outputs, targets = self.sequences(1, 20, 5)
        for metric in (token_f1, token_exact_match):
            values = metric((outputs + 1).int(), (targets + 1).to(torch.int16), pad=0)
            assert torch.equal(values, metric(outputs, targets))

    @given(st.integers(0, 10_000), st.integers(1, 10))
    @settings(max_examples=25, deadline=None)
    def test_values_are_in_range_and_ignore_the_order_of_examples_and_padding(self, seed, b):
        outputs, targets = self.sequences(seed, 3, b)
        order = torch.randperm(b, generator=torch.Generator().manual_seed(seed))
        f1, exact = token_f1(outputs, targets), token_exact_match(outputs, targets)
        assert f1.dtype == exact.dtype == torch.float32
        assert exact.min() >= 0
        assert f1.max() <= 1
        assert (exact <= f1 + 1e-6).all()
        assert token_f1(targets, outputs).tolist() == pytest.approx(f1.tolist(), abs=1e-6)
        padded = torch.cat([torch.full((3, b, 2), PAD), targets], 2)
        for metric, values in ((token_f1, f1), (token_exact_match, exact)):
            assert metric(outputs[:, order], padded[:, order]).tolist() == pytest.approx(values.tolist(), abs=1e-6)

    @pytest.mark.parametrize("metric", [token_f1, token_exact_match])
    @pytest.mark.parametrize(
        ("outputs", "targets"),
        [((2, 4), (2, 4)), ((2, 4, 5), (2, 3, 5)), ((2, 0, 5), (2, 0, 5)), ((2, 4, 0), (2, 4, 3))],
    )
    def test_shapes_must_agree(self, metric, outputs, targets):
        with pytest.raises(ValueError, match=r"expected outputs \[N, B, S\] and targets \[N, B, T\].*not \["):
            metric(torch.zeros(outputs), torch.zeros(targets))


WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree", ",", "."]
sentences = st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join)
items = st.lists(st.tuples(sentences, sentences), min_size=1, max_size=6)


class TestBleu:
    @pytest.fixture(autouse=True)
    def _sacrebleu(self):
        self.sacrebleu = pytest.importorskip("sacrebleu", reason="sacrebleu is not installed")

    outputs = (
        ["The cat sat on the mat.", "A dog ran under the tall tree."],
        ["A man rides a horse on the beach.", "Two girls are playing football."],
        ["nothing alike", "whatever"],
    )
    targets = (
        ["The cat sat on the mat.", "A dog ran under the old tree."],
        ["A man is riding a horse at the beach.", "Two girls play football in the park."],
        ["The cat sat on the mat.", "A dog ran."],
    )

    @pytest.mark.parametrize("tokenize", ["13a", "none", "char"])
    @pytest.mark.parametrize("effective_order", [False, True])
    def test_equals_sacrebleu_on_each_item(self, tokenize, effective_order):
        metric = self.sacrebleu.BLEU(tokenize=tokenize, effective_order=effective_order)
        expected = [
            metric.corpus_score(output, [target]).score / 100
            for output, target in zip(self.outputs, self.targets, strict=True)
        ]
        values = bleu(self.outputs, self.targets, tokenize=tokenize, effective_order=effective_order)
        assert values.dtype == torch.float32
        assert values.tolist() == pytest.approx(expected, abs=1e-6)

    def test_by_hand(self):
        values = bleu(self.outputs, self.targets)
        # 15 words; the precisions of 1- to 4-grams are 14/15, 11/13, 8/11 and 6/9; no brevity penalty
        expected = (14 / 15 * 11 / 13 * 8 / 11 * 6 / 9) ** 0.25
        assert values[0].item() == pytest.approx(expected, abs=1e-6)
        assert values[2].item() == 0
        assert bleu(self.targets, self.targets).tolist() == [1, 1, 1]

    def test_short_items_and_the_effective_order(self):
        short = [["two words"]]
        assert bleu(short, short).item() == 0  # no 4-gram at all
        assert bleu(short, short, effective_order=True).item() == 1
        assert bleu([[""]], [["two words"]]).item() == 0

    @given(st.lists(items, min_size=1, max_size=3), st.randoms(use_true_random=False))
    @settings(max_examples=25, deadline=None)
    def test_values_are_in_range_and_ignore_the_order_of_examples(self, pairs, random):
        shuffled = [random.sample(item, len(item)) for item in pairs]
        values, shuffled_values = (
            bleu([[o for o, _ in item] for item in group], [[t for _, t in item] for item in group])
            for group in (pairs, shuffled)
        )
        assert values.shape == (len(pairs),)
        assert 0 <= values.min() <= values.max() <= 1
        assert values.tolist() == pytest.approx(shuffled_values.tolist(), abs=1e-6)

    def test_does_not_warn_about_tokenized_text(self, caplog):
        sentences = [["A dog ran ."] * 120]
        assert bleu(sentences, sentences).item() == pytest.approx(1)
        assert caplog.text == ""

    @pytest.mark.parametrize(
        ("outputs", "targets"),
        [([["a"]], [["a"], ["b"]]), ([["a", "b"]], [["a"]]), ([[]], [[]]), (["ab"], ["cd"]), ("ab", "cd")],
    )
    def test_numbers_of_strings_must_agree(self, outputs, targets):
        with pytest.raises(ValueError, match="expected outputs and targets of N items of B >= 1 strings"):
            bleu(outputs, targets)

    def test_no_items_give_no_values(self):
        assert bleu([], []).shape == (0,)


def test_bleu_without_sacrebleu_names_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(RelossError, match=r"bleu needs sacrebleu, which is not installed: pip install sacrebleu"):
        bleu([["a"]], [["a"]])


TOKENS = st.integers(-2, 6)
SENTENCES = st.integers(1, 12).flatmap(
    lambda length: st.lists(
        st.lists(st.tuples(TOKENS, TOKENS), min_size=length, max_size=length), min_size=1, max_size=4
    )
)


def words(tokens):
    return " ".join(f"w{token}" for token in tokens if token >= 0)


@settings(max_examples=300, deadline=None)
@given(SENTENCES)
def test_token_bleu_equals_sacrebleu_on_the_ids_as_words(sentences):
    targets = torch.tensor(sentences)[None]
    expected = bleu(
        [[words(candidate) for _, candidate in (zip(*sentence, strict=True) for sentence in sentences)]],
        [[words(reference) for reference, _ in (zip(*sentence, strict=True) for sentence in sentences)]],
        tokenize="none",
    )
    assert torch.allclose(token_bleu(torch.zeros(targets.shape[:-1]), targets), expected, atol=1e-6)


def test_token_bleu_of_many_items_at_once():
    generator = torch.Generator().manual_seed(0)
    gold = torch.randint(0, 30_000, (20, 8, 15), generator=generator)
    correct = torch.rand(gold.shape, generator=generator) < torch.linspace(0, 1, 20)[:, None, None]
    targets = torch.stack([gold, gold.where(correct, torch.randint(0, 30_000, gold.shape, generator=generator))], -1)
    targets[:, 3, 9:] = -1
    targets[:, 5] = -1
    values = token_bleu(torch.zeros(gold.shape), targets)
    text = [[[words(row) for row in item[..., side].tolist()] for item in targets] for side in (0, 1)]
    assert torch.allclose(values, bleu(text[1], text[0], tokenize="none"), atol=1e-6)
    assert values[-1] == 1
    assert token_bleu(torch.zeros(2, 1, 3), torch.full((2, 1, 3, 2), -1)).tolist() == [0, 0]
    with pytest.raises(ValueError, match=r"targets \[N, B, T, 2\]"):
        token_bleu(torch.zeros(2, 1, 3), torch.zeros(2, 1, 3))
