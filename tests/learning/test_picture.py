import pytest
import torch

from reloss import ClassificationReLoss, PoseReLoss, ReadingReLoss, TranslationReLoss
from reloss.learning import LearnOptions, PredictionBank
from reloss.learning.picture import SHOWN, loss_curve, measure_held_out, measure_picture
from reloss.learning.sampling import split_items
from reloss.metrics import accuracy


@pytest.mark.parametrize("input", ["probability", "log_probability"])
def test_the_curve_and_its_slope_in_the_logit(input):
    torch.manual_seed(0)
    surrogate = ClassificationReLoss(input=input, output="monotone").double()
    logits = torch.linspace(-4, 4, 50, dtype=torch.float64)
    p, losses, slopes = loss_curve(surrogate, logits)
    torch.testing.assert_close(p, logits.sigmoid())
    two_classes = torch.stack((logits, torch.zeros_like(logits)), -1)
    expected = surrogate.per_item(two_classes[:, None], torch.zeros(50, 1, dtype=torch.long))
    torch.testing.assert_close(losses, expected.detach())
    step = 1e-6
    rise = loss_curve(surrogate, logits + step)[1] - loss_curve(surrogate, logits - step)[1]
    torch.testing.assert_close(slopes, rise / (2 * step), rtol=1e-4, atol=1e-6)
    assert (slopes <= 0).all()


def test_a_picture_has_the_losses_of_held_out_items_and_the_curve(improving_bank):
    bank, options = improving_bank(steps=60), LearnOptions()
    torch.manual_seed(0)
    surrogate = ClassificationReLoss(input="log_probability", output="monotone").freeze()
    outputs, targets = bank.items(split_items(len(bank), options)[1])
    points = measure_picture(surrogate, bank, accuracy, options)
    assert points.keys() == {"items", "curve"}
    assert points["items"]["metric"] == pytest.approx(accuracy(outputs, targets).tolist(), rel=1e-4)
    ordinary = torch.nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none")
    assert points["items"]["ordinary"] == pytest.approx(ordinary.view_as(targets).mean(-1).tolist(), rel=1e-4)
    assert points["items"]["surrogate"] == pytest.approx(surrogate.per_item(outputs, targets).tolist(), rel=1e-4)
    curve = points["curve"]
    assert curve["ordinary"] == pytest.approx([-torch.tensor(p).log().item() for p in curve["probability"]], abs=1e-3)
    assert curve["surrogate"][-1] == 0
    assert curve["surrogate"] == sorted(curve["surrogate"], reverse=True)


def test_many_items_are_sampled_evenly(improving_bank):
    bank = improving_bank(steps=2000, item_size=4)
    series = measure_held_out(ClassificationReLoss(), bank, accuracy, LearnOptions())
    assert {len(values) for values in series.values()} == {SHOWN}
    early, late = series["metric"].chunk(2)
    assert late.mean() > early.mean() + 0.1  # from the whole training, in order


@pytest.mark.parametrize(
    ("surrogate", "outputs", "targets"),
    [
        (PoseReLoss(size=(8, 6)), torch.rand(6, 3, 8, 6), torch.rand(6, 3, 8, 6)),
        (ReadingReLoss(), torch.randn(6, 2, 10), torch.tensor([[[2, 4]]]).expand(6, -1, -1)),
        (TranslationReLoss(width=8, feedforward=8, heads=2), -torch.rand(6, 5), torch.ones(6, 5, 2, dtype=torch.long)),
    ],
    ids=["pose", "reading", "translation"],
)
def test_a_loss_without_a_curve_is_shown_by_single_examples(tmp_path, surrogate, outputs, targets):
    bank = PredictionBank.create(tmp_path / "bank", item_size=6)
    for step in range(20):
        bank.append(outputs, targets, step)
    bank.finish()
    surrogate.freeze()
    points = measure_picture(surrogate, bank, lambda outputs, targets: torch.zeros(len(outputs)), LearnOptions())
    assert points.keys() == {"items", "examples"}
    values, count = points["examples"], 4 * 6  # 4 held-out items
    assert len(values["surrogate"]) == count
    outputs, targets = bank.items(torch.tensor([0]))
    expected = surrogate.per_item(outputs[0, :, None], targets[0, :, None])
    assert values["surrogate"][:6] == pytest.approx(expected.tolist(), rel=1e-3)
