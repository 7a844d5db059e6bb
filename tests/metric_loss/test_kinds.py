"""The kind of predictions is recognised from one batch, and every form of a kind gives the same prepared batch."""

import pytest
import torch
from torch import Tensor

from reloss import UsageError
from reloss.metric_loss.kinds import KINDS, detect

B, C, T, H, W = 6, 5, 7, 4, 3


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def integers(high: int, *shape: int) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(1))


binary, classes = torch.tensor([0, 1, 1, 0, 0, 1]), torch.tensor([0, 4, 2, 3, 1, 2])
several = torch.tensor([[1, 1, 0, 0, 1], [0, 0, 0, 0, 0]] * 3)
soft = torch.full((B, C), 0.1).scatter(1, classes[:, None], 0.6)
grades = torch.tensor([[3, 0, 1, 2, -1]] * B)

FORMS = [
    ("binary", randn(B), binary),
    ("binary", randn(B), binary.bool()),
    ("binary", randn(B), binary.float()),
    ("binary", randn(B), 2 * binary - 1),
    ("binary", randn(B, 1), binary),
    ("binary", randn(B, 1), binary[:, None]),
    ("classes", randn(B, C), classes),
    ("classes", randn(B, C), classes[:, None]),
    ("classes", randn(B, C), classes.float()),
    ("classes", randn(B, C), classes.to(torch.uint8)),
    ("classes", randn(B, C), torch.nn.functional.one_hot(classes)),
    ("classes", randn(B, C), torch.nn.functional.one_hot(classes).float()),
    ("classes", randn(B, C), soft),
    ("labels", randn(B, C), several),
    ("labels", randn(B, C), several.bool()),
    ("labels", randn(B, C), several.float()),
    ("signed_labels", randn(B, C), 2 * several - 1),
    ("lists", randn(B, C), grades),
    ("lists", randn(B, C), grades.float()),
    ("regression", randn(B), randn(B)),
    ("regression", randn(B, 1), randn(B)),
    ("regression", randn(B, C), randn(B, C)),
    ("tokens", randn(B, T, C), integers(C, B, T)),
    ("tokens", randn(B, C, T), integers(C, B, T)),
    ("masks", randn(B, C, H, W), integers(C, B, H, W)),
    ("masks", randn(B, 1, H, W), integers(2, B, H, W)),
    ("masks", randn(B, 1, H, W), integers(2, B, 1, H, W).float()),
    ("heatmaps", randn(B, C, H, W), randn(B, C, H, W).sigmoid()),
    ("spans", randn(B, 2, T), integers(T, B, 2)),
    ("spans", randn(B, 2, T), integers(T, B, 3, 2)),
]
PREPARED = {
    "binary": [binary],
    "classes": [classes],
    "labels": [several],
    "signed_labels": [several],
    "lists": [grades],
}


@pytest.mark.parametrize(("kind", "outputs", "targets"), FORMS)
def test_each_form_is_recognised_and_prepared(kind, outputs, targets):
    assert detect(outputs, targets) == kind
    prepared, labels = KINDS[kind].prepare(outputs, targets)
    if kind in PREPARED:
        assert torch.equal(labels.double(), PREPARED[kind][0].double())
    assert prepared.numel() == outputs.numel()
    assert len(prepared) == len(labels)


def test_every_kind_has_a_form():
    assert {kind for kind, _, _ in FORMS} == KINDS.keys()


@pytest.mark.parametrize(
    ("outputs", "targets"),
    [
        (randn(B, C), randn(B)),
        (randn(B, C, T), randn(B, C, T)),
        (randn(B, C, H, W), integers(C, B, H)),
        (randn(B, C, H, W, 2), integers(C, B)),
        (torch.tensor(1.0), torch.tensor(1)),
    ],
)
def test_an_unknown_form_names_all_kinds(outputs, targets):
    with pytest.raises(UsageError, match=r"outputs \[.*\] with targets \[.*(?s:.)*binary: (?s:.)*spans: "):
        detect(outputs, targets)


def test_ignored_tokens_are_dropped_in_both_layouts():
    outputs, targets = randn(B, T, C), integers(C, B, T)
    targets[:, 4:] = -100
    logits, labels = KINDS["tokens"].prepare(outputs, targets)
    assert torch.equal(logits, outputs[:, :4].reshape(-1, C))
    assert torch.equal(labels, targets[:, :4].flatten())
    other, _ = KINDS["tokens"].prepare(outputs.movedim(-1, 1), targets)
    assert torch.equal(other, logits)


def test_ignored_pixels_get_one_number():
    targets = integers(C, B, H, W)
    targets[0, 0, 0] = 255
    _, labels = KINDS["masks"].prepare(randn(B, C, H, W), targets)
    assert labels[0, 0, 0] == -100
    _, labels = KINDS["masks"].prepare(randn(1, 300, 1, 1), torch.full((1, 1, 1), 255))
    assert labels.item() == 255  # a class


def test_each_channel_can_be_a_mask():
    targets = integers(2, B, C, H, W)
    outputs, labels = KINDS["masks"].prepare(randn(B, C, H, W), targets)
    assert outputs.shape == (B * C, 1, H, W)
    assert torch.equal(labels, targets.flatten(0, 1))
