"""One class against the rest: its data, its losses, and a run through every stage."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch.nn import functional as F

from reloss.experiment.settings import override
from reloss.experiment.task import Run, find_experiment
from reloss.runtime.errors import RelossError, UsageError
from reloss.runtime.files import read_json
from reloss.surrogates import SetReLoss
from reloss_tasks.classification import data
from reloss_tasks.classification.config import Data
from reloss_tasks.classification.losses import make_loss, smooth_ap, soft_f1

DIGITS8 = "classification/digits8_cnn"
DIGITS = {"name": "digits", "format": "sklearn", "image_size": 8, "validation_fraction": 0.2}


def targets(split):
    return np.array([int(target) for _, target in split])


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    targets = torch.rand(64, generator=generator) < 0.2
    return 2 * torch.randn(64, generator=generator) + targets, targets.long()


@pytest.fixture
def loss_of(tmp_path):
    def make(loss, *settings, **more):
        config = override(find_experiment(DIGITS8)[1], settings)
        return make_loss(Run(config, loss, 0, tmp_path, None, **more), negatives_per_positive=50)

    return make


def test_positives_are_dropped_in_every_split_and_all_negatives_stay():
    everything = data.load(Data(**DIGITS, positive_class=8), None)
    reduced = data.load(Data(**DIGITS, positive_class=8, negatives_per_positive=50), None)
    assert reduced.classes == 1
    for name in ("train", "validation", "test"):
        before, after = targets(getattr(everything, name)), targets(getattr(reduced, name))
        assert set(after) == {0, 1}
        assert (after == 0).sum() == (before == 0).sum()
        assert after.sum() == (before == 0).sum() // 50
        assert getattr(reduced, name).positives == after.sum()
        assert set(getattr(reduced, name).indices) <= set(getattr(everything, name).indices)


def test_one_against_rest_keeps_images_and_their_order():
    plain, rare = data.load(Data(**DIGITS), None).test, data.load(Data(**DIGITS, positive_class=3), None).test
    assert plain.indices == rare.indices
    assert ((targets(plain) == 3) == targets(rare)).all()
    indices = [5, 0, 7]
    for (image, target), index in zip(rare.__getitems__(indices), indices, strict=True):
        assert torch.equal(image, plain[index][0])
        assert target == rare[index][1]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"positive_class": 10}, UsageError, "data.positive_class=10: digits has classes 0 to 9"),
        ({"positive_class": 8, "negatives_per_positive": 5000}, RelossError, "too few"),
    ],
)
def test_impossible_class_ratios_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        data.load(Data(**DIGITS, **changes), None)


def test_negatives_per_positive_needs_a_positive_class():
    with pytest.raises(ValueError, match=r"needs data\.positive_class"):
        Data(**DIGITS, negatives_per_positive=50)


def test_ce_and_weighted_ce(loss_of, batch):
    outputs, targets = batch
    p = outputs.sigmoid()
    positive, negative = -targets * p.log(), -(1 - targets) * (1 - p).log()
    torch.testing.assert_close(loss_of("ce")(*batch), (positive + negative).mean())
    torch.testing.assert_close(loss_of("weighted_ce")(*batch), (50 * positive + negative).mean())


def test_soft_f1_is_cross_entropy_plus_one_minus_f1(loss_of, batch):
    outputs, targets = batch
    p = outputs.sigmoid()
    f1 = 2 * (p * targets).sum() / (2 * (p * targets).sum() + (p * (1 - targets)).sum() + ((1 - p) * targets).sum())
    torch.testing.assert_close(loss_of("soft_f1")(*batch), 1 - f1 + loss_of("ce")(*batch))
    certain = torch.where(targets == 1, 50.0, -50.0)
    assert float(soft_f1(certain, targets)) == pytest.approx(0, abs=1e-6)
    assert float(soft_f1(-certain, targets)) == pytest.approx(1, abs=1e-6)


def test_focal(loss_of, batch):
    outputs, targets = batch
    p_target = torch.where(targets == 1, outputs.sigmoid(), 1 - outputs.sigmoid())
    alpha = torch.where(targets == 1, 0.3, 0.7)
    expected = (-alpha * (1 - p_target) ** 1.5 * p_target.log()).mean()
    loss = loss_of("focal", "train.focal_alpha=0.3", "train.focal_gamma=1.5")(*batch)
    torch.testing.assert_close(loss, expected)


def test_focal_without_focus_is_half_of_ce(loss_of, batch):
    loss = loss_of("focal", "train.focal_alpha=0.5", "train.focal_gamma=0")(*batch)
    torch.testing.assert_close(loss, loss_of("ce")(*batch) / 2)


def test_smooth_ap_becomes_average_precision_as_its_temperature_falls(batch):
    exact = 1 - average_precision_score(batch[1].numpy(), batch[0].numpy())
    assert float(smooth_ap(*batch, temperature=1e-4)) == pytest.approx(exact, abs=1e-5)
    perfect = torch.where(batch[1] == 1, 5.0, -5.0) + 0.01 * batch[0]
    assert float(smooth_ap(perfect, batch[1], temperature=0.1)) == pytest.approx(0, abs=1e-5)


def test_smooth_ap_has_the_gradient_of_its_formula_and_none_without_positives(batch):
    outputs = batch[0].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda outputs: _smooth_ap_by_loops(outputs, batch[1]), outputs)
    expected = _smooth_ap_by_loops(batch[0], batch[1])
    torch.testing.assert_close(smooth_ap(*batch, temperature=0.5), expected)
    leaf = batch[0].clone().requires_grad_()
    loss = smooth_ap(leaf, torch.zeros_like(batch[1]), temperature=0.5)
    loss.backward()
    assert loss == 0
    assert (leaf.grad == 0).all()


def _smooth_ap_by_loops(outputs, targets, temperature=0.5):
    """Equation 1 of Brown et al. (2020), with sigmoids for the comparisons, as written."""
    positives = [i for i in range(len(outputs)) if targets[i] == 1]
    total = 0.0
    for i in positives:
        above = {j: torch.sigmoid((outputs[j] - outputs[i]) / temperature) for j in range(len(outputs)) if j != i}
        total = total + (1 + sum(above[j] for j in positives if j != i)) / (1 + sum(above.values()))
    return 1 - total / len(positives)


def test_a_learned_loss_has_cross_entropy_added(loss_of, batch):
    torch.manual_seed(0)
    surrogate = SetReLoss().freeze()
    expected = surrogate(*batch) + F.binary_cross_entropy_with_logits(batch[0], batch[1].float())
    torch.testing.assert_close(loss_of("reloss", surrogate=surrogate)(*batch), expected)
    alone = loss_of("reloss", "train.ordinary_weight=0", surrogate=surrogate)
    assert torch.equal(alone(*batch), surrogate(*batch))


def test_losses_for_several_classes_are_refused(loss_of):
    with pytest.raises(UsageError, match="'label_smoothing' is not defined for a positive class; choose one of ce"):
        loss_of("label_smoothing")


def test_two_metrics_teach_losses_from_one_bank_and_one_baseline(tmp_path, cli):
    small = ("train.epochs=6", "learn.steps=10", "learn.items=16")
    where = ("--data", tmp_path / "data", "--runs", tmp_path / "runs", "--track", "off")
    for metric in ("average_precision", "binary_f1"):
        code, _, err = cli("run", DIGITS8, "--loss", "reloss", *where, "--set", *small, f"metric={metric}")
        assert code == 0, err
    home = tmp_path / "runs" / DIGITS8
    assert len(list(home.glob("ce*/seed*"))) == 1
    cards = [read_json(path) for path in home.glob("surrogates/*/surrogate.json")]
    assert {card["metric"] for card in cards} == {"average_precision", "binary_f1"}
    (summary,) = (read_json(path) for path in home.glob("reloss@*metric=binary_f1*/seed0/summary.json"))
    names = {"average_precision", "binary_f1", "accuracy", "error"}
    assert names <= summary["scores"].keys()
    assert all(0 <= summary["scores"][name] <= 1 for name in names)
