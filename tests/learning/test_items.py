import pytest
import torch
from pydantic import ValidationError
from torch.testing import assert_close

from reloss import ClassificationReLoss
from reloss.learning import LearnOptions, items
from reloss.learning.options import MIXTURES
from reloss.metrics import accuracy, average_precision, binary_f1
from reloss.runtime.errors import UsageError


def logits(n: int, b: int, c: int) -> torch.Tensor:
    return torch.randn(n, b, c, generator=torch.Generator().manual_seed(1))


def relabelled(outputs: torch.Tensor, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    result = items.relabelled(
        items.Items(outputs, torch.zeros(outputs.shape[:2]).long()), torch.Generator().manual_seed(seed)
    )
    return result.outputs, result.targets


def test_accuracy_is_uniform_above_chance():
    """In a suffix of share u, 1/C is correct by chance: accuracy = 1 - u (1 - 1/C), uniform on [1/C, 1]."""
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
    correct = outputs.argmax(-1) == targets
    halves = correct[:, :32].float().mean(), correct[:, 32:].float().mean()
    assert correct[:, 0].float().mean() > 0.9
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
    """Items whose largest output is often the target, with the statistics of the outputs."""
    targets = torch.randint(c, (n, b), generator=generator(2))
    outputs = logits(n, b, c) + 2 * torch.nn.functional.one_hot(targets, c)
    return items.Items(outputs, targets, ClassificationReLoss().statistics(outputs))


def scores(n: int = 400, b: int = 32) -> items.Items:
    """Scores, and targets in {0, 1}; about 30% of them are 1."""
    return items.Items(
        torch.randn(n, b, generator=generator(3)), (torch.rand(n, b, generator=generator(4)) < 0.3).float()
    )


def test_every_source_is_in_a_mixture_and_every_mixture_has_sources():
    assert set().union(*MIXTURES.values()) == items.SOURCES.keys()


@pytest.mark.parametrize("name", items.SOURCES)
def test_statistics_match_the_outputs(name):
    result = items.SOURCES[name](class_items(), generator())
    assert result.outputs.shape == (40, 16, 6)
    assert result.targets.shape == (40, 16)
    assert result.targets.dtype == torch.int64
    if name in ("recorded", "relabelled", "blended"):
        assert result.statistics is not None
    if result.statistics is not None:
        assert_close(result.statistics, ClassificationReLoss().statistics(result.outputs), rtol=0, atol=0)


@pytest.mark.parametrize("name", items.SOURCES)
@pytest.mark.parametrize("start", [class_items, scores])
def test_the_generator_decides_every_source(name, start):
    first, again, other = (items.SOURCES[name](start(), generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first.outputs, again.outputs)
    assert torch.equal(first.targets, again.targets)
    unequal = not torch.equal(first.outputs, other.outputs) or not torch.equal(first.targets, other.targets)
    assert unequal == (name != "recorded")


def test_shuffled_items_keep_their_outputs_and_rotate_a_suffix_of_targets():
    start = class_items(n=400)._replace(targets=torch.arange(16).expand(400, 16))
    result = items.shuffled(start, generator())
    assert result.outputs is start.outputs
    assert result.statistics is start.statistics
    counts = (result.targets == torch.arange(16)).sum(-1)  # of targets in place
    for row, count in zip(result.targets.tolist(), counts.tolist(), strict=True):
        assert row == [*range(count), *range(count + 1, 16), count][:16] or (count, row) == (16, list(range(16)))
    assert {int(count) for count in counts} == {*range(15), 16}  # a suffix of one example cannot rotate
    assert 7 < counts.float().mean() < 9


def test_shifted_scores_have_their_threshold_at_an_example():
    start = scores()
    result = items.shifted(start, generator())
    constants = result.outputs - start.outputs
    assert_close(constants, constants[:, :1].expand_as(constants))
    at_threshold = result.outputs.abs() < 1e-6
    assert at_threshold.any(-1).all()
    assert 0.55 < start.targets[at_threshold].float().mean() < 0.75  # half of the items, and 30 % of the others
    assert torch.equal(result.targets, start.targets)
    assert_close(average_precision(*result[:2]), average_precision(*start[:2]))
    assert (binary_f1(*result[:2]) - binary_f1(*start[:2])).abs().min() < 0.01
    assert binary_f1(*result[:2]).std() > 0.05


def test_shifted_scores_of_a_model_that_predicts_no_positive_have_different_f1():
    start = scores()
    start = start._replace(outputs=start.outputs - 10)
    assert (binary_f1(*start[:2]) == 0).all()
    assert len(binary_f1(*items.shifted(start, generator())[:2]).unique()) > 20
    assert len(binary_f1(*items.synthetic(start, generator(), ("recorded", "shifted"))[:2]).unique()) > 20


def test_shifted_logits_put_one_example_between_a_class_and_the_rest():
    start = class_items()
    result = items.shifted(start, generator())
    constants = result.outputs - start.outputs
    assert_close(constants, constants[:, :1].expand_as(constants))
    changed = constants[:, 0].abs() > 1e-6
    assert (changed.sum(-1) == 1).all()
    best_two = result.outputs.topk(2, -1).values
    assert ((best_two[..., 0] - best_two[..., 1]).abs() < 1e-5).any(-1).all()


def test_what_has_no_threshold_cannot_be_shifted():
    with pytest.raises(UsageError, match=r"outputs \[2, 3, 4, 5\] are neither .* cannot be shifted"):
        items.shifted(items.Items(torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 4, 5)), generator())


def test_recorded_items_are_unchanged():
    start = class_items()
    assert items.recorded(start, generator()) is start


def test_noise_has_one_size_per_item_up_to_twice_the_deviation():
    start = items.Items(5 * logits(300, 200, 4), torch.zeros(300, 200).long())
    result = items.noisy(start, generator())
    sizes = (result.outputs - start.outputs).std((1, 2)) / start.outputs.std()
    assert 0 < sizes.min() < 0.05
    assert 1.9 < sizes.max() < 2.1
    assert float(sizes.mean()) == pytest.approx(1, abs=0.1)
    assert torch.equal(result.targets, start.targets)


def test_noise_lowers_the_metric():
    start = class_items(300)
    assert accuracy(*items.noisy(start, generator())[:2]).mean() < accuracy(*start[:2]).mean() - 0.1


def test_temperatures_are_between_a_quarter_and_four_and_keep_the_order():
    start = class_items(300)
    result = items.tempered(start, generator())
    ratio = result.outputs / start.outputs
    assert_close(ratio, ratio[:, :1, :1].expand_as(ratio))
    exponents = ratio[:, 0, 0].log2()
    assert -2 <= exponents.min() < -1.9
    assert 1.9 < exponents.max() <= 2
    assert abs(float(exponents.mean())) < 0.2
    assert torch.equal(accuracy(*result[:2]), accuracy(*start[:2]))


def test_blended_items_mix_examples_of_two_items_with_their_targets():
    n, b = 50, 64
    number = torch.arange(n * b).view(n, b)
    result = items.blended(items.Items(number[..., None].float(), number), generator())
    assert torch.equal(result.outputs[..., 0].long(), result.targets)
    assert torch.equal(result.targets % b, number % b)
    owners = result.targets // b
    unchanged = owners == torch.arange(n)[:, None]
    assert all(len(set(row.tolist())) <= 2 for row in owners)
    share = unchanged.float().mean(-1)
    assert share.min() < 0.2
    assert share.max() > 0.8
    assert float(share.mean()) == pytest.approx(0.5, abs=0.12)


def test_random_outputs_have_all_sizes_and_are_relabelled():
    start = items.Items(3 * logits(500, 64, 4), torch.zeros(500, 64).long())
    result = items.random(start, generator())
    assert float(result.outputs.std() / start.outputs.std()) == pytest.approx((16 / 3) ** 0.5, rel=0.1)
    values = accuracy(result.outputs, result.targets)
    assert float(values.mean()) == pytest.approx((1 + 1 / 4) / 2, abs=0.03)
    assert values.max() == 1


def test_relabelled_scores_keep_the_number_of_positives_and_vary_from_chance_to_perfect():
    start = scores()
    result = items.relabelled(start, generator())
    assert result.targets.unique().tolist() == [0, 1]
    n, b = start.targets.shape
    examples = torch.randperm(n * b, generator=generator()).view(n, b)
    assert torch.equal(result.targets.sum(-1), start.examples(examples).targets.sum(-1))
    precision = average_precision(result.outputs, result.targets)
    assert precision.max() == 1
    assert precision.min() < 0.4
    assert precision.std() > 0.15
    assert binary_f1(result.outputs, result.targets).std() > 0.05


def test_the_first_targets_of_relabelled_scores_are_in_the_best_order():
    result = items.relabelled(scores(2000), generator())
    positives = result.targets.sum(-1, keepdim=True)
    best = result.outputs.argsort(-1, descending=True).argsort(-1) < positives
    correct = (best.float() == result.targets).float().mean(0)
    assert correct[0] > 0.95
    assert correct[-1] < 0.7
    assert correct[0] > correct[10] > correct[20] > correct[31]


def test_other_outputs_cannot_be_relabelled_but_changed():
    heatmaps = torch.randn(4, 3, 2, 5, 5, generator=generator())
    start = items.Items(heatmaps, heatmaps)
    for name in ("relabelled", "random"):
        with pytest.raises(
            UsageError, match=r"outputs \[4, 3, 2, 5, 5\] .* of torch\.float32 .* choose mixture=shuffled"
        ):
            items.SOURCES[name](start, generator())
    for name in {**LearnOptions(mixture="perturbed").shares(), **LearnOptions(mixture="shuffled").shares()}:
        assert items.SOURCES[name](start, generator()).outputs.shape == heatmaps.shape
    result = items.synthetic(start, generator())
    assert result.outputs is start.outputs
    assert not torch.equal(result.targets, start.targets)
    assert_close(result.targets.sum(1), start.targets.sum(1))


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


def test_synthetic_items_with_the_prediction_in_their_targets_are_blended():
    outputs = torch.arange(24.0).view(2, 3, 4)
    hypotheses = items.Items(outputs, torch.stack([outputs, outputs], -1).int())
    result = items.synthetic(hypotheses, torch.Generator().manual_seed(1), {"recorded": 0.5, "blended": 0.5})
    assert torch.equal(result.targets[..., 0].float(), result.outputs)
    assert not torch.equal(result.outputs, outputs)
    shifted = items.synthetic(hypotheses, torch.Generator().manual_seed(1))
    assert torch.equal(shifted.outputs, outputs)
