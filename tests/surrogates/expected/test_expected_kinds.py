"""Surrogates of labels, masks, numbers and lists: what holds for all of them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_predictions import KINDS, name_of
from torch.testing import assert_close

from reloss.learning import PredictionBank, fit_surrogate
from reloss.learning.items import SOURCES, Items
from reloss.metrics import get_metric, list_ndcg
from reloss.ranking import spearman
from reloss.runtime.errors import UsageError
from reloss.surrogates import build, load
from reloss.surrogates.expected.lists import TAIL, list_features
from reloss.surrogates.expected.masks import class_sums, compact_targets, foreground_sums
from reloss.surrogates.registry import EXPECTED_KINDS

ALL = pytest.mark.parametrize("kind", KINDS)


def surrogate_of(kind, metric=None, seed=0):
    torch.manual_seed(seed)
    return build(name_of(kind), KINDS[kind].shape, features="expected", metric=metric, **KINDS[kind].options)


def ignored(kind, targets):
    """Which targets do not count."""
    return targets.isnan() if kind == "regression" else targets == KINDS[kind].ignored


@ALL
def test_features_have_names_and_largest_values(kind):
    surrogate = surrogate_of(kind)
    outputs, targets = KINDS[kind].make()
    features = surrogate.features(outputs, targets)
    assert features.shape[-1] == len(surrogate.FEATURES)
    assert len(features) == 6
    assert (features <= surrogate.best_features() + 1e-6).all()
    assert surrogate.per_item(outputs, targets).shape == (6,)
    for metric in surrogate.EXPECTED:
        assert get_metric(metric).__name__ == metric


@pytest.mark.parametrize(
    ("kind", "metric"), [(kind, metric) for kind in KINDS for metric in EXPECTED_KINDS[name_of(kind)].EXPECTED]
)
def test_the_expected_metric_tends_to_the_metric(kind, metric):
    outputs, targets = KINDS[kind].make(n=8)
    if kind == "foreground":  # without foreground, the expected Dice is no limit: see the class
        targets[..., 0, 0] = 1
    tolerance = {"regression_spearman": 0.03, "share_within": 0.1}.get(metric, 1e-4)
    if kind != "regression":  # the same order and signs, far apart
        ranks = outputs.flatten(1).argsort(1).argsort(1) - (outputs.flatten(1) < 0).sum(1, keepdim=True)
        outputs = 20 * (ranks + 0.5).view(outputs.shape)
    options = {**KINDS[kind].options, **({"spread": 1.0} if metric == "share_within" else {})}
    surrogate = build(name_of(kind), KINDS[kind].shape, features="expected", metric=metric, **options)
    expected = get_metric(metric)(outputs, targets)
    assert_close(1 - surrogate.per_item(outputs, targets), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("kind", ["foreground", "masks"])
def test_sums_of_pixels_by_hand(kind):
    outputs, targets = KINDS[kind].make()
    outputs = outputs.flatten(3)
    labels = compact_targets(KINDS[kind].make()[0], targets)
    p = torch.stack((1 - outputs[:, :, 0].sigmoid(), outputs[:, :, 0].sigmoid()), 2)
    p = p if kind == "foreground" else outputs.softmax(2)
    counts = (labels >= 0) & (labels < p.shape[2])
    own = (labels[:, :, None] == torch.arange(p.shape[2])[:, None]) & counts[:, :, None]
    log_p = (p.log() * own).sum(-1)
    by_hand = ((p * own).sum(-1), (p * counts[:, :, None]).sum(-1), log_p, log_p.sum(-1, keepdim=True) - log_p)
    by_hand += (own.sum(-1).float(), (counts[:, :, None] & ~own).sum(-1).float())
    sums = foreground_sums(outputs[:, :, 0], labels) if kind == "foreground" else class_sums(outputs, labels.long())
    for value, expected in zip(sums, by_hand, strict=True):
        assert_close(value, expected[..., 1:] if kind == "foreground" else expected)


def test_features_of_lists_by_hand():
    """Scores far apart: documents of gain 2, 0 and 1 take the places 1 to 3; -1 is padding."""
    outputs, targets = torch.tensor([[30.0, 20, 10, 40]]), torch.tensor([[2, 0, 1, -1]])
    discounts = 1 / torch.tensor([2.0, 3, 4]).log2()
    ndcg = (2 * discounts[0] + discounts[2]) / (2 * discounts[0] + discounts[1])
    # Of the pairs at grade 2, all are right; at grade 1, one of two.
    expected = torch.tensor([0, *(ndcg.log() for _ in range(3)), 0, math.log(0.5) / 2, -10 / 4])
    expected[0] = (1 - TAIL + TAIL * ndcg).log()
    assert_close(list_features(outputs, targets)[0], expected, atol=1e-4, rtol=0)


def test_more_grades_than_eight_are_rounded():
    outputs, targets = torch.randn(1, 4, 50), torch.rand(1, 4, 50)
    surrogate = build("lists", (50,), features="expected", metric="list_ndcg")
    assert_close(1 - surrogate.per_item(1e3 * outputs, targets), list_ndcg(outputs, targets), atol=0.05, rtol=0)


@ALL
@given(seed=st.integers(0, 10_000), quality=st.floats(0, 5), largest=st.floats(0, 20))
@settings(max_examples=10, deadline=None)
def test_no_feature_falls_as_predictions_get_better(kind, seed, quality, largest):
    outputs, targets = KINDS[kind].make(quality, seed, n=4)
    outputs = outputs.double()
    generator = torch.Generator().manual_seed(seed)
    steps = (largest * torch.rand(outputs.shape, generator=generator)).double()
    steps = steps * (torch.rand(outputs.shape, generator=generator) < 0.5)
    better = KINDS[kind].improve(outputs, targets, steps, generator)
    surrogate = surrogate_of(kind)
    rise = surrogate.features(better, targets) - surrogate.features(outputs, targets)
    if kind == "regression":  # concordance itself can fall as errors shrink, for outputs that go the other way
        rise = rise[..., [name != "concordance" for name in surrogate.FEATURES]]
    assert rise.min() >= -1e-6, rise.flatten(0, -2).amin(0)


@ALL
@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("b", [1, 5])
def test_loss_and_gradient_stay_finite(kind, learned, b):
    start, targets = KINDS[kind].make(b=b)
    for metric in [None] if learned else list(EXPECTED_KINDS[name_of(kind)].EXPECTED):
        surrogate = surrogate_of(kind, metric)
        for size in (0.0, 1.0, 1e4, 1e30, -torch.inf):
            outputs = torch.where(start < 0, size, start) if size < 0 else start * size
            outputs = outputs.detach().requires_grad_()
            for labels in (targets, torch.full_like(targets, KINDS[kind].ignored)):
                losses = surrogate.per_item(outputs, labels)
                (gradient,) = torch.autograd.grad(losses.sum(), outputs)
                assert losses.isfinite().all()
                assert gradient.isfinite().all()
        assert (surrogate.per_item(start, labels) == 0).all()  # where nothing counts


@ALL
def test_what_is_ignored_does_not_matter(kind):
    outputs, targets = KINDS[kind].make()
    surrogate = surrogate_of(kind)
    mask = ignored(kind, targets)
    mask = mask[:, :, None].expand_as(outputs) if mask.dim() < outputs.dim() else mask
    changed = outputs.masked_fill(mask, 7.0)
    for loss in (surrogate.per_item, surrogate.ordinary_loss):
        assert_close(loss(changed, targets), loss(outputs, targets))
    metric = get_metric(KINDS[kind].metric)
    assert_close(metric(changed, targets), metric(outputs, targets))


@ALL
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_a_float32_loss(kind, dtype):
    outputs, targets = KINDS[kind].make()
    surrogate = surrogate_of(kind)
    with torch.autocast("cpu", torch.bfloat16):
        losses = surrogate.per_item(outputs.to(dtype), targets)
    assert losses.dtype == torch.float32
    assert_close(losses, surrogate.per_item(outputs.to(dtype).float(), targets), rtol=0, atol=0)
    assert surrogate.ordinary_loss(outputs.to(dtype), targets).dtype == torch.float32


@ALL
def test_gradients_equal_finite_differences(kind):
    outputs, targets = KINDS[kind].make(n=1, b=3)
    targets = targets.double() if kind == "regression" else targets
    surrogate, inputs = surrogate_of(kind).double(), outputs.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda o: surrogate.per_item(o, targets), inputs, atol=1e-4)
    losses, norms = surrogate.losses_and_norms(outputs.double(), targets)
    first = torch.autograd.grad(losses.sum() + norms.sum(), list(surrogate.parameters()))
    assert all(gradient.isfinite().all() for gradient in first)


@ALL
def test_one_batch_saving_and_loading(kind, tmp_path):
    outputs, targets = KINDS[kind].make()
    surrogate = surrogate_of(kind)
    assert_close(surrogate(outputs[0], targets[0]), surrogate.per_item(outputs, targets)[0])
    surrogate.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert type(loaded) is type(surrogate)
    assert torch.equal(loaded.per_item(outputs, targets), surrogate.per_item(outputs, targets))


@ALL
def test_wrong_predictions_are_refused(kind):
    outputs, targets = KINDS[kind].make()
    surrogate = surrogate_of(kind)
    surrogate.check(outputs, targets)
    wrong = targets + torch.inf if kind == "regression" else targets - 7
    with pytest.raises(ValueError, match="must"):
        surrogate.check(outputs, wrong)
    with pytest.raises(ValueError, match="expected outputs"):
        surrogate(outputs[0], targets[0, 0])
    if surrogate.takes_logits:
        with pytest.warns(UserWarning, match="pass what comes before the"):
            surrogate.check(outputs.softmax(2) if kind == "masks" else outputs.sigmoid(), targets)


def test_spreads_of_a_regression():
    outputs, targets = KINDS["regression"].make()
    with pytest.raises(ValueError, match=r"the spreads of 3 dimensions, but the outputs have 2; pass spread=targets"):
        build("regression", (2,), features="expected", spread=[1.0, 2, 3]).check(outputs, targets)
    for spread in (0.0, [], [-1.0], [float("nan")]):
        with pytest.raises(ValueError, match=r"spread must hold a positive number for each dimension"):
            build("regression", (2,), features="expected", spread=spread)
    scaled = surrogate_of("regression").per_item(outputs, targets)
    torch.manual_seed(0)
    unit = build("regression", (2,), features="expected")
    assert_close(unit.per_item(outputs / torch.tensor([2, 10]), targets / torch.tensor([2, 10])), scaled)


@ALL
@pytest.mark.parametrize("source", ["noisy", "tempered", "blended", "shuffled"])
def test_items_keep_what_is_ignored(kind, source):
    outputs, targets = KINDS[kind].make(n=8)
    items = SOURCES[source](Items(outputs, targets), torch.Generator().manual_seed(0))
    assert items.outputs.shape == outputs.shape
    assert items.targets.dtype == targets.dtype
    assert ignored(kind, items.targets).sum() > 0
    if source in ("noisy", "tempered"):
        assert torch.equal(ignored(kind, items.targets), ignored(kind, targets))
    assert get_metric(KINDS[kind].metric)(items.outputs, items.targets).isfinite().all()


@pytest.mark.parametrize("kind", ["labels", "foreground"])
def test_shifted_decisions_have_their_threshold_at_one_that_counts(kind):
    outputs, targets = KINDS[kind].make(n=40)
    outputs[:, 0] = -torch.inf
    items = SOURCES["shifted"](Items(outputs, targets), torch.Generator().manual_seed(0))
    at_threshold = (items.outputs == 0).reshape(targets.shape)
    assert at_threshold.flatten(1).any(1).all()
    assert not at_threshold[ignored(kind, targets)].any()
    assert get_metric(KINDS[kind].metric)(items.outputs.clamp(min=-1e4), targets).unique().numel() > 20


@pytest.mark.parametrize("kind", ["masks", "regression", "lists"])
def test_other_predictions_have_no_threshold(kind):
    with pytest.raises(UsageError, match="cannot be shifted; choose mixture=perturbed"):
        SOURCES["shifted"](Items(*KINDS[kind].make()), torch.Generator())


@pytest.mark.slow
@ALL
def test_a_fit_ranks_held_out_items(kind, tmp_path):
    made = KINDS[kind]
    size = 16 if kind in ("labels", "regression") else 6
    bank = PredictionBank.create(tmp_path / "bank", item_size=size)
    for step in range(150):
        outputs, targets = made.make(2.5 * step / 150, 10 * step, n=1, b=size)
        bank.append(outputs[0], targets[0], step)
    bank.finish()
    result = fit_surrogate(surrogate_of(kind), bank, made.metric, mixture="perturbed", steps=60, items=48)
    assert result.spearman > 0.9
    outputs, targets = (
        torch.cat(parts) for parts in zip(*(made.make(q, 7 + int(10 * q)) for q in (0, 1, 2)), strict=True)
    )
    assert spearman(-result.surrogate.per_item(outputs, targets), get_metric(made.metric)(outputs, targets)) > 0.8


@pytest.mark.parametrize("kind", ["labels", "lists", "masks", "regression"])
def test_kinds_that_have_expected_features_only(kind):
    with pytest.raises(UsageError, match=f'kind {kind} has expected features only; choose features="expected"'):
        build(kind, (2, 3, 4))
    with pytest.raises(ValueError, match=r"expected .* not"):
        build(kind, (2, 3, 4, 5), features="expected")
