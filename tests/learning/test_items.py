import torch
from torch.testing import assert_close

from reloss.learning import items
from reloss.metrics import accuracy


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
