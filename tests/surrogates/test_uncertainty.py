import math

import pytest
import torch
from torch import nn

from reloss import ClassificationReLoss, PoseReLoss, ReadingReLoss, SetReLoss, TranslationReLoss
from reloss.runtime.errors import UsageError
from reloss.surrogates.expected.classification import ExpectedClassification
from reloss.surrogates.expected.pose import ExpectedPose
from reloss.surrogates.expected.reading import ExpectedReading
from reloss.surrogates.expected.sets import ExpectedSets
from reloss.surrogates.expected.translation import ExpectedTranslation
from reloss.surrogates.uncertainty import LARGEST, RATE, UncertaintyWeights

LOSSES = torch.tensor(0.4), torch.tensor(3.0)


def test_the_value_is_the_uncertainty_rule():
    mix = UncertaintyWeights(lowest=-0.5).eval()
    mix.log_deviations.data = torch.tensor([0.3, -0.7])
    s = mix.log_deviations.exp()
    expected = 0.9 / (2 * s[0] ** 2) + 3.0 / (2 * s[1] ** 2) + s.log().sum()
    torch.testing.assert_close(mix(*LOSSES), expected)


def test_both_weights_start_at_1():
    mix = UncertaintyWeights()
    assert mix.summary() == pytest.approx({"learned_weight": 1, "ordinary_weight": 1})


def test_a_call_in_training_takes_the_gradient_step_of_autograd():
    mix, copy = UncertaintyWeights(0.1), UncertaintyWeights(0.1)
    copy.eval().log_deviations.requires_grad_()
    copy(*LOSSES).backward()
    mix(*LOSSES)
    torch.testing.assert_close(mix.log_deviations.data, copy.log_deviations.data - RATE * copy.log_deviations.grad)


def test_evaluation_takes_no_step():
    mix = UncertaintyWeights().eval()
    before = mix.log_deviations.clone()
    mix(*LOSSES)
    assert torch.equal(mix.log_deviations, before)


def test_variances_approach_the_losses_above_the_lowest():
    mix = UncertaintyWeights(lowest=-1.0)
    for _ in range(2000):
        mix(torch.tensor(-0.7), torch.tensor(2.5))
    torch.testing.assert_close((2 * mix.log_deviations.data).exp(), torch.tensor([0.3, 2.5]), rtol=1e-3, atol=0)


@pytest.mark.parametrize("value", [0.0, math.inf])
def test_weights_are_bounded(value):
    mix = UncertaintyWeights()
    for _ in range(1000):
        mix(torch.tensor(value), torch.tensor(value))
    assert mix.log_deviations.tolist() == [math.copysign(LARGEST, value - 1)] * 2


def test_losses_receive_their_weight_as_gradient_and_the_deviations_none():
    mix = UncertaintyWeights()
    losses = [value.clone().requires_grad_() for value in LOSSES]
    mix(*losses).backward()
    torch.testing.assert_close(torch.stack([loss.grad for loss in losses]), mix.weights())
    assert mix.log_deviations.grad is None


def test_the_state_is_saved_and_half_precision_leaves_it_alone():
    mix = UncertaintyWeights()
    mix(*LOSSES)
    module = nn.ModuleList([mix]).half()
    assert module[0].log_deviations.dtype == torch.float32
    other = UncertaintyWeights()
    other.load_state_dict(mix.state_dict())
    assert torch.equal(other.log_deviations, mix.log_deviations)


SCORES = torch.tensor([[80.0, 60, -50, -90, 0]]), torch.tensor([[1, 1, 0, 0, 1]])
LOGITS = torch.tensor([[[50.0, 0, 0], [0, 3, 0], [0, 0, 40]]]), torch.tensor([[0, 1, 2]])


@pytest.mark.parametrize(
    ("surrogate", "outputs", "targets"),
    [
        pytest.param(ClassificationReLoss(), *LOGITS, id="classes"),
        pytest.param(ClassificationReLoss(input="probability"), *LOGITS, id="probabilities"),
        pytest.param(ClassificationReLoss(output="absolute"), *LOGITS, id="absolute"),
        pytest.param(ExpectedClassification(), *LOGITS, id="expected classes"),
        pytest.param(ExpectedSets(), *SCORES, id="expected sets"),
        pytest.param(ExpectedSets("binary_f1"), *SCORES, id="F1"),
        pytest.param(PoseReLoss((4, 3)), torch.rand(1, 2, 2, 4, 3), torch.rand(1, 2, 2, 4, 3), id="heatmaps"),
        pytest.param(ExpectedPose(), torch.rand(1, 2, 2, 4, 3), torch.rand(1, 2, 2, 4, 3), id="expected hits"),
        pytest.param(
            ExpectedReading(),
            40 * torch.eye(9)[torch.tensor([[[3, 5]]])],
            torch.tensor([[[[3, 5]]]]),
            id="expected spans",
        ),
        pytest.param(
            ExpectedTranslation(),
            torch.eye(6)[None, None].log().clamp(min=-60),
            torch.arange(6)[:, None].expand(1, 1, 6, 2),
            id="expected n-grams",
        ),
    ],
)
def test_no_loss_is_below_the_lowest(surrogate, outputs, targets):
    loss = surrogate.freeze().per_item(outputs, targets)
    assert surrogate.lowest() <= float(loss) + 1e-5


def test_the_lowest_loss_of_classes_is_that_of_perfect_predictions():
    surrogate = ClassificationReLoss().freeze()
    outputs, targets = LOGITS
    torch.testing.assert_close(surrogate.per_item(1000 * outputs, targets), torch.tensor([surrogate.lowest()]))


@pytest.mark.parametrize(
    "surrogate",
    [SetReLoss(), TranslationReLoss(), ReadingReLoss(), ClassificationReLoss(output="identity")],
    ids=lambda surrogate: type(surrogate).__name__,
)
def test_losses_without_a_known_lowest_value_are_refused(surrogate):
    with pytest.raises(UsageError, match=r"cannot be learned for \w+ReLoss, .* choose surrogate\.features=expected"):
        UncertaintyWeights.of(surrogate)
