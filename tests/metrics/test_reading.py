"""Span decoding equals an exhaustive search; item sources keep masked positions."""

import itertools

import pytest
import torch
from torch import Tensor

from reloss.learning.items import SOURCES, Items
from reloss.metrics import MASKED, decode_spans, get_metric, is_open, reading_exact_match, reading_f1, span_f1
from reloss.runtime.errors import UsageError


def logits(seed: int, *shape: int, t: int = 12) -> Tensor:
    """Return start and end logits. In each example some or all positions except 0 are masked."""
    generator = torch.Generator().manual_seed(seed)
    outputs = 3 * torch.randn(*shape, 2, t, generator=generator)
    start = torch.randint(1, t, (*shape, 1), generator=generator)
    end = torch.randint(1, t + 1, (*shape, 1), generator=generator)
    position = torch.arange(t)
    passage = (position == 0) | ((position >= start) & (position < end))
    return outputs.where(passage[..., None, :], MASKED)


def best_span(outputs: Tensor, max_length: int) -> tuple[list[int], float]:
    """Return the best span by exhaustive search, and its lead over position 0."""
    start, end = outputs.double()
    spans = [
        (i, j) for i, j in itertools.product(range(1, outputs.shape[-1]), repeat=2) if i <= j <= i + max_length - 1
    ]
    first, last = max(spans, key=lambda span: float(start[span[0]] + end[span[1]]))
    return [first, last], float(start[first] + end[last] - start[0] - end[0])


@pytest.mark.parametrize("max_length", [1, 3, 11, 30])
@pytest.mark.parametrize("t", [2, 5, 12])
def test_decoding_equals_an_exhaustive_search(max_length, t):
    outputs = logits(max_length + t, 60, t=t)
    spans, leads = decode_spans(outputs, max_length)
    for example, span, lead in zip(outputs, spans.tolist(), leads.tolist(), strict=True):
        expected_span, expected_lead = best_span(example, max_length)
        if is_open(example[:, 1:]).any():
            assert span == expected_span
        assert lead == pytest.approx(expected_lead, abs=2e-3)


@pytest.mark.parametrize("max_length", [2, 30])
def test_metrics_equal_the_metrics_of_an_exhaustive_search(max_length):
    n, b = 20, 8
    outputs = logits(0, n, b)
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(1, 12, (n, b, 3, 2), generator=generator).sort(-1).values
    targets[torch.rand(n, b, 3, generator=generator) < 0.3] = -1
    targets[torch.rand(n, b, 3, generator=generator) < 0.3] = -2
    targets[:, :4, 0] = decode_spans(outputs[:, :4])[0]  # some predictions are correct
    spans = torch.full((n, b, 2), -1)
    for i, j in itertools.product(range(n), range(b)):
        span, lead = best_span(outputs[i, j], max_length)
        if lead > 0:
            spans[i, j] = torch.tensor(span)
    f1 = reading_f1(outputs, targets, max_length=max_length)
    assert torch.equal(f1, span_f1(spans, targets))
    assert 0.2 < f1.mean() < 1
    exact = reading_exact_match(outputs, targets, max_length=max_length)
    assert (exact <= f1).all()
    assert exact.mean() > 0.1


def test_no_answer():
    outputs = torch.zeros(1, 1, 2, 6)
    no_answer, answer = torch.tensor([[[[-1, -1]]]]), torch.tensor([[[[2, 3]]]])
    outputs[..., 0] = 1.0
    assert reading_f1(outputs, no_answer).item() == reading_exact_match(outputs, no_answer).item() == 1
    assert reading_f1(outputs, answer).item() == 0
    outputs[0, 0, 0, 2] = outputs[0, 0, 1, 3] = 1.5
    assert reading_f1(outputs, no_answer).item() == 0
    assert reading_exact_match(outputs, answer).item() == 1


def test_a_text_without_open_positions_has_no_answer():
    outputs = torch.full((1, 2, 2, 5), MASKED)
    outputs[..., 0] = -3.0
    targets = torch.tensor([[[[-1, -1]], [[2, 3]]]])
    assert reading_f1(outputs, targets).item() == 0.5
    assert reading_f1(torch.full((1, 2, 2, 5), MASKED), targets).item() == 0.5
    assert reading_f1(torch.zeros(1, 2, 2, 1), targets).item() == 0.5


def test_constant_outputs_predict_no_answer_and_ties_go_to_the_first_span():
    spans, leads = decode_spans(torch.zeros(3, 2, 7))
    assert spans.tolist() == [[1, 1]] * 3
    assert leads.tolist() == [0, 0, 0]


def test_half_precision_and_one_example():
    outputs = logits(3, 2, 4)
    assert decode_spans(outputs[0, 0])[0].shape == (2,)
    targets = decode_spans(outputs)[0][:, :, None]
    expected = reading_f1(outputs, targets)
    assert torch.equal(reading_f1(outputs.half().float(), targets), expected)
    assert reading_f1(outputs[:0], targets[:0]).shape == (0,)


def test_invalid_arguments_raise():
    outputs = torch.zeros(2, 3, 2, 5)
    with pytest.raises(ValueError, match=r"expected outputs \[N, B, 2, T\] and targets \[N, B, G, 2\]"):
        reading_f1(outputs, torch.zeros(2, 3, 2))
    with pytest.raises(ValueError, match="max_length >= 1"):
        decode_spans(outputs, 0)
    assert get_metric("reading_f1") is reading_f1


@pytest.mark.parametrize("name", ["recorded", "shuffled", "blended", "noisy", "tempered"])
def test_sources_keep_masked_positions_masked(name):
    outputs = logits(5, 6, 8)
    targets = decode_spans(outputs)[0][:, :, None]
    generator = torch.Generator().manual_seed(0)
    items = SOURCES[name](Items(outputs, targets), generator)
    assert items.outputs.shape == outputs.shape
    unmasked = is_open(items.outputs)
    assert torch.equal(unmasked.sum((1, 2, 3)), is_open(outputs).sum((1, 2, 3))) or name == "blended"
    assert items.outputs[unmasked].abs().max() < 100
    assert 0 < reading_f1(items.outputs, items.targets).mean() <= 1


@pytest.mark.parametrize("name", ["relabelled", "random"])
def test_sources_that_draw_classes_reject_spans(name):
    outputs = logits(5, 6, 8)
    with pytest.raises(UsageError, match="mixture=shuffled"):
        SOURCES[name](Items(outputs, decode_spans(outputs)[0][:, :, None]), torch.Generator())
