import pytest
import torch
from torch.testing import assert_close

from reloss import ClassificationReLoss
from reloss.learning import LearnOptions
from reloss.learning.items import Items
from reloss.learning.objective import gradient_penalty, rank_objective, value_objective
from reloss.metrics import accuracy
from reloss.ranking import soft_spearman
from reloss.surrogates.base import SurrogateLoss, gradient_norms


class LinearLoss(SurrogateLoss):
    """The mean over examples of a weighted sum of the outputs; the gradient of an example's own loss is the weights."""

    def __init__(self, *weights: float) -> None:
        super().__init__()
        self.weights = torch.nn.Parameter(torch.tensor(weights))

    def features(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return outputs

    def network(self, features: torch.Tensor) -> torch.Tensor:
        return (features * self.weights).sum(-1)

    ordinary_loss = None


def items(n: int = 8, b: int = 6, c: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, b, c, generator=generator), torch.randint(c, (n, b), generator=generator)


@pytest.mark.parametrize("b", [1, 4, 128])
def test_penalty_of_a_linear_loss(b):
    """Each example's own slope is |(3, 4)| = 5; the slope of the item's mean loss is 5/B."""
    outputs, targets = items(b=b)
    outputs.requires_grad_()
    _, norms = LinearLoss(3.0, 4.0).losses_and_norms(outputs, targets)
    assert_close(gradient_penalty(norms, "example"), torch.full((8,), 16.0))
    assert_close(gradient_penalty(norms, "one_sided"), torch.full((8,), 16.0))
    assert_close(gradient_penalty(norms / 10, "one_sided"), torch.zeros(8))
    assert_close(gradient_penalty(norms, "item"), torch.full((8,), (5 / b - 1) ** 2))


@pytest.mark.parametrize(("slope", "b"), [("example", 1), ("item", 6)])
def test_penalty_equals_a_loop_over_items(slope, b):
    """With slope `example`, one item of 6 examples is the same as six items of one example."""
    torch.manual_seed(0)
    surrogate = ClassificationReLoss(input="log_probability")
    outputs, targets = items()
    outputs.requires_grad_()
    batched = gradient_penalty(surrogate.losses_and_norms(outputs, targets)[1], slope)
    for index in range(8):
        squares = []
        for part in range(0, 6, b):
            piece = outputs[index, part : part + b].detach().requires_grad_()
            (gradient,) = torch.autograd.grad(surrogate(piece, targets[index, part : part + b]), piece)
            squares.append((gradient.norm(dim=-1) - 1).square())
        assert_close(batched[index], torch.cat(squares).mean())


def test_gradient_norms_cover_all_dimensions_of_an_example():
    outputs = torch.randn(2, 3, 4, 5, requires_grad=True)
    losses = (outputs * 2).sum((1, 2, 3))
    assert_close(gradient_norms(losses, outputs), torch.full((2, 3), 2 * 20**0.5))


@pytest.mark.parametrize("fidelity", ["released", "corrected"])
def test_the_rank_objective_is_the_sum_of_its_parts(fidelity):
    outputs, targets = items()
    metric = accuracy(outputs, targets)
    surrogate = ClassificationReLoss(input="log_probability", output="identity")
    options = LearnOptions(fidelity=fidelity, penalty_weight=3)
    total, correlation, penalty = rank_objective(surrogate, Items(outputs, targets), metric, options)
    losses = surrogate.per_item(outputs, targets)
    expected = soft_spearman(-losses, metric, standardize=options.standardize, ties=options.ties)
    assert_close(correlation, expected.detach())
    assert_close(total.detach(), -correlation + 3 * penalty)
    assert total.requires_grad
    assert not penalty.requires_grad


def test_a_lower_loss_where_the_metric_is_higher_gives_a_positive_correlation():
    outputs, targets = items()
    quality = -outputs[..., 0].mean(-1)
    for metric, sign in ((quality, 1), (-quality, -1)):
        objective = rank_objective(LinearLoss(1.0, 0.0), Items(outputs, targets), metric, LearnOptions())
        assert sign * float(objective.correlation) > 0.95


def test_without_a_penalty():
    outputs, targets = items()
    metric = accuracy(outputs, targets)
    objective = rank_objective(LinearLoss(3.0, 4.0), Items(outputs, targets), metric, LearnOptions(penalty_weight=0))
    assert objective.penalty == 0
    assert objective.total.item() == -objective.correlation.item()


def test_the_penalty_reaches_the_parameters():
    """d/dw of lambda (|w| - 1)^2 at w = (3, 4) is 2 lambda (|w| - 1) w / |w|. A constant metric adds nothing."""
    outputs, targets = items()
    surrogate = LinearLoss(3.0, 4.0)
    rank_objective(surrogate, Items(outputs, targets), torch.ones(8), LearnOptions(penalty_weight=10)).total.backward()
    assert_close(surrogate.weights.grad, torch.tensor([48.0, 64.0]))


def test_value_objective_is_the_squared_difference_from_one_minus_the_metric():
    outputs, targets = items()
    surrogate, metric = LinearLoss(1.0, -1.0), torch.linspace(0, 1, 8)
    losses = (outputs[..., 0] - outputs[..., 1]).mean(-1)
    total, correlation, penalty = value_objective(surrogate, Items(outputs, targets), metric)
    assert_close(total.detach(), ((losses - (1 - metric)) ** 2).mean())
    assert (float(correlation), float(penalty)) == (0, 0)
