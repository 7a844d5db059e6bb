"""The bank refuses the first batch that its surrogate cannot learn from, and names the remedy."""

import re
import warnings

import pytest
import torch
from torch import Tensor

from reloss import ClassificationReLoss, PoseReLoss, ReadingReLoss, SetReLoss, build
from reloss.learning import PredictionBank
from reloss.runtime.errors import RelossError
from reloss.surrogates import SurrogateLoss

CLASSES, ONE_HOT = torch.tensor([0, 2, 1, 2]), torch.eye(3)[[0, 2, 1, 2]]


def recorded(path, surrogate: SurrogateLoss, outputs: Tensor, targets: Tensor) -> PredictionBank:
    bank = PredictionBank.create(path, item_size=2, surrogate=surrogate)
    bank.append(outputs, targets, 7)
    bank.finish()
    return bank


REFUSED = {
    "one column": (SetReLoss(), torch.zeros(4, 1), CLASSES == 2, "outputs.squeeze(-1)"),
    "two columns": (SetReLoss(), torch.zeros(4, 1), (CLASSES == 2)[:, None], "targets.squeeze(-1)"),
    "scores": (ClassificationReLoss(), torch.zeros(4), CLASSES == 2, "are for SetReLoss"),
    "labels": (SetReLoss(), torch.zeros(4, 3), torch.ones(4, 3), "outputs.flatten(), targets.flatten()"),
    "one-hot": (ClassificationReLoss(), torch.zeros(4, 3), ONE_HOT, "targets.argmax(-1)"),
    "pixels": (SetReLoss(), torch.zeros(4, 3, 5, 6), torch.zeros(4, 5, 6), "outputs.movedim(1, -1).flatten(0, -2)"),
    "regression": (
        SetReLoss(),
        torch.zeros(4),
        torch.tensor([0, 1, 2.5, 1]),
        "from 0 to 1, not 2.5; targets on a scale",
    ),
    "ignored": (SetReLoss(), torch.zeros(4, 3), torch.tensor([0, 1, -100, 2]), "not -100; drop the examples"),
    "too many": (ClassificationReLoss(), torch.zeros(4, 3), torch.tensor([0, 1, 2, 3]), "from 0 to 2, not 3"),
    "floats": (ClassificationReLoss(), torch.zeros(4, 3), CLASSES.float(), "not torch.float32: pass targets.long()"),
    "fractions": (SetReLoss(), torch.zeros(4, 3), CLASSES + 0.5, "not 0.5; targets on a scale"),
    "mixed labels": (SetReLoss(), torch.zeros(4), torch.tensor([0, 1, 0.7, 1]), "lam * loss(outputs, a) + (1 - lam)"),
    "mixed classes": (ClassificationReLoss(), torch.zeros(4, 3), 0.9 * ONE_HOT + 0.1 / 3, "lam * loss(outputs, a)"),
    "class scale": (SetReLoss(), torch.zeros(4, 3), 3 * ONE_HOT, "(targets > 0.5).flatten()"),
    "signs": (SetReLoss(), torch.zeros(4), torch.tensor([-1, 1, 1, -1]), "-1 and 1 into 0 and 1: (targets > 0).long()"),
    "grades": (SetReLoss(), torch.zeros(4), torch.tensor([0, 4, 2, 1]), "into labels 0 and 1: (targets > 0).long()"),
    "from 1": (ClassificationReLoss(), torch.zeros(4, 3), CLASSES + 1, "count classes from 0: targets - 1"),
    "mask": (SetReLoss(), torch.zeros(4, 1, 5, 6), torch.zeros(4, 1, 5, 6), "outputs.flatten(), targets.flatten()"),
    "flat mask": (SetReLoss(), torch.zeros(4, 5, 6), torch.zeros(4, 5, 6), "outputs.flatten(), targets.flatten()"),
    "tokens": (ClassificationReLoss(), torch.zeros(4, 7, 3), torch.zeros(4, 7), "outputs.flatten(0, -2), targets.fl"),
    "column": (
        ClassificationReLoss(),
        torch.zeros(4, 3),
        CLASSES[:, None],
        "remove the last axis: targets.squeeze(-1)",
    ),
    "heatmaps": (PoseReLoss((5, 6)), torch.zeros(4, 3, 6, 5), torch.zeros(4, 3, 6, 5), "heatmaps of [5, 6]"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_first_unusable_batch_is_refused(tmp_path, kind):
    surrogate, outputs, targets, remedy = REFUSED[kind]
    with pytest.raises(
        RelossError, match=rf"{type(surrogate).__name__} cannot learn from the batch of step 7.*{re.escape(remedy)}"
    ):
        recorded(tmp_path / "bank", surrogate, outputs, targets)


def test_remedies_work(tmp_path):
    pixels, labels = torch.randn(4, 3, 5, 6), torch.randint(3, (4, 5, 6))
    outputs, targets = pixels.movedim(1, -1).flatten(0, -2), labels.flatten()
    assert outputs[17].tolist() == pixels[0, :, 2, 5].tolist()
    assert targets[17] == labels[0, 2, 5]
    assert len(recorded(tmp_path / "pixels", SetReLoss(), outputs, targets)) == 60
    scores = torch.zeros(4, 1), ONE_HOT[:, :1]
    assert len(recorded(tmp_path / "scores", SetReLoss(), *(part.squeeze(-1) for part in scores))) == 2
    assert len(recorded(tmp_path / "labels", SetReLoss(), torch.zeros(4, 3).flatten(), ONE_HOT.flatten())) == 6


def test_remedies_for_labels_work():
    scores, classes = torch.randn(4), torch.randn(4, 3)
    for targets in (torch.tensor([-1, 1, 1, -1]), torch.tensor([0, 4, 2, 1])):
        SetReLoss().check(scores[None], (targets > 0).long()[None])
    ClassificationReLoss().check(classes[None], (CLASSES + 1 - 1)[None])
    SetReLoss().check(classes.flatten()[None], (3 * ONE_HOT > 0.5).flatten()[None])
    tokens, labels = torch.randn(4, 7, 3), torch.randint(3, (4, 7))
    outputs, targets = tokens.flatten(0, -2), labels.flatten()
    assert outputs[9].tolist() == tokens[1, 2].tolist()
    assert targets[9] == labels[1, 2]
    ClassificationReLoss().check(outputs[None], targets[None])
    SetReLoss().check(torch.randn(4, 1, 5, 6).flatten()[None], torch.randint(2, (4, 5, 6)).flatten()[None])


def test_loss_refuses_fractional_classes():
    with pytest.raises(ValueError, match=r"not 0\.5; targets on a scale"):
        ClassificationReLoss()(torch.zeros(4, 3), CLASSES + 0.5)


KINDS = [(kind, features) for kind in ("classification", "set") for features in ("likelihood", "expected")]
FROZEN = [build(kind, (3,), features=features).freeze() for kind, features in KINDS]


@pytest.mark.parametrize("loss", FROZEN, ids=lambda loss: type(loss).__name__)
def test_a_loss_refuses_labels_outside_of_the_classes(loss):
    for wrong, remedy in ((-100, "; drop the examples to ignore"), (3, "")):
        with pytest.raises(ValueError, match=f"targets must be whole numbers from 0 to 2, not {wrong}{remedy}"):
            loss(torch.zeros(4, 3), torch.tensor([0, 1, wrong, 2]))


@pytest.mark.parametrize("loss", FROZEN, ids=lambda loss: type(loss).__name__)
def test_classes_in_a_dtype_that_cannot_hold_their_number(loss):
    outputs, targets = torch.randn(1, 256, 256), torch.arange(256)[None]
    expected = loss.per_item(outputs, targets)
    loss.check(outputs, targets.to(torch.uint8))
    assert torch.equal(loss.per_item(outputs, targets.to(torch.uint8)), expected)


@pytest.mark.parametrize(
    ("loss", "outputs", "targets", "shapes"),
    [
        (
            ClassificationReLoss(),
            (32, 4),
            (32, 1),
            "outputs [B, C] and targets [B], every size at least 1, not [32, 4]",
        ),
        (SetReLoss(), (32,), (31,), "outputs [B] and targets [B], every size at least 1, not [32], [31]"),
        (PoseReLoss(), (2, 3, 4), (2, 3, 4), "outputs [B, K, H, W] and targets [B, K, H, W], every size"),
        (ReadingReLoss(), (2, 3, 4), (2, 1, 2), "outputs [B, 2, T] and targets [B, G, 2], every size"),
    ],
)
def test_messages_of_a_loss_show_the_shapes_of_its_arguments(loss, outputs, targets, shapes):
    with pytest.raises(ValueError, match=re.escape(f"expected {shapes}")) as raised:
        loss(torch.zeros(outputs), torch.zeros(targets, dtype=torch.long))
    assert f"not {list(outputs)}, {list(targets)}" in str(raised.value)


def test_outputs_must_be_tensors():
    with pytest.raises(ValueError, match="outputs must be a torch tensor, not list"):
        SetReLoss()([0.0, 1.0], torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="targets must be a torch tensor, not list"):
        SetReLoss()(torch.tensor([0.0, 1.0]), [0, 1])


@pytest.mark.parametrize(("kind", "features"), KINDS)
def test_the_first_batch_of_probabilities_warns(kind, features):
    logits, targets = torch.randn(16, 3, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 3
    loss = build(kind, (3,), features=features)
    with pytest.warns(UserWarning, match="takes logits: pass what comes before the softmax"):
        loss(logits.softmax(-1), targets)
    with pytest.warns(UserWarning, match="before the softmax"):
        loss.check(logits.softmax(-1)[None], targets[None])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(logits.softmax(-1), targets)  # warns once
        loss.check(logits[None], targets[None])
        loss.check(logits.sigmoid()[None], targets[None])  # rows do not sum to 1


def test_scores_from_0_to_1_warn():
    scores, targets = torch.linspace(0.1, 0.9, 16), torch.arange(16) % 2
    with pytest.warns(UserWarning, match="before the sigmoid"):
        SetReLoss()(scores, targets)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for logits in (scores[:7], scores - 0.2, torch.zeros(16), (scores > 0.5).float()):
            SetReLoss()(logits, targets[: len(logits)])


class Regression(SurrogateLoss):
    """A user's own kind: a function of the squared error of each of three numbers, with no check of its inputs."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.width = width
        self.layers = torch.nn.ModuleList([torch.nn.Linear(3, width), torch.nn.Linear(width, 1)])

    def features(self, outputs, targets):
        return -(outputs - targets).square()

    def ordinary_loss(self, outputs, targets):
        return (outputs - targets).square().mean((-2, -1))


def test_own_kind_is_checked_by_computing_its_loss(tmp_path):
    assert len(recorded(tmp_path / "good", Regression(), torch.zeros(4, 3), torch.zeros(4, 3))) == 2
    with pytest.raises(RelossError, match=r"Regression cannot learn from .*outputs \[4, 2\] .*RuntimeError: mat1 and"):
        recorded(tmp_path / "bad", Regression(), torch.zeros(4, 2), torch.zeros(4, 2))


def test_own_kind_needs_features_alone(tmp_path):
    torch.manual_seed(0)
    surrogate, targets = Regression(width=8), torch.zeros(1, 5, 3)
    near, far = (surrogate.per_item(size * torch.ones(1, 5, 3), targets) for size in (0.1, 1.0))
    assert near < far  # monotone by default
    surrogate.save_pretrained(tmp_path)
    loaded = Regression.from_pretrained(tmp_path)
    assert loaded.options() == {"width": 8}
    assert torch.equal(loaded.per_item(torch.ones(1, 5, 3), targets), far)
