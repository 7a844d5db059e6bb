from pathlib import Path

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.testing import assert_close

from reloss import SetReLoss
from reloss.learning import FitResult, LearnOptions, PredictionBank, fit_surrogate
from reloss.learning.sampling import split_items
from reloss.metrics import Metric, average_precision, binary_f1, macro_f1
from reloss.surrogates import build
from reloss.surrogates.base import gradient_norms
from reloss.surrogates.options import FEATURES, PRESETS
from reloss.surrogates.sets import log_odds, log_odds_of

OUTPUTS = ["monotone", "identity", "absolute"]


def surrogate_of_seed(seed: int = 0, **options) -> SetReLoss:
    torch.manual_seed(seed)
    return SetReLoss(**options)


def scores(n: int = 4, b: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    """Return items with positives and negatives; the first has only negatives, the second only positives."""
    generator = torch.Generator().manual_seed(0)
    targets = (torch.arange(b) < b // 3).long().repeat(n, 1)
    targets[0], targets[1] = 0, 1
    return 3 * torch.randn(n, b, generator=generator), targets


def classes(n: int = 3, b: int = 8, c: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits and classes; the last class never occurs, and the first item has one class only."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(c - 1, (n, b), generator=generator)
    targets[0] = 2
    return 3 * torch.randn(n, b, c, generator=generator), targets


EXAMPLES = pytest.mark.parametrize("examples", [scores, classes])


@EXAMPLES
@pytest.mark.parametrize("output", OUTPUTS)
def test_items_are_independent(examples, output):
    outputs, targets = examples()
    surrogate = surrogate_of_seed(output=output)
    losses = surrogate.per_item(outputs, targets)
    assert losses.std() > 1e-3
    for index in range(len(outputs)):
        assert_close(losses[index], surrogate(outputs[index], targets[index]))


def test_loss_is_a_network_over_two_means():
    """Computed by hand for one item, example by example."""
    outputs, targets = (part[2] for part in scores())
    surrogate = surrogate_of_seed(output="identity", scale=2.5)
    softplus = torch.nn.Softplus()
    positives = [softplus(surrogate.positive(-s[None])) for s, t in zip(outputs, targets, strict=True) if t == 1]
    negatives = [softplus(surrogate.negative(s[None])) for s, t in zip(outputs, targets, strict=True) if t == 0]
    assert (len(positives), len(negatives)) == (3, 6)
    pooled = torch.cat((sum(positives) / 3, sum(negatives) / 6))
    hidden = surrogate.pooled(pooled) + surrogate.counts(torch.tensor([3 / 9, 0, 0]))
    assert_close(surrogate(outputs, targets), 2.5 * surrogate.loss(softplus(hidden))[0])


def test_each_class_is_compared_with_the_rest():
    outputs, targets = classes()
    surrogate = surrogate_of_seed()
    p = outputs[1].double().softmax(-1)
    odds = (p.log() - (1 - p).log()).float()
    expected = [surrogate(odds[:, c], (targets[1] == c).long()) for c in targets[1].unique()]
    assert len(expected) > 1
    assert_close(surrogate(outputs[1], targets[1]), torch.stack(expected).mean())


@EXAMPLES
@pytest.mark.parametrize("output", OUTPUTS)
def test_order_of_examples_does_not_matter(examples, output):
    outputs, targets = examples()
    order = torch.randperm(outputs.shape[1], generator=torch.Generator().manual_seed(1))
    surrogate = surrogate_of_seed(output=output)
    assert_close(surrogate.per_item(outputs[:, order], targets[:, order]), surrogate.per_item(outputs, targets))


def test_order_of_classes_does_not_matter():
    outputs, targets = classes()
    order = torch.tensor([3, 0, 4, 2, 1])
    surrogate = surrogate_of_seed()
    assert_close(
        surrogate.per_item(outputs[..., order], order.argsort()[targets]), surrogate.per_item(outputs, targets)
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("redraw", [False, True])
def test_a_monotone_loss_falls_with_positives_and_rises_with_negatives(seed, redraw):
    """For any weights: fresh ones, and random ones with both signs."""
    surrogate = surrogate_of_seed(seed)
    if redraw:
        for parameter in surrogate.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    outputs, targets = scores()
    outputs.requires_grad_()
    (gradients,) = torch.autograd.grad(surrogate.per_item(outputs, targets).sum(), outputs)
    assert gradients[targets == 1].max() < 0
    assert gradients[targets == 0].min() > 0


def test_a_monotone_loss_is_convex_in_the_scores():
    surrogate = surrogate_of_seed()
    first, targets = scores()
    second = first.flip(1)
    ends = (surrogate.per_item(first, targets) + surrogate.per_item(second, targets)) / 2
    middle = surrogate.per_item((first + second) / 2, targets)
    assert (ends - middle).min() > 1e-3


def test_identity_can_rise_or_fall():
    outputs, targets = scores()
    outputs.requires_grad_()
    surrogate = surrogate_of_seed(output="identity")
    with torch.no_grad():
        surrogate.loss.weight.neg_()
    (falling,) = torch.autograd.grad(surrogate.per_item(outputs, targets).sum(), outputs)
    with torch.no_grad():
        surrogate.loss.weight.neg_()
    (rising,) = torch.autograd.grad(surrogate.per_item(outputs, targets).sum(), outputs)
    assert_close(falling, -rising)
    assert rising.abs().min() > 0


def test_absolute_is_the_absolute_value():
    outputs, targets = scores()
    signed, folded = surrogate_of_seed(output="identity"), surrogate_of_seed(output="absolute")
    for surrogate in (signed, folded):
        torch.nn.init.constant_(surrogate.loss.bias, -5)
    assert signed.per_item(outputs, targets).max() < 0
    assert_close(folded.per_item(outputs, targets), -signed.per_item(outputs, targets))


@EXAMPLES
def test_single_class_and_extreme_scores_give_finite_losses(examples):
    outputs, targets = examples()
    for size in (0.0, 1.0, 1e4):
        sized = (size * outputs).requires_grad_()
        losses = surrogate_of_seed().per_item(sized, targets)
        (gradients,) = torch.autograd.grad(losses.sum(), sized)
        assert torch.isfinite(losses).all()
        assert torch.isfinite(gradients).all()
        assert gradients.flatten(1).abs().amax(1).min() > 1e-4  # every item has a gradient


def test_without_positives_only_negatives_count():
    outputs, targets = scores()
    surrogate = surrogate_of_seed()
    before = surrogate.per_item(outputs, targets)[:2]
    torch.nn.init.normal_(surrogate.positive.weight)
    after = surrogate.per_item(outputs, targets)[:2]
    assert_close(after[0], before[0], rtol=0, atol=0)
    assert abs(after[1] - before[1]) > 1e-3


def test_log_odds():
    outputs = 3 * torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert_close(log_odds(outputs), outputs.softmax(-1).logit())
    items, classes = torch.tensor([[0, 0, 1, 1], [3, 1, 0, 2]])
    expected = log_odds(outputs.view(2, 25, 4))[items, :, classes]
    assert_close(log_odds_of(outputs.view(2, 25, 4), items, classes), expected)
    assert torch.autograd.gradcheck(log_odds, outputs[:5].requires_grad_())
    certain = torch.tensor([[200.0, 0.0, 0.0], [0.0, 0.0, 0.0]])  # p rounds to 1 or 0; all logits are equal
    two = torch.tensor(2.0).log()
    assert_close(
        log_odds(certain), torch.stack((torch.stack((200 - two, *[torch.tensor(-200.0)] * 2)), -two.expand(3)))
    )
    assert_close(log_odds(outputs[:, :2]), (outputs[:, 0] - outputs[:, 1])[:, None] * torch.tensor([1, -1]))


@EXAMPLES
@pytest.mark.parametrize("output", OUTPUTS)
def test_gradient_equals_finite_differences(examples, output):
    outputs, targets = examples(b=4)
    surrogate = surrogate_of_seed(output=output, width=4).double()
    assert torch.autograd.gradcheck(lambda o: surrogate.per_item(o, targets), outputs.double().requires_grad_())


@EXAMPLES
def test_norms_are_differentiable(examples):
    """The gradient penalty needs the gradient of the norms in every parameter."""
    surrogate = surrogate_of_seed()
    losses, norms = surrogate.losses_and_norms(*examples())
    assert norms.shape == examples()[1].shape
    (losses.sum() + (norms - 1).square().sum()).backward()
    for parameter in surrogate.parameters():
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad.abs().max() > 0


@EXAMPLES
def test_half_precision_gives_a_float32_loss(examples):
    outputs, targets = examples()
    surrogate = surrogate_of_seed()
    with torch.autocast("cpu", torch.bfloat16):
        losses = surrogate.per_item(outputs.bfloat16(), targets)
    assert losses.dtype == torch.float32
    assert_close(losses, surrogate.per_item(outputs.bfloat16().float(), targets), rtol=0, atol=0)


def test_ordinary_loss_is_the_cross_entropy():
    for examples, reference in ((scores, binary_cross_entropy_with_logits), (classes, cross_entropy)):
        outputs, targets = examples()
        labels = targets.float() if examples is scores else targets
        expected = torch.stack([reference(o, t) for o, t in zip(outputs, labels, strict=True)])
        assert_close(SetReLoss.ordinary_loss(outputs, targets), expected)


@pytest.mark.parametrize(
    ("outputs", "targets"),
    [((3,), (3,)), ((2, 3), (2, 4)), ((2, 3, 4), (2, 4)), ((2, 3, 4), (2, 3, 4)), ((2, 0), (2, 0))],
)
def test_shapes_must_agree(outputs, targets):
    with pytest.raises(ValueError, match=r"expected outputs \[N, B(, C)?\] and targets \[N, B\]"):
        SetReLoss().per_item(torch.zeros(outputs), torch.zeros(targets, dtype=torch.long))


@pytest.mark.parametrize(
    ("shape", "target", "message"),
    [
        ((2, 3), 2, "0 to 1"),
        ((2, 3), -1, "0 to 1"),
        ((2, 3), 0.5, "0 to 1"),
        ((2, 3, 4), 4, "0 to 3"),
        ((2, 3, 1), 0, "rest"),
    ],
)
def test_targets_out_of_range(shape, target, message):
    with pytest.raises(ValueError, match=message):
        SetReLoss().per_item(torch.zeros(shape), torch.full((2, 3), target))


def test_kind_and_options():
    surrogate = build("set", (), output="identity")
    assert isinstance(surrogate, SetReLoss)
    assert surrogate.output == "identity"
    with pytest.raises(ValueError, match="square"):
        SetReLoss(output="square")


def test_round_trip(tmp_path):
    surrogate = surrogate_of_seed(output="identity", width=8, scale=1.5)
    surrogate.save_pretrained(tmp_path)
    loaded = SetReLoss.from_pretrained(tmp_path)
    assert loaded.options() == {"output": "identity", "width": 8, "scale": 1.5}
    assert_close(loaded.per_item(*scores()), surrogate.per_item(*scores()), rtol=0, atol=0)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def scores_bank(path: Path, steps: int = 160, item_size: int = 64, positive: float = 1 / 8) -> PredictionBank:
    """Record scores and labels whose margin grows with every step, from random order to nearly right."""
    generator = torch.Generator().manual_seed(0)
    bank = PredictionBank.create(path, item_size=item_size)
    for step in range(steps):
        targets = (torch.rand(item_size, generator=generator) < positive).long()
        noise = torch.randn(item_size, generator=generator)
        bank.append(noise - 1 + 4 * step / steps * targets, targets, step)
    bank.finish()
    return bank


def fit(bank: PredictionBank, metric: Metric, **settings) -> FitResult:
    options = LearnOptions(steps=40, items=64, validate_every=20, penalty="off", **settings)
    torch.manual_seed(options.seed)
    return fit_surrogate(SetReLoss(PRESETS[FEATURES[options.fidelity]]["output"]), bank, metric, options=options)


@pytest.mark.parametrize(("metric", "ahead"), [(average_precision, 0.02), (binary_f1, 0.04)])
def test_a_fit_ranks_held_out_items_of_scores(tmp_path, metric, ahead):
    """And better than binary cross-entropy does."""
    result = fit(scores_bank(tmp_path), metric)
    assert result.spearman > 0.88
    assert result.spearman > result.spearman_ordinary + ahead


def test_a_fit_ranks_held_out_items_of_classes(improving_bank):
    result = fit(improving_bank(), macro_f1)
    assert result.spearman > 0.9


def test_item_without_positives_costs_more_than_a_good_one(tmp_path):
    """Its average precision is 0 though no positive is ranked wrongly; a quarter of these small items have none."""
    bank = scores_bank(tmp_path, steps=320, item_size=12)
    surrogate = fit(bank, average_precision, mixture="recorded").surrogate
    empty = torch.full((12,), -2.0)
    good = torch.cat((torch.tensor([2.0]), empty[1:]))
    assert surrogate(empty, torch.zeros(12)) > surrogate(good, (good > 0).long())


@pytest.mark.parametrize(("penalty", "prefers_positives"), [("example", False), ("one_sided", True)])
def test_penalty_decides_how_much_rare_positives_weigh(tmp_path, penalty, prefers_positives):
    """With slopes held at 1, a rare positive pulls no harder than a negative, and predicting none costs least.

    Both losses rank equally well; the documentation says which penalty suits rare classes.
    """
    options = LearnOptions(steps=40, items=64, penalty=penalty)
    torch.manual_seed(0)
    result = fit_surrogate(SetReLoss(), scores_bank(tmp_path, positive=1 / 16), binary_f1, options=options)
    assert result.spearman > 0.8
    targets = (torch.arange(64) < 4).long()
    right = 2.0 * targets - 1
    none_predicted = right - 4
    assert (result.surrogate(right, targets) < result.surrogate(none_predicted, targets)) == prefers_positives


def test_a_fit_is_calibrated_to_the_ordinary_gradient(improving_bank):
    bank = improving_bank()
    surrogate = fit(bank, macro_f1).surrogate
    outputs, targets = bank.items(split_items(len(bank), LearnOptions())[1])
    outputs.requires_grad_()
    learned, ordinary = (
        float(gradient_norms(loss(outputs, targets), outputs).mean())
        for loss in (surrogate.per_item, surrogate.ordinary_loss)
    )
    assert learned == pytest.approx(ordinary, rel=1e-4)
    assert surrogate.scale != 1


def test_boolean_targets_equal_zeros_and_ones(tmp_path):
    outputs, targets = scores()
    surrogate = surrogate_of_seed()
    assert_close(surrogate.per_item(outputs, targets.bool()), surrogate.per_item(outputs, targets), rtol=0, atol=0)
    assert_close(SetReLoss.ordinary_loss(outputs, targets.bool()), SetReLoss.ordinary_loss(outputs, targets))
    integers = scores_bank(tmp_path / "integers")
    booleans = PredictionBank.create(tmp_path / "booleans", item_size=64, surrogate=SetReLoss())
    for step, (output, target) in enumerate(zip(*integers.items(torch.arange(len(integers))), strict=True)):
        booleans.append(output, target.bool(), step)
    booleans.finish()
    results = [fit(bank, binary_f1, mixture="all") for bank in (integers, booleans)]
    assert results[0].history == results[1].history
