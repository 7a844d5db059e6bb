from itertools import product

import pytest
import torch
from torch.testing import assert_close

from reloss.learning import PredictionBank, fit_surrogate
from reloss.metrics import token_bleu
from reloss.surrogates import build, load
from reloss.surrogates.expected.translation import (
    LOWEST_LOG_P,
    SMALLEST_PRECISION,
    ExpectedTranslation,
    expected_bleu,
    expected_counts,
    expected_matches,
    gold_matrix,
    log_expected_precisions,
    mean_log_likelihood,
    reference_counts,
)
from reloss.surrogates.translation import NO_TOKEN

SPECIAL = -2
REFERENCES = {
    "repeated": [0, 1, 0, 1, 0],
    "all equal": [1, 1, 1, 1, 1],
    "distinct": [0, 1, 2],
    "symbols": [SPECIAL, 0, 1, 0, SPECIAL],
    "one word": [2],
    "padded": [0, 1, 0, NO_TOKEN, NO_TOKEN],
}


def features(outputs, targets):
    return ExpectedTranslation("token_bleu").features(outputs, targets).squeeze(1)


def distributions(b, t, vocabulary=3, seed=0, sharpness=2.0):
    """Return log-probabilities [b, t, vocabulary]."""
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(b, t, vocabulary, generator=generator, dtype=torch.float64)).log_softmax(-1)


def recorded(log_probs, gold):
    """Return what a bank holds of log-probabilities [..., T, V] and gold tokens [..., T]."""
    gold = torch.as_tensor(gold)
    return gold_matrix(log_probs, gold.clamp(min=0)), torch.stack([gold, log_probs.argmax(-1)], -1)


def count(sentence, gram):
    return sum(sentence[t : t + len(gram)] == gram for t in range(len(sentence) - len(gram) + 1))


def enumerated_counts(log_probs, gram):
    """Return the expected count of an n-gram, over all output sentences [T] of independent tokens: [T, V] -> scalar."""
    places, vocabulary = log_probs.shape
    total = 0.0
    for sentence in product(range(vocabulary), repeat=places):
        probability = log_probs[range(places), sentence].sum().exp()
        total += probability * count(sentence, gram)
    return total


def grams_of(gold, n):
    """Return the n-grams of words at each place of the reference; None where there is none."""
    grams = [tuple(gold[j : j + n]) for j in range(len(gold) - n + 1)]
    return [gram if min(gram) >= 0 else None for gram in grams]


@pytest.mark.parametrize("name", REFERENCES)
def test_counts_equal_an_enumeration_of_all_outputs(name):
    gold = REFERENCES[name]
    length = sum(token != NO_TOKEN for token in gold)
    log_probs = distributions(1, len(gold))
    outputs, targets = recorded(log_probs, [gold])
    matches, numbers = expected_matches(outputs, targets)
    probs = outputs.exp() * (targets[..., :1] != NO_TOKEN) * (targets[..., 0] >= 0)[:, None]
    expected, reference = expected_counts(probs), reference_counts(targets[..., 0])
    assert len(expected) == len(reference) == min(4, len(gold))
    for n, (of_output, of_reference) in enumerate(zip(expected, reference, strict=True), 1):
        grams = grams_of(gold, n)
        clipped = {}
        for place, gram in enumerate(grams):
            enumerated = enumerated_counts(log_probs[0, :length], gram) if gram else torch.tensor(0.0)
            assert of_output[0, place] == pytest.approx(float(enumerated))
            assert of_reference[0, place] == (count(tuple(gold), gram) if gram else 0)
            if gram:
                clipped[gram] = min(float(enumerated), count(tuple(gold), gram))
        assert matches[0, n - 1] == pytest.approx(sum(clipped.values()))
        assert numbers[0, n - 1] == sum(gram is not None for gram in grams)
    assert (matches[0, len(gold) :] == 0).all()
    assert (numbers[0, len(gold) :] == 0).all()


def test_precisions_are_pooled_over_the_sentences_of_an_item():
    gold = torch.tensor([REFERENCES["repeated"], REFERENCES["padded"], REFERENCES["symbols"]])
    outputs, targets = recorded(distributions(3, 5), gold)
    matches, numbers = expected_matches(outputs[None], targets[None])
    one_by_one = [expected_matches(outputs[i], targets[i]) for i in range(3)]
    expected = sum(pair[0] for pair in one_by_one) / sum(pair[1] for pair in one_by_one)
    assert_close(log_expected_precisions(matches, numbers)[0, :4], expected.log())
    real = gold != NO_TOKEN
    assert_close(mean_log_likelihood(outputs[None], targets[None])[0], outputs.diagonal(dim1=1, dim2=2)[real].mean())


def test_certain_outputs_have_the_metrics_value():
    generator = torch.Generator().manual_seed(0)
    gold = torch.randint(3, (20, 6, 9), generator=generator)
    guess = gold.where(
        torch.rand(20, 6, 9, generator=generator) < 0.7, torch.randint(3, gold.shape, generator=generator)
    )
    padded = torch.arange(9) >= torch.randint(1, 10, (20, 6, 1), generator=generator)
    gold, guess = gold.masked_fill(padded, NO_TOKEN), guess.masked_fill(padded, NO_TOKEN)
    log_probs = torch.nn.functional.one_hot(guess.clamp(min=0), 3).double().log()
    outputs, targets = recorded(log_probs, gold)
    metric = token_bleu(outputs, torch.stack([gold, guess], -1))
    assert metric.min() > 0.1
    assert_close(expected_bleu(features(outputs, targets)), metric.double(), rtol=1e-5, atol=1e-5)


def test_features_rise_with_the_probability_of_every_gold_token():
    gold = torch.tensor([[REFERENCES["repeated"], REFERENCES["padded"], REFERENCES["symbols"]]])
    outputs, targets = recorded(distributions(3, 5, sharpness=0.5)[None], gold)
    outputs.requires_grad_()
    for feature in features(outputs, targets)[0]:
        (gradient,) = torch.autograd.grad(feature, outputs, retain_graph=True)
        assert gradient.min() >= 0
        assert gradient.max() > 0
        assert gradient[0, 1, 3:].abs().max() == gradient[0, 1, :, 3:].abs().max() == 0  # padding


@pytest.mark.parametrize("value", [0.0, -1e4, -65504.0, -torch.inf])
def test_extremes_are_finite(value):
    outputs = torch.full((2, 3, 5, 5), value, requires_grad=True)
    targets = torch.tensor([*REFERENCES["repeated"]]).expand(2, 3, 5)[..., None].repeat(1, 1, 1, 2)
    targets[1] = NO_TOKEN  # an item without tokens
    computed = features(outputs, targets)
    computed.sum().backward()
    assert torch.isfinite(computed).all()
    assert torch.isfinite(outputs.grad).all()
    assert computed.max() <= 0
    assert_close(computed[1], torch.tensor([*[SMALLEST_PRECISION] * 4, 1.0]).log())
    assert outputs.grad[1].abs().max() == 0
    if value < 0:
        assert_close(computed[0, 4], torch.tensor(max(value, LOWEST_LOG_P)))


def test_the_expected_metric_is_a_loss_without_parameters():
    log_probs = distributions(3, 5).float().requires_grad_()
    gold = torch.tensor([REFERENCES[name] for name in ("repeated", "padded", "all equal")])
    outputs, targets = recorded(log_probs, gold)
    loss = build("translation", (5, 5), features="expected", metric="token_bleu")
    assert not list(loss.parameters())
    value = loss(log_probs, gold)
    assert_close(value, 1 - expected_bleu(features(outputs[None], targets[None]))[0])
    assert_close(loss(outputs, targets), value)
    mask = gold != NO_TOKEN
    assert_close(loss(log_probs, gold.where(mask, 1), mask), value)
    (gradient,) = torch.autograd.grad(value, log_probs)
    assert gradient[~mask].abs().max() == 0
    assert gradient.min() < 0


def test_half_precision_is_computed_in_float32():
    gold = torch.tensor([REFERENCES["repeated"], REFERENCES["padded"]])
    outputs, targets = recorded(distributions(2, 5), gold)
    loss = ExpectedTranslation().freeze()
    for dtype in (torch.float16, torch.bfloat16):
        rounded = outputs.to(dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = loss(rounded, targets)
        assert value.dtype == torch.float32
        assert torch.equal(value, loss(rounded.float(), targets))


def test_outputs_of_another_form_are_refused():
    targets = torch.zeros(2, 3, 5, 2, dtype=torch.long)
    with pytest.raises(ValueError, match=r"expected outputs \[N, B, T, T\] .* choose surrogate.features=likelihood"):
        ExpectedTranslation().check(torch.zeros(2, 3, 5), targets)
    with pytest.raises(ValueError, match=r"expected outputs \[N, B, T, T\] .* not \[2, 3, 5, 6\]"):
        ExpectedTranslation().check(torch.zeros(2, 3, 5, 6), targets[..., :1].expand(2, 3, 5, 2))
    for shape in ((5,), (5, 6)):
        with pytest.raises(ValueError, match="an autoregressive model has no such outputs"):
            build("translation", shape, features="expected")


def improving_translations(path, steps=80, b=8, t=8, vocabulary=12):
    """Record outputs that get better with every step; half of them have their words one place too far to the right."""
    generator = torch.Generator().manual_seed(0)
    bank = PredictionBank.create(path, item_size=b)
    for step in range(steps):
        gold = torch.randint(vocabulary, (b, t), generator=generator)
        skill = 5 * torch.rand(1, generator=generator) * step / steps
        right = torch.nn.functional.one_hot(gold.roll(step % 2, 1), vocabulary)
        log_probs = (skill * right + torch.randn(b, t, vocabulary, generator=generator)).log_softmax(-1)
        bank.append(*recorded(log_probs, gold), step)
    bank.finish()
    return bank


@pytest.mark.parametrize("metric", [None, "token_bleu"])
def test_ranks_as_bleu_where_words_are_out_of_place(tmp_path, metric):
    bank = improving_translations(tmp_path / "bank")
    surrogate = build("translation", bank.output_shape(), features="expected", metric=metric)
    settings = {"objective": "none"} if metric else {"steps": 60, "validate_every": 20}
    fit = fit_surrogate(surrogate, bank, token_bleu, mixture="checkpoints", items=32, **settings)
    likelihood = build("translation", bank.output_shape(), width=16)
    blind = fit_surrogate(likelihood, bank, token_bleu, mixture="checkpoints", items=32, steps=60, validate_every=20)
    assert fit.spearman > 0.9
    assert fit.spearman > blind.spearman + 0.1
    fit.surrogate.save_pretrained(tmp_path / "saved")
    items = bank.items(torch.arange(3))
    assert torch.equal(load(tmp_path / "saved").per_item(*items), fit.surrogate.per_item(*items))
