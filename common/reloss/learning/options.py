"""How a surrogate is learned: the settings of the fit, and the two named sets of them. Imports no torch."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fidelity = Literal["released", "corrected"]

# What the release computes, and what puts each of its known traps right (the reason stands at the field).
PRESETS: dict[str, dict[str, Any]] = {
    "released": {
        "standardize": False,
        "ties": "ordinal",
        "penalty_slope": "item",
        "real_fraction": 0.0,
        "calibrate": False,
        "input": "probability",
        "output": "absolute",
    },
    "corrected": {
        "standardize": True,
        "ties": "mean",
        "penalty_slope": "example",
        "real_fraction": 0.5,
        "calibrate": True,
        "input": "log_probability",
        "output": "monotone",
    },
}


class LearnOptions(BaseModel):
    """Settings of `fit_surrogate`. `fidelity` chooses those that are left out among the last seven."""

    model_config = ConfigDict(extra="forbid", validate_assignment=False)

    fidelity: Fidelity = "corrected"
    objective: Literal["rank", "value"] = "rank"
    """`rank`: rank correlation and gradient penalty; `value`: least squares on the metric's value (`approx`)."""
    method: Literal["bitonic", "odd_even", "laplace", "pairwise"] = "bitonic"
    """Of the soft ranks. `steepness` is of the sorting networks alone."""
    steepness: float = Field(5.0, gt=0)
    steps: int = Field(400, ge=1)
    items: int = Field(256, ge=2, description="ranked in one step")
    learning_rate: float = Field(0.01, gt=0)
    weight_decay: float = Field(1e-3, ge=0)
    penalty_weight: float = Field(10.0, ge=0, description="lambda; used with objective rank alone")
    validation_fraction: float = Field(0.2, gt=0, lt=1, description="of the bank's items, held out")
    validate_every: int = Field(20, ge=1)
    seed: int = 0

    standardize: bool = False
    """The sorter sees raw losses and degrades with their scale; standardised losses rank alike at any scale."""
    ties: Literal["mean", "ordinal"] = "mean"
    """Accuracy over 128 examples ties for certain; double argsort (ordinal) breaks ties arbitrarily."""
    penalty_slope: Literal["item", "example"] = "example"
    """The released penalty holds the slope of the item's mean loss at 1, so each example's own at its item's size."""
    real_fraction: float = Field(0.5, ge=0, le=1)
    """Share of recorded items with their true labels; the release throws these away and ranks synthetic items alone."""
    calibrate: bool = True
    """Multiply the loss by one constant: its mean gradient norm on the bank becomes the ordinary loss's."""
    input: Literal["probability", "log_probability"] = "log_probability"
    """Of the classification network: p passes no gradient where it is 0 or 1; log p does."""
    output: Literal["absolute", "identity", "monotone"] = "monotone"
    """Of the classification network: the absolute value can fold the learned curve, and the penalty is blind to the
    sign of its slope; a network that is monotone by construction has neither trap."""

    @model_validator(mode="after")
    def _fill_from_fidelity(self) -> Self:
        for name, value in PRESETS[self.fidelity].items():
            if name not in self.model_fields_set:
                self.__dict__[name] = value
        return self
