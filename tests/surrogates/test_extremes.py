"""Every loss and its gradients stay finite for outputs of any size, from denormal numbers to infinity."""

import math
from itertools import cycle

import pytest
import torch
from torch import nn

from reloss import ClassificationReLoss, PoseReLoss, ReadingReLoss, SetReLoss, TranslationReLoss
from reloss.surrogates.expected.classification import ExpectedClassification
from reloss.surrogates.expected.pose import ExpectedPose
from reloss.surrogates.expected.pose_ranking import ExpectedPoseRanking
from reloss.surrogates.expected.reading import ExpectedReading
from reloss.surrogates.expected.sets import ExpectedSets
from reloss.surrogates.expected.top import ExpectedTop
from reloss.surrogates.expected.translation import ExpectedTranslation

SIZES = (5e-324, 1e-45, 1e-40, 1e-20, 1e-9, 1.0, 1e4, 6e4, 1e10, 1e19, 1e20, 3e38, 1e300, math.inf)
ITEMS = len(SIZES)
OUTPUTS = ("monotone", "identity", "absolute")
SMALL = {"width": 8, "feedforward": 8, "heads": 2, "length": 8}

LOSSES = [
    *(ClassificationReLoss(input, output) for input in ("probability", "log_probability") for output in OUTPUTS),
    *(ReadingReLoss(structure, input, output) for structure in ("points", "span")
      for input in ("probability", "log_probability") for output in OUTPUTS),
    *(SetReLoss(output) for output in OUTPUTS),
    *(TranslationReLoss(output, average=average, **SMALL) for output in OUTPUTS for average in ("sentence", "token")),
    *(PoseReLoss((6, 5), monotone) for monotone in (True, False)),
    *(kind(metric=metric) for kind in (ExpectedClassification, ExpectedSets, ExpectedTop, ExpectedPose, ExpectedReading,
                                       ExpectedTranslation) for metric in (None, *kind.EXPECTED)),
    ExpectedPoseRanking(),
]  # fmt: skip


def normal(*shape: int) -> torch.Tensor:
    """Items of every size: [ITEMS, *shape] in float64."""
    sizes = torch.tensor(SIZES, dtype=torch.float64).view(ITEMS, *[1] * len(shape))
    return torch.randn(ITEMS, *shape, dtype=torch.float64) * sizes


def batches(loss: nn.Module) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Outputs and targets of every form that the loss takes."""
    torch.manual_seed(0)
    if isinstance(loss, ClassificationReLoss | ExpectedClassification | SetReLoss | ExpectedSets):
        is_set = isinstance(loss, SetReLoss | ExpectedSets)
        pairs = [(normal(6, classes), torch.randint(classes, (ITEMS, 6))) for classes in ((2, 5) if is_set else (1, 5))]
        return pairs + [(normal(size), torch.randint(2, (ITEMS, size))) for size in (1, 6)] * is_set
    if isinstance(loss, PoseReLoss | ExpectedPose):
        shape, usual = (3, 2, 6, 5), torch.rand(ITEMS, 3, 2, 6, 5, dtype=torch.float64)
        return [(normal(*shape), usual), (usual, normal(*shape).abs()), (normal(*shape), normal(*shape).abs())]
    if isinstance(loss, ReadingReLoss | ExpectedReading):
        return [(normal(4, 2, 9), torch.randint(9, (ITEMS, 4, 2, 1)).expand(-1, -1, -1, 2))]
    tokens = torch.randint(7, (ITEMS, 4, 5, 1)).expand(-1, -1, -1, 2)
    matrices = [(-normal(4, 5, 5).abs(), tokens)]
    return matrices if isinstance(loss, ExpectedTranslation) else [*matrices, (-normal(4, 5).abs(), tokens)]


@pytest.mark.parametrize(
    ("loss", "dtype"),
    [*((loss, torch.float32) for loss in LOSSES), *zip(LOSSES[::3], cycle((torch.float64, torch.float16)))],
)
def test_losses_and_gradients_are_finite(loss, dtype):
    loss.to(torch.float64 if dtype == torch.float64 else torch.float32)
    for outputs, targets in batches(loss):
        outputs = outputs.to(dtype).requires_grad_()
        targets = targets.to(dtype) if targets.is_floating_point() else targets
        losses = loss.per_item(outputs, targets)
        assert losses.isfinite().all()
        assert torch.autograd.grad(losses.sum(), outputs)[0].isfinite().all()
        losses, norms = loss.losses_and_norms(outputs.detach(), targets)
        assert losses.isfinite().all()
        assert norms.isfinite().all()
        weights = list(loss.parameters())
        for gradient in torch.autograd.grad(losses.sum() + norms.sum(), weights, allow_unused=True) if weights else ():
            assert gradient is None or gradient.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES[1::4])
def test_weights_in_half_precision_are_used_in_float32(loss):
    for outputs, targets in batches(loss.half().eval()):
        outputs = outputs.float().requires_grad_()
        losses = loss.per_item(outputs, targets)
        assert losses.dtype == torch.float32
        assert losses.isfinite().all()
        assert torch.autograd.grad(losses.sum(), outputs)[0].isfinite().all()
        assert torch.equal(loss.float().per_item(outputs, targets), losses)
        loss.half()


def test_nan_shows_in_the_loss():
    for loss in LOSSES[:3]:
        assert loss.per_item(torch.tensor([[[0.0, math.nan]]]), torch.tensor([[0]])).isnan().all()


def test_a_single_class_is_certain_whatever_its_logit():
    loss = ClassificationReLoss()
    logits = torch.tensor([0.0, 1e30, -math.inf, math.inf]).view(4, 1, 1)
    assert (loss.per_item(logits, torch.zeros(4, 1, dtype=torch.long)).diff() == 0).all()
