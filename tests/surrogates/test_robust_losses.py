"""Frozen losses stay frozen in any module; losses keep their dtype in files, under masks and under autocast."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from reloss import ClassificationReLoss, PoseReLoss, ReadingReLoss, SetReLoss, TranslationReLoss, build
from reloss.learning import LearnOptions
from reloss.learning.items import Items
from reloss.learning.objective import rank_objective
from reloss.metrics import span_f1

SMALL = {"width": 8}
TRANSFORMER = {"output": "identity", "width": 8, "feedforward": 8, "heads": 2, "length": 8}


def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    log_probs = torch.randn(3, 5, 11, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    return log_probs, torch.arange(15).view(3, 5) % 11


class Model(nn.Module):
    """A model that holds its loss, as LightningModules and criteria of other frameworks do."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.layer, self.loss = nn.Linear(2, 2), loss


def test_train_and_requires_grad_of_a_module_leave_a_frozen_loss_alone():
    loss, batch = TranslationReLoss(**TRANSFORMER), tokens()
    names = list(loss.state_dict())
    model = Model(loss.freeze())
    expected = loss(*batch)
    model.train().requires_grad_()
    for parameter in model.parameters():
        parameter.requires_grad = True
    assert not any(part.training for part in loss.modules())
    assert sum(parameter.numel() for parameter in model.parameters()) == 6
    assert torch.equal(loss(*batch), expected)  # no dropout
    assert list(loss.state_dict()) == names
    copied = copy.deepcopy(model).double().loss
    assert_close(copied(*batch).float(), expected)
    assert not list(copied.parameters())


def test_unfreeze_undoes_freeze():
    loss = TranslationReLoss(**TRANSFORMER)
    names = [name for name, _ in loss.named_parameters()]
    assert [name for name, _ in loss.freeze().freeze().unfreeze().named_parameters()] == names
    assert all(part.training for part in loss.modules())
    assert all(parameter.requires_grad for parameter in loss.parameters())


def test_buffers_of_a_kind_stay_buffers():
    loss = ClassificationReLoss()
    loss.register_buffer("steps", torch.tensor(3))
    names = [name for name, _ in loss.named_parameters()]
    assert loss.freeze().dtype == torch.float32
    assert [name for name, _ in loss.unfreeze().named_buffers()] == ["steps"]
    assert [name for name, _ in loss.named_parameters()] == names


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_surrogate_keeps_its_dtype_in_a_file(tmp_path, dtype):
    loss = ClassificationReLoss().to(dtype)
    loss.save_pretrained(tmp_path)
    loaded = ClassificationReLoss.from_pretrained(tmp_path)
    assert loaded.dtype == dtype
    outputs, targets = torch.randn(1, 4, 3).double(), torch.tensor([[0, 1, 2, 2]])
    assert torch.equal(loaded.per_item(outputs, targets), loss.per_item(outputs, targets))


MASKED_CLASSES = [
    *(build(kind, (5,)) for kind in ("classification", "set")),
    *(build(kind, (5,), features="expected") for kind in ("classification", "set")),
    *(ClassificationReLoss(input, "identity") for input in ("probability", "log_probability")),
    SetReLoss("identity"),
]


@pytest.mark.parametrize("loss", MASKED_CLASSES, ids=lambda loss: type(loss).__name__)
def test_a_logit_of_minus_infinity_masks_a_class(loss):
    outputs = torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(0))
    masked = outputs.clone()
    masked[..., 4] = -torch.inf
    targets = torch.arange(16).view(2, 8) % 4
    masked.requires_grad_()
    losses, norms = loss.losses_and_norms(masked, targets)
    assert norms.isfinite().all()
    for parameter in torch.autograd.grad((losses + norms.sum(-1)).sum(), list(loss.parameters())):
        assert parameter.isfinite().all()
    losses = loss.per_item(masked, targets)
    outputs[..., 4] = -1e4
    assert_close(losses, loss.per_item(outputs, targets))
    assert torch.autograd.grad(losses.sum(), masked)[0].isfinite().all()
    assert loss.per_item(masked, targets + 1).isfinite().all()  # also where the target is masked


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float16, torch.bfloat16])
def test_outputs_of_any_dtype_have_both_losses(dtype):
    scores, labels = torch.tensor([[1, 0, 3, 0]]), torch.tensor([[0, 1, 1, 0]])
    classes = (ClassificationReLoss(), SetReLoss().to(dtype) if dtype.is_floating_point else SetReLoss())
    pairs = [(loss, scores[..., None] * torch.tensor([1, 0]), labels) for loss in classes]
    pairs += [
        (SetReLoss(), scores, labels),
        (PoseReLoss((2, 2)), scores.view(1, 1, 1, 2, 2), labels.view(1, 1, 1, 2, 2)),
    ]
    for loss, outputs, targets in pairs:
        outputs = outputs.to(dtype)
        assert_close(loss.ordinary_loss(outputs, targets), loss.ordinary_loss(outputs.float(), targets))
        assert_close(loss.per_item(outputs, targets), loss.per_item(outputs.float(), targets))


@pytest.mark.parametrize("features", ["likelihood", "expected"])
def test_unsigned_positions_and_tokens_are_counted_from_0(features):
    logits, spans = torch.randn(1, 2, 2, 256), torch.tensor([[[[254, 255]], [[0, 255]]]])
    matrices, pairs = torch.randn(1, 2, 3, 3).clamp(max=0), torch.tensor([255, 254, 0]).expand(1, 2, 2, 3).mT
    for loss, outputs, targets in (
        (build("reading", (2, 256), features=features), logits, spans),
        (build("translation", (3, 3), features=features), matrices, pairs),
    ):
        assert torch.equal(loss.per_item(outputs, targets.byte()), loss.per_item(outputs, targets))
        assert torch.equal(loss.ordinary_loss(outputs, targets.byte()), loss.ordinary_loss(outputs, targets))
    assert torch.equal(span_f1(spans[:, :, 0], spans.byte()), torch.ones(1))
    with pytest.raises(ValueError, match="a gold position is 255, but there are 200 positions"):
        build("reading", (2, 200), features=features).per_item(logits[..., :200], spans.byte())


def test_expected_sets_in_half_precision():
    scores, labels = torch.tensor([[1.0, -2.0, 3.0, 0.0]]), torch.tensor([[0, 1, 1, 0]])
    loss = build("set", (), features="expected").half()
    assert loss.per_item(scores, labels).isfinite().all()


def test_a_gold_token_of_probability_0_has_a_finite_loss():
    log_probs, targets = tokens()
    log_probs[0, 0, targets[0, 0]] = -torch.inf
    for options in ({**SMALL, "window": 2}, TRANSFORMER):
        assert TranslationReLoss(**options)(log_probs, targets).isfinite()


def items_of(loss) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    if isinstance(loss, PoseReLoss):
        return torch.rand(6, 4, 2, 3, 5, generator=generator), torch.rand(6, 4, 2, 3, 5, generator=generator)
    if isinstance(loss, ReadingReLoss):
        return torch.randn(6, 4, 2, 7, generator=generator), torch.tensor([1, 3]).expand(6, 4, 1, 2)
    return torch.randn(6, 4, 3, generator=generator), torch.randint(3, (6, 4), generator=generator)


@pytest.mark.parametrize("loss", [ClassificationReLoss(), SetReLoss(), ReadingReLoss(), PoseReLoss((3, 5))])
def test_the_objective_is_the_same_under_autocast(loss):
    outputs, targets = items_of(loss)
    options = LearnOptions(penalty="example", items=6)
    metric = torch.linspace(0, 1, 6)
    expected = rank_objective(loss, Items(outputs, targets), metric, options).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = rank_objective(loss, Items(outputs, targets), metric, options).total
    assert_close(total, expected, rtol=1e-6, atol=1e-6)


def test_without_a_penalty_no_gradient_norm_is_computed(monkeypatch):
    loss = PoseReLoss((3, 5))
    monkeypatch.setattr(loss, "losses_and_norms", None)
    for options in (LearnOptions(penalty="off"), LearnOptions(penalty="example", penalty_weight=0)):
        objective = rank_objective(loss, Items(*items_of(loss)), torch.linspace(0, 1, 6), options)
        assert objective.total.requires_grad


def test_masked_classes_have_finite_cross_entropy():
    masked = torch.tensor([[[0.0, 1.0, -torch.inf]]])
    for loss in (ClassificationReLoss(), SetReLoss()):
        expected = F.cross_entropy(masked[0], torch.tensor([0]))
        assert_close(loss.ordinary_loss(masked, torch.tensor([[0]]))[0], expected)
