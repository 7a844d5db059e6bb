import pytest
import torch
from scipy.stats import kendalltau, spearmanr

from reloss import ClassificationReLoss, PoseReLoss, ReadingReLoss, TranslationReLoss
from reloss.learning import LearnOptions, PredictionBank
from reloss.learning.diagnostics import SHOWN, loss_curve, measure_held_out, picture, rank_checkpoints
from reloss.learning.sampling import split_items
from reloss.metrics import accuracy


def checkpoints(seed, epochs=20, examples=64, classes=5):
    """Predictions that get better with the epoch, for targets that are the same for every seed."""
    targets = torch.randint(classes, (examples,), generator=torch.Generator().manual_seed(0))
    noise = torch.randn(epochs, examples, classes, generator=torch.Generator().manual_seed(seed))
    margin = torch.linspace(0, 3, epochs)[:, None, None] * torch.nn.functional.one_hot(targets, classes)
    return noise + margin, targets.expand(epochs, -1)


def test_correlations_are_scipys_over_all_runs_and_over_late_checkpoints():
    runs = [checkpoints(1), checkpoints(2, epochs=35)]
    found = rank_checkpoints(ClassificationReLoss.ordinary_loss, accuracy, runs)
    assert (found.checkpoints, found.runs) == (55, 2)
    for late in (False, True):
        names = ("spearman_late", "kendall_late") if late else ("spearman_checkpoints", "kendall_checkpoints")
        kept = [(o[len(o) // 2 :], t[len(t) // 2 :]) if late else (o, t) for o, t in runs]
        losses = torch.cat([ClassificationReLoss.ordinary_loss(*run) for run in kept])
        values = torch.cat([accuracy(*run) for run in kept])
        expected = spearmanr(-losses, values).statistic, kendalltau(-losses, values).statistic
        assert [getattr(found, name) for name in names] == pytest.approx(expected, abs=1e-5)


def test_a_loss_that_rises_with_the_metric_ranks_backwards():
    found = rank_checkpoints(accuracy, accuracy, [checkpoints(1)])
    assert found.spearman_checkpoints == pytest.approx(-1)


def test_what_is_not_defined_is_no_number():
    outputs, targets = checkpoints(1, epochs=7)
    few = rank_checkpoints(accuracy, accuracy, [(outputs[:3], targets[:3])]).summary()
    assert few == {"checkpoints": 3, "runs": 1}
    late_few = rank_checkpoints(accuracy, accuracy, [(outputs[:5], targets[:5])]).summary()
    assert late_few.keys() == {"spearman_checkpoints", "kendall_checkpoints", "checkpoints", "runs"}
    always_wrong = (outputs.argmax(-1) + 1) % outputs.shape[-1]
    constant = rank_checkpoints(ClassificationReLoss.ordinary_loss, accuracy, [(outputs, always_wrong)]).summary()
    assert constant == {"checkpoints": 7, "runs": 1}


@pytest.mark.parametrize("input", ["probability", "log_probability"])
def test_curve_and_slope_in_the_logit(input):
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


def test_a_picture_holds_the_losses_of_held_out_items_and_the_curve(improving_bank):
    bank, options = improving_bank(steps=60), LearnOptions()
    torch.manual_seed(0)
    surrogate = ClassificationReLoss(input="log_probability", output="monotone").freeze()
    outputs, targets = bank.items(split_items(len(bank), options)[1])
    drawn = picture(surrogate, bank, accuracy, options)
    assert drawn.keys() == {"items", "curve"}
    assert drawn["items"]["metric"] == pytest.approx(accuracy(outputs, targets).tolist(), rel=1e-4)
    ordinary = torch.nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none")
    assert drawn["items"]["ordinary"] == pytest.approx(ordinary.view_as(targets).mean(-1).tolist(), rel=1e-4)
    assert drawn["items"]["surrogate"] == pytest.approx(surrogate.per_item(outputs, targets).tolist(), rel=1e-4)
    curve = drawn["curve"]
    assert curve["ordinary"] == pytest.approx([-torch.tensor(p).log().item() for p in curve["probability"]], abs=1e-3)
    assert curve["surrogate"][-1] == 0
    assert curve["surrogate"] == sorted(curve["surrogate"], reverse=True)


def test_of_many_items_some_are_measured_evenly_spread(improving_bank):
    bank = improving_bank(steps=2000, item_size=4)
    found = measure_held_out(ClassificationReLoss(), bank, accuracy, LearnOptions())
    assert {len(values) for values in found.values()} == {SHOWN}
    early, late = found["metric"].chunk(2)
    assert late.mean() > early.mean() + 0.1  # from the whole of the training, in its order


@pytest.mark.parametrize(
    ("surrogate", "outputs", "targets"),
    [
        (PoseReLoss(size=(8, 6)), torch.rand(6, 3, 8, 6), torch.rand(6, 3, 8, 6)),
        (ReadingReLoss(), torch.randn(6, 2, 10), torch.tensor([[[2, 4]]]).expand(6, -1, -1)),
        (TranslationReLoss(width=8, feedforward=8, heads=2), -torch.rand(6, 5), torch.ones(6, 5, 2, dtype=torch.long)),
    ],
    ids=["pose", "reading", "translation"],
)
def test_a_loss_without_a_curve_is_drawn_example_by_example(tmp_path, surrogate, outputs, targets):
    bank = PredictionBank.create(tmp_path / "bank", item_size=6)
    for step in range(20):
        bank.append(outputs, targets, step)
    bank.finish()
    surrogate.freeze()
    drawn = picture(surrogate, bank, lambda outputs, targets: torch.zeros(len(outputs)), LearnOptions())
    assert drawn.keys() == {"items", "examples"}
    values, count = drawn["examples"], 4 * 6  # of 4 held-out items
    assert len(values["surrogate"]) == count
    stored, kept = bank.items(torch.tensor([0]))
    one = surrogate.per_item(stored[0, :, None], kept[0, :, None])
    assert values["surrogate"][:6] == pytest.approx(one.tolist(), rel=1e-3)
