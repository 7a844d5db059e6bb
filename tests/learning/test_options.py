import pytest
from pydantic import ValidationError

from reloss.learning import LearnOptions


@pytest.mark.parametrize(
    ("fidelity", "expected"),
    [
        ("released", (False, "ordinal", "item", "relabelled", False)),
        ("corrected", (True, "mean", "auto", "half", True)),
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
