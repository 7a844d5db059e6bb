"""The bank refuses the first batch that its surrogate cannot learn from, and names the remedy."""

import re

import pytest
import torch
from torch import Tensor

from reloss import ClassificationReLoss, PoseReLoss, SetReLoss
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
        torch.tensor([0, 1, 0.5, 1]),
        "from 0 to 1, not 0.5; targets on a scale",
    ),
    "ignored": (SetReLoss(), torch.zeros(4, 3), torch.tensor([0, 1, -100, 2]), "not -100; drop the examples"),
    "too many": (ClassificationReLoss(), torch.zeros(4, 3), torch.tensor([0, 1, 2, 3]), "from 0 to 2, not 3"),
    "floats": (ClassificationReLoss(), torch.zeros(4, 3), CLASSES.float(), "not torch.float32: pass targets.long()"),
    "fractions": (SetReLoss(), torch.zeros(4, 3), CLASSES + 0.5, "not torch.float32"),
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


def test_loss_refuses_fractional_classes():
    with pytest.raises(ValueError, match=r"torch\.float32: pass targets\.long\(\)"):
        ClassificationReLoss()(torch.zeros(4, 3), CLASSES + 0.5)


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
