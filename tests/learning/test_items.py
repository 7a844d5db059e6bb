import pytest
import torch
from pydantic import ValidationError
from torch.testing import assert_close

from reloss import ClassificationReLoss
from reloss.learning import LearnOptions, items
from reloss.learning.fit import Fit, split_counts
from reloss.learning.measure import Measure
from reloss.learning.options import MIXTURES
from reloss.metrics import PerItem, accuracy, average_precision, binary_f1
from reloss.runtime.errors import UsageError


def logits(n: int, b: int, c: int) -> torch.Tensor:
    return torch.randn(n, b, c, generator=torch.Generator().manual_seed(1))


def relabelled(outputs: torch.Tensor, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    made = items.relabelled(
        items.Items(outputs, torch.zeros(outputs.shape[:2]).long()), torch.Generator().manual_seed(seed)
    )
    return made.outputs, made.targets


def test_accuracy_is_uniform_but_for_chance():
    """Of a suffix share u, 1/C is right by chance: accuracy = 1 - u (1 - 1/C), uniform on [1/C, 1]."""
    classes = 20
    values = accuracy(*relabelled(logits(2000, 128, classes)))
    assert abs(float(values.mean()) - (1 + 1 / classes) / 2) < 0.02
    for share in (0.1, 0.25, 0.5, 0.75, 0.9):
        expected = 1 / classes + share * (1 - 1 / classes)
        assert abs(float(values.quantile(share)) - expected) < 0.04
    assert values.max() == 1
    assert values.min() < 0.1


def test_targets_before_the_suffix_are_the_largest_outputs():
    outputs, targets = relabelled(logits(50, 64, 100))
    right = outputs.argmax(-1) == targets
    halves = right[:, :32].float().mean(), right[:, 32:].float().mean()
    assert right[:, 0].float().mean() > 0.9
    assert halves[0] > halves[1] + 0.3


def test_examples_are_shuffled_across_items_and_none_is_lost():
    outputs = logits(6, 5, 3)
    shuffled, targets = relabelled(outputs)
    assert shuffled.shape == (6, 5, 3)
    assert targets.shape == (6, 5)
    assert targets.dtype == torch.int64
    assert 0 <= targets.min() <= targets.max() < 3
    assert not torch.equal(shuffled, outputs)
    flat = [x.flatten(0, 1) for x in (shuffled, outputs)]
    assert_close(flat[0][flat[0][:, 0].argsort()], flat[1][flat[1][:, 0].argsort()], rtol=0, atol=0)


def test_the_generator_decides():
    outputs = logits(6, 5, 3)
    first, second, other = relabelled(outputs), relabelled(outputs), relabelled(outputs, seed=1)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], other[0])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def class_items(n: int = 40, b: int = 16, c: int = 6) -> items.Items:
    """Items whose targets are often right, with the statistics of their outputs."""
    targets = torch.randint(c, (n, b), generator=generator(2))
    outputs = logits(n, b, c) + 2 * torch.nn.functional.one_hot(targets, c)
    return items.Items(outputs, targets, ClassificationReLoss().statistics(outputs))


def scores(n: int = 400, b: int = 32) -> items.Items:
    """Scores and their targets, 0 or 1, of which about 30% are 1."""
    return items.Items(
        torch.randn(n, b, generator=generator(3)), (torch.rand(n, b, generator=generator(4)) < 0.3).float()
    )


def test_every_source_is_in_a_mixture_and_every_mixture_has_sources():
    assert set().union(*MIXTURES.values()) == items.SOURCES.keys()


@pytest.mark.parametrize("name", items.SOURCES)
def test_statistics_stay_with_the_outputs(name):
    made = items.SOURCES[name](class_items(), generator())
    assert made.outputs.shape == (40, 16, 6)
    assert made.targets.shape == (40, 16)
    assert made.targets.dtype == torch.int64
    if name in ("recorded", "relabelled", "blended"):
        assert made.statistics is not None
    if made.statistics is not None:
        assert_close(made.statistics, ClassificationReLoss().statistics(made.outputs), rtol=0, atol=0)


@pytest.mark.parametrize("name", items.SOURCES)
@pytest.mark.parametrize("start", [class_items, scores])
def test_the_generator_decides_every_source(name, start):
    first, again, other = (items.SOURCES[name](start(), generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first.outputs, again.outputs)
    assert torch.equal(first.targets, again.targets)
    unequal = not torch.equal(first.outputs, other.outputs) or not torch.equal(first.targets, other.targets)
    assert unequal == (name != "recorded")


def test_shuffled_items_keep_their_outputs_and_turn_a_suffix_of_targets():
    start = class_items(n=400)._replace(targets=torch.arange(16).expand(400, 16))
    made = items.shuffled(start, generator())
    assert made.outputs is start.outputs
    assert made.statistics is start.statistics
    kept = (made.targets == torch.arange(16)).sum(-1)
    for row, count in zip(made.targets.tolist(), kept.tolist(), strict=True):
        assert row == [*range(count), *range(count + 1, 16), count][:16] or (count, row) == (16, list(range(16)))
    assert {int(count) for count in kept} == {*range(15), 16}  # a suffix of one example has nothing to turn to
    assert 7 < kept.float().mean() < 9


def test_recorded_items_are_as_they_were():
    start = class_items()
    assert items.recorded(start, generator()) is start


def test_noise_is_up_to_twice_the_outputs_deviation_of_one_size_an_item():
    start = items.Items(5 * logits(300, 200, 4), torch.zeros(300, 200).long())
    made = items.noisy(start, generator())
    sizes = (made.outputs - start.outputs).std((1, 2)) / start.outputs.std()
    assert 0 < sizes.min() < 0.05
    assert 1.9 < sizes.max() < 2.1
    assert float(sizes.mean()) == pytest.approx(1, abs=0.1)
    assert torch.equal(made.targets, start.targets)


def test_noise_spoils_the_metric():
    start = class_items(300)
    assert accuracy(*items.noisy(start, generator())[:2]).mean() < accuracy(*start[:2]).mean() - 0.1


def test_temperatures_are_between_a_quarter_and_four_and_leave_the_order():
    start = class_items(300)
    made = items.tempered(start, generator())
    ratio = made.outputs / start.outputs
    assert_close(ratio, ratio[:, :1, :1].expand_as(ratio))
    exponents = ratio[:, 0, 0].log2()
    assert -2 <= exponents.min() < -1.9
    assert 1.9 < exponents.max() <= 2
    assert abs(float(exponents.mean())) < 0.2
    assert torch.equal(accuracy(*made[:2]), accuracy(*start[:2]))


def test_blended_items_are_of_two_items_with_their_targets():
    n, b = 50, 64
    number = torch.arange(n * b).view(n, b)
    made = items.blended(items.Items(number[..., None].float(), number), generator())
    assert torch.equal(made.outputs[..., 0].long(), made.targets)
    assert torch.equal(made.targets % b, number % b)
    owners = made.targets // b
    own = owners == torch.arange(n)[:, None]
    assert all(len(set(row.tolist())) <= 2 for row in owners)
    share = own.float().mean(-1)
    assert share.min() < 0.2
    assert share.max() > 0.8
    assert float(share.mean()) == pytest.approx(0.5, abs=0.12)


def test_random_outputs_are_of_all_sizes_and_relabelled():
    start = items.Items(3 * logits(500, 64, 4), torch.zeros(500, 64).long())
    made = items.random(start, generator())
    assert float(made.outputs.std() / start.outputs.std()) == pytest.approx((16 / 3) ** 0.5, rel=0.1)
    values = accuracy(made.outputs, made.targets)
    assert float(values.mean()) == pytest.approx((1 + 1 / 4) / 2, abs=0.03)
    assert values.max() == 1


def test_relabelled_scores_keep_the_number_of_positives_and_vary_from_chance_to_perfect():
    start = scores()
    made = items.relabelled(start, generator())
    assert made.targets.unique().tolist() == [0, 1]
    n, b = start.targets.shape
    examples = torch.randperm(n * b, generator=generator()).view(n, b)
    assert torch.equal(made.targets.sum(-1), start.examples(examples).targets.sum(-1))
    precision = average_precision(made.outputs, made.targets)
    assert precision.max() == 1
    assert precision.min() < 0.4
    assert precision.std() > 0.15
    assert binary_f1(made.outputs, made.targets).std() > 0.05


def test_the_first_positions_of_relabelled_scores_are_in_the_best_order():
    made = items.relabelled(scores(2000), generator())
    positives = made.targets.sum(-1, keepdim=True)
    best = made.outputs.argsort(-1, descending=True).argsort(-1) < positives
    right = (best.float() == made.targets).float().mean(0)
    assert right[0] > 0.95
    assert right[-1] < 0.7
    assert right[0] > right[10] > right[20] > right[31]


def test_outputs_of_another_kind_cannot_be_relabelled_but_blurred():
    heatmaps = torch.randn(4, 3, 2, 5, 5, generator=generator())
    start = items.Items(heatmaps, heatmaps)
    for name in ("relabelled", "random"):
        with pytest.raises(
            UsageError, match=r"outputs \[4, 3, 2, 5, 5\] .* of torch\.float32 .* choose mixture=shuffled"
        ):
            items.SOURCES[name](start, generator())
    for name in {**LearnOptions(mixture="perturbed").shares(), **LearnOptions(mixture="shuffled").shares()}:
        assert items.SOURCES[name](start, generator()).outputs.shape == heatmaps.shape
    made = items.synthetic(start, generator())
    assert made.outputs is start.outputs
    assert not torch.equal(made.targets, start.targets)
    assert_close(made.targets.sum(1), start.targets.sum(1))


@pytest.mark.parametrize(
    "mixture", ["halves", {"recordet": 1}, {"recorded": -1, "noisy": 2}, {"recorded": 0}, {}, {"recorded": "much"}]
)
def test_unknown_mixtures(mixture):
    with pytest.raises(ValidationError, match="mixture"):
        LearnOptions(mixture=mixture)


@pytest.mark.parametrize(
    ("mixture", "expected"),
    [
        ("recorded", {"recorded": 1}),
        ("half", {"recorded": 0.5, "relabelled": 0.5}),
        ({"noisy": 3, "recorded": 1, "random": 0}, {"noisy": 0.75, "recorded": 0.25}),
    ],
)
def test_shares(mixture, expected):
    assert LearnOptions(mixture=mixture).shares() == expected


@pytest.mark.parametrize("total", [1, 2, 7, 8, 64, 255])
@pytest.mark.parametrize("mixture", MIXTURES)
def test_counts_are_in_proportion(total, mixture):
    shares = LearnOptions(mixture=mixture).shares()
    counts = split_counts(total, shares)
    assert sum(counts.values()) == total
    if total >= len(shares):
        assert counts.keys() == shares.keys()
        assert all(abs(counts[name] - total * share) <= 1.5 for name, share in shares.items())


def fit_of(bank, metric, **settings) -> Fit:
    options = LearnOptions(items=32, **settings)
    return Fit(ClassificationReLoss(options.input, options.output), bank, Measure(metric, True), options, "cpu")


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("pool", [None, 64])
def test_a_step_draws_items_with_their_metric_and_statistics(improving_bank, mixture, pool):
    fit = fit_of(improving_bank(), accuracy, mixture=mixture, pool=pool)
    for _ in range(2):
        drawn, metric = fit.sample()
        assert drawn.outputs.shape == (32, 32, 5)
        assert_close(metric, accuracy(*drawn[:2]))
        assert_close(drawn.statistics, fit.surrogate.statistics(drawn.outputs), rtol=0, atol=0)


def test_items_of_the_pool_are_drawn_again_and_recorded_ones_from_the_bank(improving_bank):
    bank = improving_bank()
    fit = fit_of(bank, accuracy, mixture={"recorded": 1, "noisy": 2, "tempered": 1}, pool=30)
    assert {name: len(metric) for name, (_, metric) in fit.pool.items()} == {"noisy": 20, "tempered": 10}
    drawn = torch.cat([fit.sample()[0].outputs for _ in range(10)])
    assert len(drawn.unique(dim=0)) <= 30 + len(bank) - len(fit.held_out)
    held = bank.items(fit.held_out)[0]
    assert not (drawn[:, None, 0, 0] == held[None, :, 0, 0]).any()


def test_items_of_metrics_by_item_are_made_once_and_alike(improving_bank):
    bank = improving_bank()

    def metric(outputs, targets):
        return (outputs.argmax(-1) == targets).float().mean()

    one, other = (fit_of(bank, PerItem(metric)).pool for _ in range(2))
    assert {name: len(values) for name, (_, values) in one.items()} == {"relabelled": 1024}
    assert torch.equal(one["relabelled"][0].outputs, other["relabelled"][0].outputs)
    assert torch.equal(one["relabelled"][1], other["relabelled"][1])
    assert fit_of(bank, accuracy).pool is None
    assert len(fit_of(bank, PerItem(metric), pool=8).pool["relabelled"][1]) == 8


def test_synthetic_items_of_recorded_hypotheses_are_blended():
    outputs = torch.arange(24.0).view(2, 3, 4)
    made_of = items.Items(outputs, torch.stack([outputs, outputs], -1).int())
    made = items.synthetic(made_of, torch.Generator().manual_seed(1), {"recorded": 0.5, "blended": 0.5})
    assert torch.equal(made.targets[..., 0].float(), made.outputs)
    assert not torch.equal(made.outputs, outputs)
    shifted = items.synthetic(made_of, torch.Generator().manual_seed(1))
    assert torch.equal(shifted.outputs, outputs)
