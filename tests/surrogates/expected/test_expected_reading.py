import math

import pytest
import torch
from torch.testing import assert_close

from reloss.metrics import MASKED, reading_exact_match, reading_f1, span_exact_match, span_f1
from reloss.surrogates.expected import reading
from reloss.surrogates.expected.reading import LOWEST, ExpectedReading, reading_features, span_scores

NO_ANSWER, PADDING = (-1, -1), (-2, -2)
GOLDS = [
    [(2, 4), PADDING, PADDING],
    [(2, 2), (1, 3), (2, 2)],  # a gold answer counts once, however often it is given
    [NO_ANSWER, PADDING, PADDING],
    [(4, 5), NO_ANSWER, PADDING],
    [(1, 5), PADDING, (5, 5)],
]


def logits(length=8, open_positions=6, scale=2.0, seed=0):
    """Return logits [1, 5, 2, T] in float64; the last positions are masked."""
    outputs = scale * torch.randn(1, 5, 2, length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    outputs[..., open_positions:] = MASKED
    return outputs


def all_spans(length, limit):
    """Return every span that decoding can choose, as positions, (0, 0) for no answer."""
    return [(0, 0)] + [(s, e) for s in range(1, length) for e in range(s, min(s + limit, length))]


def expected_by_hand(outputs, gold, limit, metric):
    """Return the expectation of a metric of one span, over all spans of one example."""
    spans = all_spans(outputs.shape[-1], limit)
    p = torch.stack([outputs[0, s] + outputs[1, e] for s, e in spans]).softmax(0)
    scores = [metric(torch.tensor([[NO_ANSWER if span == (0, 0) else span]]), gold[None, None]) for span in spans]
    return (p * torch.cat(scores)).sum().item()


@pytest.mark.parametrize("limit", [1, 3, 30])
def test_expectations_equal_sums_over_all_spans(limit):
    outputs, targets = logits(), torch.tensor([GOLDS])
    features = reading_features(outputs, targets, limit)
    assert features.shape == (1, 5, 4)
    for number, gold in enumerate(targets[0]):
        for column, metric in enumerate((span_exact_match, span_f1)):
            expected = expected_by_hand(outputs[0, number], gold, limit, metric)
            log = math.log(expected) if expected > 1e-12 else LOWEST
            assert features[0, number, column].item() == pytest.approx(log, rel=1e-5), (number, column)


def test_start_and_end_are_the_probabilities_of_any_gold_one():
    outputs, targets = logits(), torch.tensor([GOLDS])
    features = reading_features(outputs, targets).exp()
    for column, row in ((2, 0), (3, 1)):
        p = outputs[0, :, row].softmax(-1)
        positions = [{0 if gold == NO_ANSWER else gold[row] for gold in golds if gold != PADDING} for golds in GOLDS]
        expected = torch.stack([p[number, sorted(chosen)].sum() for number, chosen in enumerate(positions)])
        assert_close(features[0, :, column], expected)


def test_one_gold_answer_gives_the_ordinary_loss():
    outputs, targets = logits().float(), torch.tensor([[[(2, 4)], [(1, 1)], [NO_ANSWER], [(5, 5)], [(3, 4)]]])
    features = reading_features(outputs, targets)
    assert_close(-features[..., 2:].mean((1, 2)), ExpectedReading.ordinary_loss(outputs, targets))


def test_span_scores_equal_the_metric():
    targets = torch.tensor(GOLDS)
    scores = span_scores(targets, 7, 4)
    for s, e in all_spans(7, 4):
        span = torch.tensor([[NO_ANSWER if s == 0 else (s, e)]] * 5)
        for metric, score in ((span_f1, scores), (span_exact_match, (scores == 1).float())):
            assert_close(
                score[:, s, e - s],
                torch.stack([metric(p[None], t[None, None])[0] for p, t in zip(span, targets, strict=True)]),
            )


@pytest.mark.parametrize(
    ("metric", "function"), [("reading_f1", reading_f1), ("reading_exact_match", reading_exact_match)]
)
def test_the_expected_metric_of_sure_readers_is_the_metric(metric, function):
    outputs, targets = 200 * logits(), torch.tensor([GOLDS])
    outputs = outputs.where(outputs > 100 * MASKED, MASKED).float()
    loss = ExpectedReading(metric=metric, scale=2.0)
    assert_close(loss.per_item(outputs, targets), 2 * (1 - function(outputs, targets)), atol=1e-4, rtol=0)


def test_chunks_change_nothing(monkeypatch):
    outputs, targets = logits().requires_grad_(), torch.tensor([GOLDS])
    whole = reading_features(outputs, targets)
    monkeypatch.setattr(reading, "CHUNK", 100)
    assert_close(reading_features(outputs, targets), whole, rtol=0, atol=0)


def test_gradients_equal_finite_differences():
    outputs, targets = (
        logits(5, 5).requires_grad_(),
        torch.tensor([[[(2, 3)], [(1, 1)], [NO_ANSWER], [(4, 4)], [(1, 4)]]]),
    )
    assert torch.autograd.gradcheck(lambda values: reading_features(values, targets, 3), (outputs,))


def test_a_hopeless_example_still_has_a_gradient():
    """The gold span's probability underflows in float32, but its logarithm does not."""
    outputs = torch.zeros(1, 1, 2, 6)
    outputs[..., 1] = 300.0
    outputs.requires_grad_()
    features = reading_features(outputs, torch.tensor([[[(3, 4)]]]))
    assert features[..., :2].max() < -500
    features[..., 1].sum().backward()
    assert min(outputs.grad[0, 0, 0, 3], outputs.grad[0, 0, 1, 4]) > 0.9
    assert outputs.grad[0, 0, :, 1].max() < -0.9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("metric", [None, "reading_f1", "reading_exact_match"])
def test_extreme_inputs_give_finite_losses(dtype, metric):
    surrogate = ExpectedReading(metric=metric)
    outputs, targets = logits().to(dtype), torch.tensor([GOLDS])
    cases = (
        (torch.full_like(outputs, MASKED), targets),
        (torch.full_like(outputs, -math.inf), targets),
        (outputs.where(outputs > MASKED / 10, -math.inf), targets),
        (torch.zeros_like(outputs), targets),
        (1e4 * outputs.clamp(-1, 1), targets),
        (outputs, torch.full_like(targets, -2)),
        (outputs, torch.full_like(targets, 7)),  # gold outside of the passage
        (outputs[:, :1, :, :1], torch.full_like(targets[:, :1], -1)),
    )
    for extreme, gold in cases:
        extreme = extreme.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = surrogate.per_item(extreme, gold)
        losses.sum().backward()
        assert losses.dtype == torch.float32
        assert torch.isfinite(losses).all()
        assert torch.isfinite(extreme.grad).all()


def test_nan_is_not_hidden():
    outputs = logits()
    outputs[0, 0, 0, 2] = math.nan
    assert ExpectedReading(metric="reading_f1").per_item(outputs, torch.tensor([GOLDS])).isnan().all()


def test_unreachable_gold_has_no_gradient():
    outputs = logits().requires_grad_()
    features = reading_features(outputs, torch.tensor([[[(6, 7)], [PADDING], [(7, 7)], [(6, 6)], [PADDING]]]))
    assert (features == LOWEST).all()
    features.sum().backward()
    assert outputs.grad.abs().max() == 0


def test_errors_name_the_problem():
    with pytest.raises(ValueError, match="no formula for metric accuracy"):
        ExpectedReading(metric="accuracy")
    with pytest.raises(ValueError, match="limit must be a whole number"):
        ExpectedReading(limit=0)
    with pytest.raises(ValueError, match="gold position is 9"):
        ExpectedReading(metric="reading_f1").per_item(logits(), torch.full((1, 5, 1, 2), 9))
    with pytest.raises(ValueError, match=r"expected start and end logits \[2, T\]"):
        ExpectedReading.expected_arguments([3, 8])
