import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from reloss import ClassificationReLoss
from reloss.surrogates import SurrogateLoss
from reloss.surrogates.curve import EXACT, KNOTS, quantile_places
from reloss.surrogates.options import PRESETS

RELEASED_SHAPES = {
    "logits_fcs.0.weight": (128, 1),
    "logits_fcs.0.bias": (128,),
    "logits_fcs.2.weight": (128, 128),
    "logits_fcs.2.bias": (128,),
    "loss.0.weight": (128, 128),
    "loss.0.bias": (128,),
    "loss.2.weight": (1, 128),
    "loss.2.bias": (1,),
}


def items(n: int = 3, b: int = 7, c: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, b, c, generator=generator), torch.randint(c, (n, b), generator=generator)


def surrogate_of_seed(seed: int = 0, **options) -> ClassificationReLoss:
    torch.manual_seed(seed)
    return ClassificationReLoss(**{**PRESETS["released"], **options})


def test_parameters_match_the_release():
    assert {name: tuple(p.shape) for name, p in ClassificationReLoss().named_parameters()} == RELEASED_SHAPES


def test_items_are_independent():
    outputs, targets = items()
    surrogate = surrogate_of_seed()
    losses = surrogate.per_item(outputs, targets)
    assert losses.shape == (3,)
    for index in range(3):
        assert_close(losses[index], surrogate(outputs[index], targets[index]))


@pytest.mark.parametrize("options", [{}, {"input": "log_probability", "output": "identity", "scale": 2.5}])
def test_loss_is_the_mean_of_the_curve(options):
    outputs, targets = items()
    surrogate = surrogate_of_seed(**options)
    probability = outputs[1].softmax(-1)[torch.arange(7), targets[1]]
    score = probability.log() if options else probability
    raw = surrogate.loss(surrogate.logits_fcs(score[:, None])).squeeze(-1)
    expected = 2.5 * raw if options else raw.abs()
    assert_close(surrogate(outputs[1], targets[1]), expected.mean())


def test_absolute_folds_the_curve_and_identity_does_not():
    surrogates = [surrogate_of_seed(output=output) for output in ("absolute", "identity")]
    for surrogate in surrogates:
        torch.nn.init.constant_(surrogate.loss[2].bias, -5)
    folded, signed = (surrogate.curve(torch.linspace(0, 1, 11)) for surrogate in surrogates)
    assert_close(folded, -signed)
    assert signed.max() < 0


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("input", ["probability", "log_probability"])
def test_a_monotone_loss_falls_as_the_probability_rises(input, seed):
    """For any weights: fresh ones, and random ones with both signs."""
    surrogate = surrogate_of_seed(seed, input=input, output="monotone", width=16)
    inputs = torch.linspace(0.001, 1, 200)
    inputs = (inputs if input == "probability" else inputs.log()).requires_grad_()
    for redraw in (False, True):
        if redraw:
            for parameter in surrogate.parameters():
                torch.nn.init.normal_(parameter, std=0.5)
        (slopes,) = torch.autograd.grad(surrogate.curve(inputs).sum(), inputs)
        assert slopes.max() < 0


def test_a_monotone_loss_can_bend_both_ways():
    """-tanh is concave, then convex."""
    inputs = torch.linspace(-3, 3, 61)
    surrogate = surrogate_of_seed(output="monotone", width=16)
    optimizer = torch.optim.Adam(surrogate.parameters(), lr=0.02)
    for _ in range(400):
        error = (surrogate.curve(inputs) + inputs.tanh()).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    assert error < 0.002


def test_scale_multiplies_loss_and_gradient():
    outputs, targets = items(n=1)
    gradients = []
    for scale in (1.0, 3.0):
        logits = outputs.clone().requires_grad_()
        surrogate_of_seed(scale=scale).freeze()(logits[0], targets[0]).backward()
        gradients.append(logits.grad)
    assert_close(gradients[1], 3 * gradients[0])


@pytest.mark.parametrize("margin", [-200.0, 200.0])
def test_gradient_where_the_probability_is_zero_or_one(margin):
    """p saturates at 0 and at 1. Its logarithm saturates only at 1, where nothing is left to learn."""
    logits = torch.tensor([[margin, 0.0, 0.0]])
    gradients = {}
    for input in ("probability", "log_probability"):
        leaf = logits.clone().requires_grad_()
        surrogate_of_seed(input=input, output="identity")(leaf, torch.tensor([0])).backward()
        gradients[input] = float(leaf.grad.abs().max())
    assert gradients["probability"] == 0
    assert (gradients["log_probability"] > 1e-3) == (margin < 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_a_float32_loss(dtype):
    outputs, targets = items()
    surrogate = surrogate_of_seed()
    outputs = outputs.to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        losses = surrogate.per_item(outputs, targets)
    assert losses.dtype == torch.float32
    assert_close(losses, surrogate.per_item(outputs.float(), targets), rtol=0, atol=0)


def test_ordinary_loss_is_the_cross_entropy():
    outputs, targets = items()
    expected = torch.stack([cross_entropy(o, t) for o, t in zip(outputs, targets, strict=True)])
    assert_close(ClassificationReLoss.ordinary_loss(outputs, targets), expected)


def test_gradient_equals_finite_differences():
    outputs, targets = items(n=2, b=3)
    surrogate = surrogate_of_seed(input="log_probability", output="identity").double()
    assert torch.autograd.gradcheck(lambda o: surrogate.per_item(o, targets), outputs.double().requires_grad_())


@pytest.mark.parametrize(
    ("outputs", "targets"), [((7, 5), (7,)), ((3, 7, 5), (3, 6)), ((3, 7, 5), (7,)), ((3, 7, 5), (3, 7, 1))]
)
def test_shapes_must_agree(outputs, targets):
    with pytest.raises(ValueError, match=r"expected outputs \[N, B, C\] and targets \[N, B\]"):
        ClassificationReLoss().per_item(torch.zeros(outputs), torch.zeros(targets, dtype=torch.long))


def test_unknown_options():
    with pytest.raises(ValueError, match="logits"):
        ClassificationReLoss(input="logits")
    with pytest.raises(ValueError, match="square"):
        ClassificationReLoss(output="square")


def many_items(n: int = 160, b: int = 128, c: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits from chance to certainty (p rounds to 1), a tenth of the targets wrong: more examples than EXACT."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(c, (n, b), generator=generator)
    margin = torch.linspace(0, 30, n)[:, None, None] * torch.nn.functional.one_hot(targets, c)
    outputs = 2 * torch.randn(n, b, c, generator=generator) + margin
    wrong = torch.rand(n, b, generator=generator) < 0.1
    return outputs, torch.where(wrong, torch.randint(c, (n, b), generator=generator), targets)


SHAPES = [(input, output) for input in ("probability", "log_probability") for output in ("absolute", "monotone")]


@pytest.mark.parametrize(("input", "output"), SHAPES)
@pytest.mark.parametrize("n", [8, 160])
def test_analytic_norms_equal_autograd(input, output, n):
    outputs, targets = (part[:: 160 // n] for part in many_items())
    surrogate = surrogate_of_seed(input=input, output=output)
    losses, norms = surrogate.losses_and_norms(outputs, targets, surrogate.statistics(outputs))
    expected_losses, expected_norms = SurrogateLoss.losses_and_norms(surrogate, outputs, targets)
    assert_close(losses, expected_losses, rtol=1e-5, atol=1e-6)
    assert_close(norms, expected_norms, rtol=1e-3, atol=5e-3 * float(expected_norms.detach().max()))
    weights = torch.linspace(-1, 1, n)
    for ours, theirs in ((losses, expected_losses), (norms.square().mean(-1), expected_norms.square().mean(-1))):
        gradients = [
            torch.cat(
                [
                    g.flatten()
                    for g in torch.autograd.grad(
                        (x * weights).sum(), list(surrogate.parameters()), retain_graph=True, materialize_grads=True
                    )
                ]
            )
            for x in (ours, theirs)
        ]
        assert float((gradients[0] - gradients[1]).norm() / gradients[1].norm()) < 1e-3


def test_missing_statistics_are_computed():
    outputs, targets = items()
    surrogate = surrogate_of_seed()
    expected = surrogate.losses_and_norms(outputs, targets, surrogate.statistics(outputs))
    for ours, theirs in zip(surrogate.losses_and_norms(outputs, targets), expected, strict=True):
        assert torch.equal(ours, theirs)


def test_equal_inputs_give_finite_losses():
    surrogate = surrogate_of_seed(input="log_probability", output="monotone")
    outputs, targets = torch.zeros(200, 128, 4), torch.zeros(200, 128, dtype=torch.long)
    losses, norms = surrogate.losses_and_norms(outputs, targets)
    assert_close(losses, surrogate.curve(torch.tensor(0.25).log()).expand(200))
    _, expected = SurrogateLoss.losses_and_norms(surrogate, outputs[:1], targets[:1])
    assert_close(norms, expected.expand(200, 128))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_units_are_elu(dtype):
    surrogate = surrogate_of_seed(output="identity").to(dtype)
    inputs = torch.linspace(0, 1, 50, dtype=dtype)
    assert_close(surrogate.curve(inputs), surrogate.loss(surrogate.logits_fcs(inputs[:, None])).squeeze(-1))
    surrogate.logits_fcs[0].bias.data.zero_()  # at exactly 0, both branches of ELU could add their slopes
    at_zero = torch.zeros(1, dtype=dtype, requires_grad=True)
    ours, theirs = surrogate.curve(at_zero).sum(), surrogate.loss(surrogate.logits_fcs(at_zero[:, None])).sum()
    assert_close(torch.autograd.grad(ours, at_zero), torch.autograd.grad(theirs, at_zero))


def test_quantile_places_reach_from_first_to_last_value():
    for count in (EXACT + 1, 2**24 + 3, 2**31 + 1):  # in float32, the second one would end at 2**24 + 4
        places = quantile_places(count, torch.device("cpu"))
        assert (len(places), int(places[0]), int(places[-1])) == (KNOTS // 2, 0, count - 1)
        assert int(places.diff().max() - places.diff().min()) <= 1
