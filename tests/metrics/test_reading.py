import itertools

import pytest
import torch
from torch import Tensor

from reloss.learning.items import SOURCES, Items
from reloss.metrics import MASKED, decode_spans, get_metric, is_open, reading_exact_match, reading_f1, span_f1
from reloss.runtime.errors import UsageError


def logits(seed: int, *shape: int, t: int = 12) -> Tensor:
    """Logits of readers; of each example a part of the positions, but never 0, is masked, of some all."""
    generator = torch.Generator().manual_seed(seed)
    outputs = 3 * torch.randn(*shape, 2, t, generator=generator)
    begin = torch.randint(1, t, (*shape, 1), generator=generator)
    end = torch.randint(1, t + 1, (*shape, 1), generator=generator)
    position = torch.arange(t)
    passage = (position == 0) | ((position >= begin) & (position < end))
    return outputs.where(passage[..., None, :], MASKED)


def brute_force(outputs: Tensor, max_length: int) -> tuple[list[int], float]:
    """The best span by trying all, and its lead over position 0."""
    start, end = outputs.double()
    spans = [
        (i, j) for i, j in itertools.product(range(1, outputs.shape[-1]), repeat=2) if i <= j <= i + max_length - 1
    ]
    best = max(spans, key=lambda span: float(start[span[0]] + end[span[1]]))
    return list(best), float(start[best[0]] + end[best[1]] - start[0] - end[0])


@pytest.mark.parametrize("max_length", [1, 3, 11, 30])
@pytest.mark.parametrize("t", [2, 5, 12])
def test_decoding_equals_trying_every_span(max_length, t):
    outputs = logits(max_length + t, 60, t=t)
    spans, lead = decode_spans(outputs, max_length)
    for example, span, ahead in zip(outputs, spans.tolist(), lead.tolist(), strict=True):
        expected, expected_ahead = brute_force(example, max_length)
        if is_open(example[:, 1:]).any():
            assert span == expected
        assert ahead == pytest.approx(expected_ahead, abs=2e-3)


@pytest.mark.parametrize("max_length", [2, 30])
def test_metrics_equal_those_of_spans_found_by_brute_force(max_length):
    n, b = 20, 8
    outputs = logits(0, n, b)
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(1, 12, (n, b, 3, 2), generator=generator).sort(-1).values
    targets[torch.rand(n, b, 3, generator=generator) < 0.3] = -1
    targets[torch.rand(n, b, 3, generator=generator) < 0.3] = -2
    targets[:, :4, 0] = decode_spans(outputs[:, :4])[0]  # some are right
    spans = torch.full((n, b, 2), -1)
    for i, j in itertools.product(range(n), range(b)):
        span, lead = brute_force(outputs[i, j], max_length)
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
    none, some = torch.tensor([[[[-1, -1]]]]), torch.tensor([[[[2, 3]]]])
    outputs[..., 0] = 1.0
    assert reading_f1(outputs, none).item() == reading_exact_match(outputs, none).item() == 1
    assert reading_f1(outputs, some).item() == 0
    outputs[0, 0, 0, 2] = outputs[0, 0, 1, 3] = 1.5
    assert reading_f1(outputs, none).item() == 0
    assert reading_exact_match(outputs, some).item() == 1


def test_a_text_of_nothing_but_no_answer():
    outputs = torch.full((1, 2, 2, 5), MASKED)
    outputs[..., 0] = -3.0
    targets = torch.tensor([[[[-1, -1]], [[2, 3]]]])
    assert reading_f1(outputs, targets).item() == 0.5
    assert reading_f1(torch.full((1, 2, 2, 5), MASKED), targets).item() == 0.5
    assert reading_f1(torch.zeros(1, 2, 2, 1), targets).item() == 0.5


def test_constant_outputs_are_no_answer_and_ties_go_to_the_first():
    spans, lead = decode_spans(torch.zeros(3, 2, 7))
    assert spans.tolist() == [[1, 1]] * 3
    assert lead.tolist() == [0, 0, 0]


def test_half_precision_and_one_example():
    outputs = logits(3, 2, 4)
    assert decode_spans(outputs[0, 0])[0].shape == (2,)
    targets = decode_spans(outputs)[0][:, :, None]
    expected = reading_f1(outputs, targets)
    assert torch.equal(reading_f1(outputs.half().float(), targets), expected)
    assert reading_f1(outputs[:0], targets[:0]).shape == (0,)


def test_wrong_arguments_are_named():
    outputs = torch.zeros(2, 3, 2, 5)
    with pytest.raises(ValueError, match=r"expected outputs \[N, B, 2, T\] and targets \[N, B, G, 2\]"):
        reading_f1(outputs, torch.zeros(2, 3, 2))
    with pytest.raises(ValueError, match="max_length >= 1"):
        decode_spans(outputs, 0)
    assert get_metric("reading_f1") is reading_f1


@pytest.mark.parametrize("name", ["recorded", "shuffled", "blended", "noisy", "tempered"])
def test_sources_leave_masked_positions_masked(name):
    outputs = logits(5, 6, 8)
    targets = decode_spans(outputs)[0][:, :, None]
    generator = torch.Generator().manual_seed(0)
    made = SOURCES[name](Items(outputs, targets), generator)
    assert made.outputs.shape == outputs.shape
    real = is_open(made.outputs)
    assert torch.equal(real.sum((1, 2, 3)), is_open(outputs).sum((1, 2, 3))) or name == "blended"
    assert made.outputs[real].abs().max() < 100
    assert 0 < reading_f1(made.outputs, made.targets).mean() <= 1


@pytest.mark.parametrize("name", ["relabelled", "random"])
def test_sources_that_draw_classes_refuse_spans(name):
    outputs = logits(5, 6, 8)
    with pytest.raises(UsageError, match="mixture=shuffled"):
        SOURCES[name](Items(outputs, decode_spans(outputs)[0][:, :, None]), torch.Generator())
