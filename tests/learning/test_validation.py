import pytest
import torch
from fits import fit, held_out

from reloss.learning import PredictionBank, fit_surrogate
from reloss.metrics import accuracy
from reloss.surrogates import SetReLoss


def test_a_metric_that_is_constant_only_on_held_out_recorded_items_is_warned_of(improving_bank, capsys):
    bank = improving_bank()
    held_out_outputs, _ = held_out(bank)

    def metric(outputs, targets):
        is_held_out = (outputs[:, None] == held_out_outputs).flatten(2).all(-1).any(-1)
        return torch.where(is_held_out, 0.5, accuracy(outputs, targets))

    result = fit(bank, metric)
    assert result.spearman == 0
    assert result.spearman_synthetic > 0.8
    assert "warning: metric metric is 0.5 for all held-out recorded items" in capsys.readouterr().err


@pytest.mark.parametrize(("fidelity", "remedy"), [("corrected", "output=monotone"), ("released", "mixture=half")])
def test_a_surrogate_that_ranks_backwards_is_warned_of(improving_bank, capsys, fidelity, remedy):
    result = fit(improving_bank(), fidelity=fidelity, output="identity", backwards=True)
    assert result.spearman < 0
    warning = capsys.readouterr().err.splitlines()[-1]
    assert "warning: the surrogate does not rank held-out recorded items as accuracy does" in warning
    assert remedy in warning
    fit(improving_bank(name="again"))
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize(("steps", "count"), [(95, 19), (100, 20)])
def test_few_held_out_items_are_warned_of(improving_bank, capsys, steps, count):
    assert fit(improving_bank(steps=steps), steps=2).validation_items == count
    has_warning = f"warning: only {count} held-out items are ranked" in capsys.readouterr().err
    assert has_warning == (count < 20)


def test_vanishing_positives_are_reported(tmp_path, capsys):
    """A loss fitted to precision alone is smallest where hardly anything is positive."""
    generator = torch.Generator().manual_seed(0)
    bank = PredictionBank.create(tmp_path, item_size=64)
    for step in range(60):
        targets = (torch.rand(64, generator=generator) < 0.2).float()
        bank.append(torch.randn(64, generator=generator) + step / 20 * targets, targets, step)
    bank.finish()

    def few_positives(outputs, targets):
        return -(outputs > 0).float().mean(-1)

    fit_surrogate(SetReLoss("identity"), bank, few_positives, steps=60, items=32, mixture="recorded", penalty="off")
    assert "predicted positives can vanish in training" in capsys.readouterr().err
    fit_surrogate(SetReLoss(), bank, "binary_f1", steps=20, items=32)
    assert "vanish" not in capsys.readouterr().err
