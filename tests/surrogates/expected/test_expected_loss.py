"""What all losses over expected parts of a metric share, with features that are easy to follow."""

import math
from typing import ClassVar

import pytest
import torch

from reloss.learning import LearnOptions, PredictionBank, fit_surrogate
from reloss.runtime.errors import UsageError
from reloss.surrogates import build
from reloss.surrogates.expected.base import ExpectedLoss
from reloss.surrogates.registry import EXPECTED_KINDS


class Sums(ExpectedLoss):
    """Two features of each example: the probability of its label and its logarithm."""

    FEATURES = ("p", "log_p")
    EXPECTED: ClassVar = {"share": lambda features: features[..., 0]}

    def features(self, outputs, targets):
        log_p = torch.nn.functional.logsigmoid((2 * targets - 1) * outputs)
        return torch.stack((log_p.exp(), log_p), -1)

    @staticmethod
    def ordinary_loss(outputs, targets):
        return torch.nn.functional.softplus((1 - 2 * targets) * outputs).mean(-1)


def share(outputs, targets):
    return ((outputs > 0) == (targets > 0)).float().mean(-1)


def bank_at(path):
    generator = torch.Generator().manual_seed(0)
    bank = PredictionBank.create(path, item_size=16)
    for step in range(100):
        targets = torch.randint(2, (16,), generator=generator).float()
        noise = torch.randn(16, generator=generator)
        bank.append((step / 50) * (2 * targets - 1) + noise, targets, step=step)
    bank.finish()
    return bank


def test_the_expected_metric_has_nothing_to_learn():
    loss = Sums("share")
    outputs, targets = torch.tensor([[0.0, 1.0, -1.0]]), torch.tensor([[1.0, 1.0, 1.0]])
    expected = 1 - (0.5 + 1 / (1 + math.exp(-1)) + 1 / (1 + math.exp(1))) / 3
    assert not list(loss.parameters())
    assert loss.per_item(outputs, targets).item() == pytest.approx(expected)
    assert loss(outputs[0].requires_grad_(), targets[0]).item() == pytest.approx(expected)


def test_the_network_falls_as_a_feature_rises():
    loss = Sums(width=8)
    outputs = torch.linspace(-5, 5, 50)[:, None].requires_grad_()
    losses = loss.per_item(outputs, torch.ones(50, 1))
    assert (losses.diff() < 0).all()


def test_a_metric_without_a_formula_is_refused():
    with pytest.raises(ValueError, match="Sums has no formula for metric auroc, only for share"):
        Sums("auroc")


def test_a_fit_of_the_expected_metric_measures_and_calibrates(tmp_path, capsys):
    bank = bank_at(tmp_path / "bank")
    result = fit_surrogate(Sums("share"), bank, share, objective="none")
    assert [entry["step"] for entry in result.history] == [0]
    assert result.spearman > 0.8
    assert result.surrogate.scale != 1
    outputs, targets = bank.items(torch.arange(len(bank)))
    outputs.requires_grad_()
    norms = [
        torch.autograd.grad(loss(outputs, targets).sum(), outputs, retain_graph=True)[0].abs().mean().item()
        for loss in (result.surrogate.per_item, Sums.ordinary_loss)
    ]
    assert norms[0] == pytest.approx(norms[1], rel=0.3)  # calibrated on the held-out items
    result.surrogate.save_pretrained(tmp_path / "loss")
    again = Sums.from_pretrained(tmp_path / "loss")
    assert torch.equal(again.per_item(outputs, targets), result.surrogate.per_item(outputs, targets))


def test_a_learned_loss_takes_no_penalty(tmp_path, monkeypatch):
    monkeypatch.setattr(Sums, "losses_and_norms", lambda *arguments: pytest.fail("gradient norms were computed"))
    result = fit_surrogate(Sums(width=8), bank_at(tmp_path / "bank"), share, steps=40, items=32)
    assert result.spearman > 0.8
    assert all(entry["penalty"] == 0 for entry in result.history)


def test_patience_ends_the_fit(tmp_path, capsys):
    settings = {"steps": 400, "items": 32, "validate_every": 5, "patience": 2}
    result = fit_surrogate(Sums(width=8), bank_at(tmp_path / "bank"), share, **settings)
    last = result.history[-1]["step"]
    assert last < 400
    assert last - result.step == 10
    assert f"keeping the weights of step {result.step} of {last}" in capsys.readouterr().err


def test_auto_penalty():
    assert LearnOptions().for_surrogate("one_sided").penalty == "one_sided"
    assert LearnOptions(penalty="item").for_surrogate("one_sided").penalty == "item"
    assert LearnOptions(fidelity="released").for_surrogate("one_sided").penalty == "item"


@pytest.mark.parametrize("kind", EXPECTED_KINDS)
def test_names_of_features_and_formulas(kind):
    loss_class = EXPECTED_KINDS[kind]
    assert loss_class.sees == "expected"
    assert len(set(loss_class.FEATURES)) == len(loss_class.FEATURES) > 0
    assert loss_class.EXPECTED


def test_choices_that_expected_features_do_not_have():
    with pytest.raises(UsageError, match="unknown kind of surrogate"):
        build("clasification", (10,), features="expected")
    with pytest.raises(ValueError, match="input and output are options of features likelihood and released"):
        build("set", (10,), features="expected", output="identity")
