import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch.testing import assert_close
from torchmetrics.classification import MulticlassAccuracy

from reloss import ClassificationReLoss
from reloss.learning import FitResult, LearnOptions, PredictionBank, fit_surrogate
from reloss.learning.metric_cache import CHECKED
from reloss.learning.options import MIXTURES
from reloss.learning.sampling import split_items
from reloss.metrics import Metric, PerItem, accuracy, average_precision, bleu
from reloss.ranking import spearman
from reloss.runtime.errors import RelossError, UsageError
from reloss.surrogates.base import gradient_norms
from reloss.surrogates.options import PRESETS

SETTINGS = {"steps": 60, "items": 32, "validate_every": 20}


def surrogate_for(options: LearnOptions, backwards: bool = False, **network: str) -> ClassificationReLoss:
    """A fresh network whose loss falls with the target's probability, or rises if `backwards`; it is never negative."""
    torch.manual_seed(0)
    surrogate = ClassificationReLoss(**{**PRESETS[options.fidelity], **network}, width=16)
    inputs = torch.tensor([0.1, 0.9])
    with torch.no_grad():
        surrogate.loss[2].bias.fill_(1)
        low, high = surrogate.curve(inputs if surrogate.input == "probability" else inputs.log())
        if (high < low) == backwards:
            surrogate.loss[2].weight.neg_()
    return surrogate


def fit(
    bank: PredictionBank,
    metric: Metric = accuracy,
    backwards: bool = False,
    higher_is_better: bool = True,
    checkpoint: Path | None = None,
    on_validation: Callable[[dict[str, float]], None] | None = None,
    **settings,
) -> FitResult:
    network = {name: settings.pop(name) for name in ("input", "output") if name in settings}
    options = LearnOptions(**SETTINGS | settings)
    return fit_surrogate(
        surrogate_for(options, backwards, **network),
        bank,
        metric,
        higher_is_better=higher_is_better,
        options=options,
        checkpoint=checkpoint,
        on_validation=on_validation,
    )


def assert_same_fit(result: FitResult, expected: FitResult) -> None:
    assert {**result.summary(), "seconds": None} == {**expected.summary(), "seconds": None}
    assert result.history == expected.history
    assert result.surrogate.scale == expected.surrogate.scale
    for name, weight in expected.surrogate.state_dict().items():
        assert_close(result.surrogate.state_dict()[name], weight, rtol=0, atol=0)


def error_rate(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return -accuracy(outputs, targets)


def held_out(bank: PredictionBank) -> tuple[torch.Tensor, torch.Tensor]:
    return bank.items(split_items(len(bank), LearnOptions())[1])


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
    surrogate = ClassificationReLoss(**PRESETS[options.fidelity], width=16)
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


def not_finite(outputs, targets):
    return torch.full((len(outputs),), float("nan"))


def per_example(outputs, targets):
    return torch.zeros(outputs.shape[:2])


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (not_finite, "metric not_finite returned nan for item 0"),
        (per_example, r"metric per_example returned \[120, 32\] for 120"),
        (lambda o, t: 0.5, "metric <lambda> returned a float for 120 items"),
        (PerItem(lambda o, t: float("nan"), name="undefined"), "metric undefined returned nan for item 0"),
    ],
)
def test_the_error_names_a_metric_without_one_finite_value_per_item(improving_bank, metric, message):
    with pytest.raises(RelossError, match=message):
        fit(improving_bank(), metric)


@pytest.mark.parametrize("metric", [average_precision, bleu])
def test_the_error_names_a_metric_for_other_predictions(improving_bank, metric):
    with pytest.raises(RelossError, match=f"metric {metric.__name__} cannot measure the bank's predictions"):
        fit(improving_bank(), metric)


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
    synthetic = 24 + 1024  # held-out items and the pool
    assert calls.stat().st_size == 120 + synthetic
    assert_same_fit(fit(bank, PerItem(counted, workers=1), higher_is_better=True), first)
    assert calls.stat().st_size == 120 + synthetic + CHECKED
    fit(bank, PerItem(counted, workers=1), seed=1, steps=2)
    assert calls.stat().st_size == 120 + synthetic + CHECKED + synthetic + CHECKED


def test_a_direction_that_contradicts_a_torchmetrics_object_is_refused(improving_bank):
    with pytest.raises(UsageError, match="metric MulticlassAccuracy declares that higher is better"):
        fit(improving_bank(), MulticlassAccuracy(5), higher_is_better=False)


def constant(outputs, targets):
    return torch.full((len(outputs),), 0.25)


@pytest.mark.parametrize("mixture", ["half", "recorded", "relabelled"])
def test_a_constant_metric_is_refused(improving_bank, mixture):
    with pytest.raises(RelossError, match=r"metric constant is 0\.25 for every item, so there is nothing to rank"):
        fit(improving_bank(), constant, mixture=mixture)


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


def bank_of(path: Path, outputs: torch.Tensor, targets: torch.Tensor) -> PredictionBank:
    bank = PredictionBank.create(path / "other", item_size=8)
    bank.append(outputs, targets, 0)
    bank.finish()
    return bank


@pytest.mark.parametrize(
    ("outputs", "targets", "shapes"),
    [
        ((160,), (160,), r"outputs \[N, 8\] and targets \[N, 8\]"),
        ((160, 3, 4, 4), (160, 3, 4, 4), r"outputs \[N, 8, 3, 4, 4\] and targets \[N, 8, 3, 4, 4\]"),
        ((160, 5), (160, 5), r"outputs \[N, 8, 5\] and targets \[N, 8, 5\]"),
    ],
)
def test_the_error_names_a_bank_of_other_predictions(tmp_path, outputs, targets, shapes):
    bank = bank_of(tmp_path, torch.randn(outputs), torch.randint(2, targets))
    with pytest.raises(RelossError, match=f"ClassificationReLoss cannot learn from the bank {bank.path}.*{shapes}"):
        fit(bank)


def test_targets_beyond_the_classes_are_refused(tmp_path):
    bank = bank_of(tmp_path, torch.randn(160, 5), torch.full((160,), 7))
    with pytest.raises(RelossError, match=r"ClassificationReLoss cannot learn .*outputs \[N, 8, 5\]"):
        fit(bank)


def test_a_target_to_be_ignored_is_refused_in_any_item(tmp_path):
    targets = torch.randint(5, (160,))
    targets[-1] = -100
    with pytest.raises(RelossError, match=r"targets must be whole numbers from 0 to 4, not -100; drop .*keep"):
        fit(bank_of(tmp_path, torch.randn(160, 5), targets))


def test_a_bank_of_one_class_is_refused(tmp_path):
    bank = bank_of(tmp_path, torch.randn(160, 5), torch.full((160,), 3))
    with pytest.raises(
        RelossError, match=f"all targets in the bank {bank.path} are 3, so no item is better than another"
    ):
        fit(bank)


@pytest.mark.parametrize("items", [0, 1, 5])
def test_too_few_items(improving_bank, items):
    with pytest.raises(RelossError, match=f"holds {items} items, too few to learn from and to hold out 20%"):
        fit(improving_bank(steps=items))


def test_held_out_items_are_not_learned_from():
    learned_from, held_out = split_items(100, LearnOptions())
    assert len(held_out) == 20
    assert sorted([*learned_from.tolist(), *held_out.tolist()]) == list(range(100))
    assert held_out.tolist() != split_items(100, LearnOptions(seed=1))[1].tolist()
    assert len(split_items(100_000, LearnOptions())[1]) == 1024


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ({"settings": {"step": 5}}, "unknown option of the fit 'step'.*steps"),
        (
            {"settings": {"method": "laplace", "steepness": 8}},
            "steepness is an option of correlation=spearman with method=bitonic or odd_even, not of .*method=laplace, not 8",
        ),
        (
            {"settings": {"correlation": "kendall", "steepness": 8}},
            "steepness: .*not of correlation=kendall with method=bitonic",
        ),
        ({"settings": {"steps": 0}}, "options of the fit: steps: .*greater than or equal to 1, not 0"),
        ({"bank": "bank"}, "the bank must be a PredictionBank, not 'bank'; PredictionBank.open reads"),
        ({"surrogate": ClassificationReLoss}, "the surrogate must be an instance of a surrogate class, not <class"),
    ],
)
def test_the_error_names_the_mistake(improving_bank, mistake, message):
    surrogate, bank = mistake.get("surrogate", ClassificationReLoss()), mistake.get("bank", improving_bank())
    with pytest.raises(UsageError, match=message):
        fit_surrogate(surrogate, bank, accuracy, **mistake.get("settings", {}))


def test_options_and_settings_exclude_each_other(improving_bank):
    with pytest.raises(UsageError, match="either options or single settings"):
        fit_surrogate(ClassificationReLoss(), improving_bank(), accuracy, options=LearnOptions(), steps=3)


def test_settings_are_options(improving_bank):
    result = fit_surrogate(ClassificationReLoss(width=4), improving_bank(), accuracy, steps=3, items=8)
    assert [entry["step"] for entry in result.history] == [3]


@pytest.mark.parametrize(
    ("fidelity", "expected"),
    [
        ("released", (False, "ordinal", "item", "relabelled", False)),
        ("corrected", (True, "mean", "example", "half", True)),
    ],
)
def test_fidelity_decides_unset_options(fidelity, expected):
    names = ("standardize", "ties", "penalty", "mixture", "calibrate")
    options = LearnOptions(fidelity=fidelity)
    assert tuple(getattr(options, name) for name in names) == expected
    explicit = LearnOptions(fidelity=fidelity, mixture="all", ties="mean")
    assert (explicit.mixture, explicit.ties) == ("all", "mean")
    assert explicit.calibrate == expected[-1]
    assert LearnOptions(**options.model_dump()) == options


@pytest.mark.parametrize("method", ["odd_even", "laplace", "pairwise"])
def test_options_survive_a_round_trip(method):
    """The written options include every default, also that of `steepness`."""
    options = LearnOptions(method=method)
    assert LearnOptions(**options.model_dump()) == options


@pytest.mark.parametrize(
    "wrong", [{"stepz": 3}, {"steps": 0}, {"items": 1}, {"validation_fraction": 1.0}, {"ties": "x"}]
)
def test_unknown_options_and_wrong_values_are_refused(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        LearnOptions(**wrong)


def test_a_diverging_fit_is_reported(improving_bank):
    with pytest.raises(RelossError, match="smaller learning_rate"):
        fit_surrogate(ClassificationReLoss(width=16), improving_bank(), accuracy, steps=3, items=8, learning_rate=1e30)
