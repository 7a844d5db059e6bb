import copy

import pytest
import torch
from fits import SETTINGS, assert_same_fit, fit, held_out, surrogate_for
from torchmetrics.classification import MulticlassAccuracy

from reloss import ClassificationReLoss
from reloss.learning import LearnOptions, fit_surrogate
from reloss.learning.local_diagnostics import CHANGES, ITEMS
from reloss.learning.metric_cache import CHECKED
from reloss.learning.options import MIXTURES
from reloss.metrics import PerItem, accuracy
from reloss.ranking import spearman
from reloss.runtime.errors import RelossError, UsageError
from reloss.surrogates.base import gradient_norms
from reloss.surrogates.options import FEATURES, PRESETS


def error_rate(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return -accuracy(outputs, targets)


def test_the_bank_of_these_tests_improves(improving_bank):
    bank = improving_bank()
    values = accuracy(*bank.items(torch.arange(len(bank))))
    assert values[:20].mean() < 0.35
    assert values[-20:].mean() > 0.8


def test_a_corrected_fit_ranks_held_out_items(improving_bank):
    bank = improving_bank()
    result = fit(bank)
    outputs, targets = held_out(bank)
    measured = float(spearman(-result.surrogate.per_item(outputs, targets), accuracy(outputs, targets)))
    assert result.spearman == pytest.approx(measured, abs=1e-6)
    assert result.spearman > 0.9
    assert result.spearman_synthetic > 0.8
    assert result.spearman == max(entry["spearman"] for entry in result.history)
    ordinary = float(spearman(-ClassificationReLoss.ordinary_loss(outputs, targets), accuracy(outputs, targets)))
    assert result.spearman_ordinary == pytest.approx(ordinary, abs=1e-6)
    assert result.validation_items == 24
    assert not any(parameter.requires_grad for parameter in result.surrogate.parameters())


def test_a_released_fit_ranks_synthetic_items(improving_bank):
    result = fit(improving_bank(), fidelity="released")
    assert result.spearman_synthetic > 0.8
    assert result.spearman_synthetic == max(entry["spearman_synthetic"] for entry in result.history)
    assert result.surrogate.scale == 1


@pytest.mark.parametrize("seed", range(4))
def test_a_corrected_fit_never_ranks_backwards(improving_bank, seed):
    torch.manual_seed(seed)
    options = LearnOptions(**SETTINGS, seed=seed)
    surrogate = ClassificationReLoss(**PRESETS[FEATURES[options.fidelity]], width=16)
    assert fit_surrogate(surrogate, improving_bank(), accuracy, options=options).spearman > 0.9


def test_without_monotonicity_a_network_that_starts_backwards_stays_so(improving_bank):
    """The penalty ignores the sign of a slope, and is largest at slope zero, which a change of sign has to cross."""
    assert fit(improving_bank(), output="identity").spearman > 0.9
    assert fit(improving_bank(name="again"), output="identity", backwards=True).spearman < -0.9


@pytest.mark.parametrize("method", ["odd_even", "laplace", "pairwise"])
def test_every_soft_rank_gives_a_good_fit(improving_bank, method):
    assert fit(improving_bank(), method=method).spearman > 0.9


@pytest.mark.parametrize("correlation", ["kendall", "pearson"])
def test_every_correlation_gives_a_good_fit(improving_bank, correlation):
    result = fit(improving_bank(), correlation=correlation)
    assert result.spearman > 0.9
    assert result.history != fit(improving_bank(name="again")).history


@pytest.mark.parametrize("penalty", ["one_sided", "off"])
def test_other_penalties_give_a_good_fit(improving_bank, penalty):
    result = fit(improving_bank(), penalty=penalty)
    assert result.spearman > 0.9
    if penalty == "off":
        assert [entry["penalty"] for entry in result.history] == [0, 0, 0]
        assert all(entry["objective"] == pytest.approx(-entry["correlation"]) for entry in result.history)
    else:
        assert result.history[-1]["penalty"] < 0.1


@pytest.mark.parametrize("mixture", MIXTURES)
def test_every_mixture_gives_a_good_fit(improving_bank, mixture):
    assert fit(improving_bank(), mixture=mixture).spearman > 0.9


def test_the_history_has_an_entry_per_validation(improving_bank):
    entries = []
    result = fit(improving_bank(), steps=50, on_validation=entries.append)
    assert [entry["step"] for entry in entries] == [20, 40, 50]
    assert result.history == entries
    for entry in entries:
        assert entry["objective"] == pytest.approx(-entry["correlation"] + 10 * entry["penalty"], abs=1e-4)
    assert result.step in (20, 40, 50)


def test_the_penalty_holds_the_slope_of_each_example_near_one(improving_bank):
    result = fit(improving_bank(), calibrate=False)
    assert result.history[-1]["penalty"] < 0.5
    assert result.history[-1]["penalty"] < result.history[0]["penalty"] + 0.05


def test_the_same_seed_gives_the_same_fit(improving_bank):
    bank = improving_bank()
    first = fit(bank)
    assert_same_fit(first, fit(bank))
    assert fit(bank, seed=1).history != first.history


def test_a_metric_that_is_better_lower_gives_the_same_fit(improving_bank):
    bank = improving_bank()
    assert_same_fit(fit(bank), fit(bank, error_rate, higher_is_better=False))


@pytest.mark.parametrize("fidelity", ["released", "corrected"])
def test_an_interrupted_fit_resumes_with_the_same_numbers(improving_bank, tmp_path, fidelity):
    bank, checkpoint = improving_bank(), tmp_path / "fit.pt"

    def interrupt(entry):
        if entry["step"] == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(bank, fidelity=fidelity, checkpoint=checkpoint, on_validation=interrupt)
    entries = []
    resumed = fit(bank, fidelity=fidelity, checkpoint=checkpoint, on_validation=entries.append)
    assert entries == resumed.history
    assert [entry["step"] for entry in entries] == [20, 40, 60]
    assert_same_fit(resumed, fit(bank, fidelity=fidelity))
    assert_same_fit(fit(bank, fidelity=fidelity, checkpoint=checkpoint), resumed)


def test_a_metric_can_be_named(improving_bank):
    bank = improving_bank()
    assert_same_fit(fit(bank, "accuracy", steps=20), fit(bank, accuracy, steps=20))
    with pytest.raises(UsageError, match="unknown metric 'acuracy'; did you mean accuracy"):
        fit(bank, "acuracy")


def test_the_seconds_of_an_interrupted_fit_count_all_sessions(improving_bank, tmp_path):
    bank, checkpoint = improving_bank(), tmp_path / "fit.pt"
    assert 0 < fit(bank, checkpoint=checkpoint).seconds < 100
    state = torch.load(checkpoint, weights_only=True)
    torch.save({**state, "seconds": 100.0}, checkpoint)
    assert 100 <= fit(bank, checkpoint=checkpoint).seconds < 200


def test_a_checkpoint_of_another_fit_is_refused(improving_bank, tmp_path):
    bank, checkpoint = improving_bank(), tmp_path / "fit.pt"
    fit(bank, steps=20, checkpoint=checkpoint)
    with pytest.raises(RelossError, match=f"{checkpoint} belongs to a fit with other options"):
        fit(bank, steps=20, learning_rate=0.02, checkpoint=checkpoint)
    with pytest.raises(RelossError, match="another metric"):
        fit(bank, error_rate, steps=20, checkpoint=checkpoint)
    with pytest.raises(RelossError, match="another bank"):
        fit(improving_bank(steps=100, name="other"), steps=20, checkpoint=checkpoint)


def test_the_error_names_a_damaged_checkpoint(improving_bank, tmp_path):
    bank, checkpoint = improving_bank(), tmp_path / "fit.pt"
    fit(bank, steps=20, checkpoint=checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:-500])
    with pytest.raises(RelossError, match=rf"checkpoint {checkpoint} is damaged; remove fit\.pt to learn from scratch"):
        fit(bank, steps=20, checkpoint=checkpoint)


def test_calibration_matches_the_gradient_norm_of_the_ordinary_loss(improving_bank):
    bank = improving_bank()
    calibrated, raw = fit(bank), fit(bank, calibrate=False)
    outputs, targets = held_out(bank)
    outputs.requires_grad_()
    learned = gradient_norms(calibrated.surrogate.per_item(outputs, targets), outputs).mean()
    ordinary = gradient_norms(ClassificationReLoss.ordinary_loss(outputs, targets), outputs).mean()
    assert float(learned / ordinary) == pytest.approx(1, abs=1e-3)
    assert raw.surrogate.scale == 1
    assert calibrated.surrogate.scale != 1
    assert calibrated.spearman == raw.spearman


def test_exact_recovery_approaches_one_minus_the_metric(improving_bank):
    bank = improving_bank()
    options = LearnOptions(**SETTINGS)
    outputs, targets = held_out(bank)
    expected = 1 - accuracy(outputs, targets)
    before = (surrogate_for(options).per_item(outputs, targets) - expected).square().mean().item()
    result = fit(bank, objective="value", calibrate=False)
    after = (result.surrogate.per_item(outputs, targets) - expected).square().mean().item()
    errors = [entry["squared_error"] for entry in result.history]
    assert after == pytest.approx(min(errors), rel=1e-4)
    assert after < 0.02 < 0.1 < before


def test_a_frozen_surrogate_can_be_fitted_further(improving_bank, tmp_path):
    bank, options = improving_bank(), LearnOptions(**SETTINGS)
    surrogate_for(options).save_pretrained(tmp_path / "s")
    loaded = ClassificationReLoss.from_pretrained(tmp_path / "s")
    weights = copy.deepcopy(loaded.state_dict())
    fit_surrogate(loaded, bank, accuracy, options=options)
    assert not torch.equal(loaded.state_dict()["loss.0.weight"], weights["loss.0.weight"])


def share_correct(outputs, targets):
    return (outputs.argmax(-1) == targets).float().mean()


def test_a_metric_by_item_gives_the_same_fit_as_a_vectorised_one(improving_bank):
    bank = improving_bank()
    vectorised = fit(bank, pool=1024)
    assert_same_fit(fit(bank, PerItem(share_correct)), vectorised)
    assert_same_fit(fit(bank, MulticlassAccuracy(5, average="micro")), vectorised)
    assert len(list((bank.path / "metrics").iterdir())) == 2


def test_a_second_fit_uses_the_stored_values(improving_bank, tmp_path):
    calls = tmp_path / "calls"

    def counted(outputs, targets):
        with calls.open("a") as file:
            file.write("x")
        return share_correct(outputs, targets)

    bank = improving_bank()
    first = fit(bank, PerItem(counted, workers=1))
    synthetic = 24 + 1024 + ITEMS * CHANGES  # held-out items, the pool, and small changes of the last items
    assert calls.stat().st_size == 120 + synthetic
    assert_same_fit(fit(bank, PerItem(counted, workers=1), higher_is_better=True), first)
    assert calls.stat().st_size == 120 + synthetic + CHECKED
    fit(bank, PerItem(counted, workers=1), seed=1, steps=2)
    assert calls.stat().st_size == 120 + synthetic + CHECKED + synthetic + CHECKED


def test_settings_are_options(improving_bank):
    result = fit_surrogate(ClassificationReLoss(width=4), improving_bank(), accuracy, steps=3, items=8)
    assert [entry["step"] for entry in result.history] == [3]
