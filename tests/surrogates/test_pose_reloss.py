import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from reloss import PoseReLoss
from reloss.learning import LearnOptions, PredictionBank, fit_surrogate
from reloss.metrics import heatmap_pck
from reloss.runtime.errors import RelossError
from reloss.surrogates import build
from reloss.surrogates.pose import visible


def heatmaps(n=2, b=4, k=3, size=(12, 8), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.rand(n, b, k, *size, generator=generator) for _ in range(2))


def surrogate_of_seed(seed=0, **options):
    torch.manual_seed(seed)
    return PoseReLoss(**{"size": (12, 8), "monotone": False, **options})


@pytest.mark.parametrize("size", [(64, 48), (96, 72), (7, 5)])
def test_parameters_match_the_release(size):
    assert {name: tuple(value.shape) for name, value in PoseReLoss(size).named_parameters()} == {
        "logits_fcs.0.weight": (8, size[0] * size[1]),
        "logits_fcs.0.bias": (8,),
        "logits_fcs.2.weight": (1, 8),
        "logits_fcs.2.bias": (1,),
    }


def test_loss_is_each_joints_squared_error_times_its_weight():
    outputs, targets = heatmaps()
    surrogate = surrogate_of_seed(scale=3.0)
    expected = torch.zeros(2)
    for n in range(2):
        for b in range(4):
            for k in range(3):
                errors = (outputs[n, b, k] - targets[n, b, k]).square().flatten()
                expected[n] += 3 * errors.mean() * surrogate.logits_fcs(errors).sigmoid()[0] / 12
    assert_close(surrogate.per_item(outputs, targets), expected)
    assert_close(surrogate(outputs[1], targets[1]), expected[1])


def test_invisible_joints_count_as_zero():
    outputs, targets = heatmaps()
    targets[:, :, 1] = 0
    surrogate = surrogate_of_seed()
    weights = torch.ones(2, 4, 3)
    weights[..., 1] = 0
    losses = surrogate.per_item(outputs, targets)
    assert torch.equal(visible(targets), weights)
    assert_close(losses, surrogate.per_item(outputs, targets, weights), rtol=0, atol=0)
    visible_joints = [0, 2]
    assert_close(losses, surrogate.per_item(outputs[:, :, visible_joints], targets[:, :, visible_joints]) * 2 / 3)
    outputs.requires_grad_()
    (gradient,) = torch.autograd.grad(surrogate.per_item(outputs, targets).sum(), outputs)
    assert gradient[:, :, 1].abs().max() == 0
    assert gradient[:, :, visible_joints].abs().min() > 0


def test_weights_multiply_the_loss_of_a_joint():
    outputs, targets = heatmaps()
    surrogate = surrogate_of_seed()
    ones = torch.ones(2, 4, 3)
    assert_close(surrogate.per_item(outputs, targets, ones / 2), surrogate.per_item(outputs, targets, ones) / 2)
    assert surrogate.per_item(outputs, targets, 0 * ones).tolist() == [0, 0]


def test_monotone_never_falls_as_an_error_grows():
    outputs, targets = heatmaps()
    surrogate = surrogate_of_seed(monotone=True)
    assert surrogate_of_seed().state_dict().keys() == surrogate.state_dict().keys()
    errors = (outputs - targets).requires_grad_()
    (slopes,) = torch.autograd.grad(surrogate.per_item(targets + errors, targets).sum(), errors)
    assert (slopes * errors.sign() > 0).all()
    losses = torch.stack([surrogate.per_item(targets + size * errors, targets) for size in (0.0, 0.5, 1.0, 10.0)])
    assert_close(losses[0], torch.zeros(2), rtol=0, atol=1e-6)
    assert (losses.diff(dim=0) > 0).all()


def test_released_network_can_learn_that_the_worst_is_best():
    outputs, targets = heatmaps()
    surrogate = surrogate_of_seed()
    torch.nn.init.constant_(surrogate.logits_fcs[2].weight, -1.0)
    torch.nn.init.constant_(surrogate.logits_fcs[0].weight, 0.1)
    near, far = (surrogate.per_item(targets + size * (outputs - targets), targets) for size in (0.5, 2.0))
    assert (far < near).all()


def test_no_visible_joint_gives_zero_loss_and_gradient():
    outputs, targets = heatmaps()
    outputs.requires_grad_()
    losses = surrogate_of_seed().per_item(outputs, 0 * targets)
    assert losses.tolist() == [0, 0]
    losses.sum().backward()
    assert outputs.grad.abs().max() == 0


@pytest.mark.parametrize("joints", [1, 13, 14])
def test_number_of_joints_is_free_and_perfect_heatmaps_cost_nothing(joints):
    outputs, targets = heatmaps(k=joints)
    surrogate = surrogate_of_seed()
    assert (surrogate.per_item(outputs, targets) > 0).all()
    assert surrogate.per_item(targets, targets).tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_loss_is_float32_under_autocast(dtype):
    outputs, targets = heatmaps()
    surrogate = surrogate_of_seed()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = surrogate.per_item(outputs.to(dtype), targets)
    assert losses.dtype == torch.float32
    assert_close(losses, surrogate.per_item(outputs.to(dtype).float(), targets), rtol=0, atol=0)


def test_wrong_shapes_are_refused():
    outputs, targets = heatmaps()
    surrogate = surrogate_of_seed()
    with pytest.raises(ValueError, match=r"for heatmaps of \[12, 8\], not \[8, 12\]"):
        surrogate.per_item(outputs.mT, targets.mT)
    with pytest.raises(ValueError, match=r"expected outputs \[N, B, K, H, W\]"):
        surrogate.per_item(outputs, targets[:, :, :2])
    with pytest.raises(ValueError, match=r"weights \[N, B, K\]"):
        surrogate.per_item(outputs, targets, torch.ones(2, 4))
    with pytest.raises(ValueError, match="height and the width"):
        PoseReLoss((64,))


def test_ordinary_loss_is_the_squared_error_of_visible_joints():
    outputs, targets = heatmaps()
    targets[0, 1, 2] = 0
    errors = (outputs - targets).square().mean((-2, -1))
    errors[0, 1, 2] = 0
    assert_close(PoseReLoss.ordinary_loss(outputs, targets), errors.mean((-2, -1)))


def moving_joints(path, size=(16, 12), items=80, b=8, k=4):
    """Record heatmaps with one bump each; the predicted place gets closer to the true one with every step."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.arange(size[0]).view(-1, 1), torch.arange(size[1])
    bank = PredictionBank.create(path, item_size=b)

    def bumps(y, x):
        return torch.exp(-((rows - y[..., None, None]) ** 2 + (columns - x[..., None, None]) ** 2) / 4)

    for step in range(items):
        y = torch.randint(2, size[0] - 2, (b, k), generator=generator).float()
        x = torch.randint(2, size[1] - 2, (b, k), generator=generator).float()
        offsets = (2 * (1 - step / items) * torch.randn(2, b, k, generator=generator)).round()
        bank.append(bumps(y + offsets[0], x + offsets[1]), bumps(y, x), step)
    bank.finish()
    return bank


@pytest.mark.parametrize(("output", "least"), [("identity", 0.92), ("monotone", 0.88)])
def test_learns_to_rank_as_pck_and_reloads(tmp_path, output, least):
    bank = moving_joints(tmp_path / "bank")
    options = LearnOptions(steps=80, items=32, penalty="off", mixture="shuffled", validate_every=20)
    surrogate = build("pose", bank.output_shape(), output=output)
    fit = fit_surrogate(surrogate, bank, heatmap_pck, options=options)
    assert fit.surrogate.monotone == (output == "monotone")
    assert fit.spearman > least
    assert fit.spearman_synthetic > 0.8
    fit.surrogate.save_pretrained(tmp_path / "saved")
    loaded = PoseReLoss.from_pretrained(tmp_path / "saved")
    outputs, targets = bank.items(torch.arange(3))
    assert loaded.size == (16, 12)
    assert_close(loaded.per_item(outputs, targets), fit.surrogate.per_item(outputs, targets), rtol=0, atol=0)


def test_learn_command(tmp_path, cli):
    moving_joints(tmp_path / "bank")
    words = ("learn", "--bank", tmp_path / "bank", "--metric", "heatmap_pck", "--out", tmp_path / "surrogate")
    fast = ("--set", "steps=20", "items=8", "penalty=off", "mixture=shuffled")
    assert cli(*words, "--kind", "pose", *fast)[0] == 0
    assert load_file(tmp_path / "surrogate" / "surrogate.safetensors")["logits_fcs.0.weight"].shape == (8, 16 * 12)
    code, _, err = cli(*words[:-1], tmp_path / "other", "--kind", "classification", *fast)
    assert code == 1
    assert "ClassificationReLoss cannot learn from the bank" in err


def test_bank_of_another_kind_is_refused(tmp_path, improving_bank, cli):
    bank = improving_bank()
    with pytest.raises(ValueError, match=r"expected heatmaps \[K, H, W\] of an example, not \[5\]"):
        build("pose", bank.output_shape())
    words = ("learn", "--bank", bank.path, "--metric", "heatmap_pck", "--out", tmp_path / "out", "--kind", "pose")
    code, _, err = cli(*words)
    assert (code, err.count("\n")) == (1, 1)
    assert f"--kind pose does not fit the bank {bank.path}" in err
    with pytest.raises(RelossError, match="is empty"):
        PredictionBank.create(tmp_path / "empty").output_shape()
