import math

import pytest
import torch
from torch.testing import assert_close

from reloss import ReadingReLoss
from reloss.learning import LearnOptions, PredictionBank, fit_surrogate
from reloss.metrics import MASKED, reading_f1
from reloss.runtime.errors import RelossError
from reloss.surrogates import build
from reloss.surrogates.reading import LOWEST, coverage


def predictions(n=3, b=5, t=9, g=2, seed=0):
    """Return logits with the last two positions masked, and gold spans before them; some are no answer or padding."""
    generator = torch.Generator().manual_seed(seed)
    outputs = 2 * torch.randn(n, b, 2, t, generator=generator)
    outputs[..., t - 2 :] = MASKED
    targets = torch.randint(1, t - 2, (n, b, g, 2), generator=generator).sort(-1).values
    targets[:, 0, 0] = -1
    targets[:, 1:3, 1:] = -2
    return outputs, targets


def surrogate_of_seed(seed=0, **options):
    torch.manual_seed(seed)
    return ReadingReLoss(**options)


def by_hand(surrogate, outputs, targets):
    """Return the loss of one example, computed with loops over positions and gold spans."""
    p, losses = outputs.softmax(-1), []
    covered = []
    for t in range(outputs.shape[-1]):
        if t == 0:
            covered.append(p[0, 0] * p[1, 0])
        else:
            covered.append(sum(p[0, 1 : t + 1]) * sum(p[1, t:]))
    for first, last in targets.tolist():
        if first == -2:
            continue
        first, last = (0, 0) if first == -1 else (first, last)
        inside = sum(covered[first : last + 1])
        points = [p[0, first], p[1, last]]
        if surrogate.input == "log_probability":
            points = [value.log() for value in points]
        overlap = [inside / (last - first + 1), -torch.log1p(sum(covered) - inside)]
        parts = [[value] for value in points] if surrogate.structure == "points" else [[*points, *overlap]]
        losses.append(surrogate.network(torch.tensor(parts)).mean())
    return min(losses)


@pytest.mark.parametrize("structure", ["points", "span"])
@pytest.mark.parametrize("input", ["probability", "log_probability"])
@pytest.mark.parametrize("output", ["absolute", "identity", "monotone"])
def test_equals_loops_over_positions(structure, input, output):
    outputs, targets = predictions()
    surrogate = surrogate_of_seed(structure=structure, input=input, output=output, scale=3.0)
    expected = [
        3 * sum(by_hand(surrogate, o, t).item() for o, t in zip(*pair, strict=True)) / 5
        for pair in zip(outputs, targets, strict=True)
    ]
    assert surrogate.per_item(outputs, targets).tolist() == pytest.approx(expected, rel=1e-4)
    assert surrogate(outputs[1], targets[1]).item() == pytest.approx(expected[1], rel=1e-4)


def test_coverage_is_a_sum_over_all_spans():
    probabilities = torch.randn(2, 6, generator=torch.Generator().manual_seed(0)).softmax(-1)
    expected = torch.zeros(6)
    for i in range(6):
        for j in range(6):
            if (i == 0) == (j == 0) and i <= j:
                expected[i : j + 1] += probabilities[0, i] * probabilities[1, j]
    assert_close(coverage(probabilities), expected)


@pytest.mark.parametrize("structure", ["points", "span"])
@pytest.mark.parametrize("seed", range(4))
def test_monotone_falls_as_gold_logits_rise(structure, seed):
    surrogate = surrogate_of_seed(seed, structure=structure)
    outputs = torch.zeros(1, 1, 2, 8)
    losses = []
    for gain in torch.linspace(-4, 12, 30):
        outputs[0, 0, 0, 3] = outputs[0, 0, 1, 5] = gain
        losses.append(surrogate.per_item(outputs, torch.tensor([[[[3, 5]]]])).item())
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > losses[-1]


def test_span_tells_near_misses_from_far_ones():
    """Both readers are equally sure of the gold span; one puts the rest next to it, the other far away."""
    outputs = torch.full((2, 1, 2, 40), -5.0)
    outputs[:, :, 0, 10] = outputs[:, :, 1, 12] = 3.0
    outputs[0, :, 0, 9] = outputs[0, :, 1, 13] = 3.0
    outputs[1, :, 0, 2] = outputs[1, :, 1, 30] = 3.0
    targets = torch.tensor([[[[10, 12]]]]).expand(2, 1, 1, 2)
    near, far = surrogate_of_seed(structure="points").per_item(outputs, targets).tolist()
    assert near == pytest.approx(far, rel=1e-5)
    near, far = surrogate_of_seed(structure="span").per_item(outputs, targets).tolist()
    assert near < far


def test_mask_equals_masked_outputs():
    outputs, targets = predictions()
    surrogate = surrogate_of_seed()
    mask = torch.ones(3, 5, 9, dtype=torch.bool)
    mask[..., -2:] = False
    free = outputs.clone()
    free[..., -2:] = 7.0
    assert_close(surrogate.per_item(free, targets, mask), surrogate.per_item(outputs, targets), rtol=0, atol=0)
    free.requires_grad_()
    surrogate.freeze()(free[0], targets[0], mask[0]).backward()
    assert free.grad[..., -2:].abs().max() == 0
    assert free.grad[0, ..., :-2].abs().min() > 0


@pytest.mark.parametrize("structure", ["points", "span"])
def test_extreme_inputs_give_finite_losses(structure):
    surrogate = surrogate_of_seed(structure=structure)
    outputs, targets = predictions()
    for extreme, gold in (
        (torch.full_like(outputs, MASKED), targets),
        (torch.zeros_like(outputs), targets),
        (40 * outputs.clamp(-10, 10), targets),
        (outputs, torch.full_like(targets, -2)),
        (outputs, torch.full_like(targets, 8)),  # gold outside the passage
    ):
        extreme = extreme.clone().requires_grad_()
        losses = surrogate.per_item(extreme, gold)
        losses.sum().backward()
        assert torch.isfinite(losses).all()
        assert torch.isfinite(extreme.grad).all()
    masked = surrogate_of_seed(structure="points").per_item(outputs, torch.full_like(targets, 8))
    lowest = surrogate_of_seed(structure="points").network(torch.tensor([LOWEST]))
    assert_close(masked, lowest.expand(3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_loss_is_float32_under_autocast(dtype):
    outputs, targets = predictions()
    surrogate = surrogate_of_seed()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = surrogate.per_item(outputs.to(dtype), targets)
    assert losses.dtype == torch.float32
    assert_close(losses, surrogate.per_item(outputs.to(dtype).float(), targets), rtol=0, atol=0)


def test_ordinary_loss_equals_transformers():
    transformers = pytest.importorskip("transformers")
    from transformers.loss.loss_utils import ForQuestionAnsweringLoss

    del transformers
    outputs, targets = predictions(g=1)
    outputs[..., -2:] = 1.0
    gold = targets[..., 0, :].clamp(min=0)
    expected = [ForQuestionAnsweringLoss(*o.unbind(1), *gold[i].unbind(-1)) for i, o in enumerate(outputs)]
    assert_close(ReadingReLoss.ordinary_loss(outputs, targets), torch.stack(expected))
    uniform = ReadingReLoss.ordinary_loss(torch.zeros(1, 1, 2, 9), targets[:1, :1])
    assert uniform.item() == pytest.approx(math.log(9))


def test_wrong_arguments_are_refused():
    outputs, targets = predictions()
    with pytest.raises(ValueError, match=r"expected outputs \[N, B, 2, T\] and targets \[N, B, G, 2\]"):
        ReadingReLoss().per_item(outputs, targets[..., 0])
    with pytest.raises(ValueError, match=r"mask \[N, B, T\]"):
        ReadingReLoss().per_item(outputs, targets, torch.ones(3, 5, 2))
    with pytest.raises(ValueError, match="a gold position is 9, but there are 9 positions"):
        ReadingReLoss().per_item(outputs, torch.full_like(targets, 9))
    with pytest.raises(ValueError, match="structure must be one of points, span, not words"):
        ReadingReLoss("words")
    with pytest.raises(ValueError, match=r"start and end logits \[2, T\] of an example, not \[5\]"):
        build("reading", [5])


def improving_reader(path, items=80, b=16, t=24):
    """Record a reader that is sure of one span, which gets closer to the gold one with every step."""
    generator = torch.Generator().manual_seed(0)
    bank = PredictionBank.create(path, item_size=b)
    for step in range(items):
        start = torch.randint(1, t - 4, (b,), generator=generator)
        gold = torch.stack((start, start + torch.randint(0, 4, (b,), generator=generator)), -1)
        offsets = (4 * (1 - step / items) * torch.randn(b, 2, generator=generator)).round().long()
        predicted = (gold + offsets).clamp(1, t - 1)
        noise, confidence = torch.randn(b, 2, t, generator=generator), torch.full((b, 2, 1), 6.0)
        outputs = noise.scatter_add(-1, predicted[..., None], confidence)
        bank.append(outputs, gold[:, None], step)
    bank.finish()
    return bank


def test_learns_to_rank_as_f1_and_reloads(tmp_path):
    bank = improving_reader(tmp_path / "bank")
    options = LearnOptions(steps=60, items=24, mixture="shuffled", validate_every=20)
    for structure in ("points", "span"):
        torch.manual_seed(0)
        surrogate = build("reading", bank.output_shape(), structure=structure)
        fit = fit_surrogate(surrogate, bank, reading_f1, options=options)
        assert fit.spearman > max(0.85, fit.spearman_ordinary - 0.03)
        assert fit.spearman_synthetic > 0.7
    fit.surrogate.save_pretrained(tmp_path / "saved")
    loaded = ReadingReLoss.from_pretrained(tmp_path / "saved")
    assert loaded.options() == fit.surrogate.options()
    outputs, targets = bank.items(torch.arange(3))
    assert_close(loaded.per_item(outputs, targets), fit.surrogate.per_item(outputs, targets), rtol=0, atol=0)


def test_learn_command(tmp_path, cli):
    improving_reader(tmp_path / "bank", items=20)
    words = ("learn", "--bank", tmp_path / "bank", "--metric", "reading_exact_match", "--out", tmp_path / "surrogate")
    fast = ("--set", "steps=4", "items=8", "mixture=shuffled")
    assert cli(*words, "--kind", "reading", *fast)[0] == 0
    assert ReadingReLoss.from_pretrained(tmp_path / "surrogate").structure == "span"


def test_bank_of_another_kind_is_refused(tmp_path, improving_bank):
    with pytest.raises(RelossError, match="ReadingReLoss cannot learn from the bank"):
        fit_surrogate(ReadingReLoss(), improving_bank(), reading_f1, steps=1)
