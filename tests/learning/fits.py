"""Small fits for the tests of learning."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch.testing import assert_close

from reloss import ClassificationReLoss
from reloss.learning import FitResult, LearnOptions, PredictionBank, fit_surrogate
from reloss.learning.sampling import split_items
from reloss.metrics import Metric, accuracy
from reloss.surrogates.options import FEATURES, PRESETS

SETTINGS = {"steps": 60, "items": 32, "validate_every": 20}


def surrogate_for(options: LearnOptions, backwards: bool = False, **network: str) -> ClassificationReLoss:
    """A fresh network whose loss falls with the target's probability, or rises if `backwards`; it is never negative."""
    torch.manual_seed(0)
    surrogate = ClassificationReLoss(**{**PRESETS[FEATURES[options.fidelity]], **network}, width=16)
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


def held_out(bank: PredictionBank) -> tuple[torch.Tensor, torch.Tensor]:
    return bank.items(split_items(len(bank), LearnOptions())[1])
