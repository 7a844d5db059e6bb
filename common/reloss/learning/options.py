"""How a surrogate is learned: the settings of the fit, and the two named sets of them. Imports no torch."""

from typing import Any, Literal, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

Fidelity = Literal["released", "corrected"]
NETWORKS = ("bitonic", "odd_even")  # methods of soft ranks of which `steepness` is an option

# What the release computes, and what puts each of its known traps right (the reason stands at the field).
PRESETS: dict[str, dict[str, Any]] = {
    "released": {
        "standardize": False,
        "ties": "ordinal",
        "penalty": "item",
        "mixture": "relabelled",
        "calibrate": False,
        "input": "probability",
        "output": "absolute",
    },
    "corrected": {
        "standardize": True,
        "ties": "mean",
        "penalty": "example",
        "mixture": "half",
        "calibrate": True,
        "input": "log_probability",
        "output": "monotone",
    },
}


# Where the items of a step come from: shares of the sources in `reloss.learning.items`.
MIXTURES: dict[str, dict[str, float]] = {
    "recorded": {"recorded": 1},
    "relabelled": {"relabelled": 1},  # the release's
    "random": {"random": 1},
    "half": {"recorded": 1, "relabelled": 1},
    "shuffled": {"recorded": 1, "shuffled": 1},  # of any kind of predictions
    "checkpoints": {"recorded": 1, "blended": 1},  # where the targets hold what was predicted
    "perturbed": {"recorded": 1, "noisy": 1, "tempered": 1, "blended": 1},
    "all": {"recorded": 2, "relabelled": 2, "noisy": 1, "tempered": 1, "blended": 1, "random": 1},
}


class LearnOptions(BaseModel):
    """Settings of `fit_surrogate`. `fidelity` chooses those that are left out among the last ones."""

    model_config = ConfigDict(extra="forbid", validate_assignment=False, use_attribute_docstrings=True)

    fidelity: Fidelity = "corrected"
    """What the release computes, or the same with its known traps put right."""
    objective: Literal["rank", "value"] = "rank"
    """`rank`: rank correlation and gradient penalty; `value`: least squares on the metric's value (`approx`)."""
    correlation: Literal["spearman", "kendall", "pearson"] = "spearman"
    """With the metric. Pearson's takes the losses as they are, Kendall's compares them in pairs."""
    method: Literal["bitonic", "odd_even", "laplace", "pairwise"] = "bitonic"
    """Of Spearman's soft ranks."""
    steepness: float = Field(5.0, gt=0)
    """How sharply a comparison of `bitonic` or `odd_even` decides; of the other methods and correlations refused."""
    steps: int = Field(400, ge=1)
    """Of the optimiser, Adam."""
    items: int = Field(256, ge=2)
    """Ranked in one step."""
    learning_rate: float = Field(0.01, gt=0)
    """Of Adam."""
    weight_decay: float = Field(1e-3, ge=0)
    """Of Adam."""
    penalty_weight: float = Field(10.0, ge=0)
    """Lambda; used with objective rank alone."""
    validation_fraction: float = Field(0.2, gt=0, lt=1)
    """Of the bank's items, held out."""
    validate_every: int = Field(20, ge=1)
    """Steps between two validations, of which the best one's weights are kept."""
    seed: int = 0
    """Of what is held out, and of the items of each step."""

    standardize: bool = False
    """The sorter sees raw losses and degrades with their scale; standardised losses rank alike at any scale."""
    ties: Literal["mean", "ordinal"] = "mean"
    """Accuracy over 128 examples ties for certain; double argsort (ordinal) breaks ties arbitrarily."""
    penalty: Literal["item", "example", "one_sided", "off"] = "example"
    """What is held at 1: the released penalty takes the slope of the item's mean loss, so each example's own is driven
    to its item's size; `example` takes that of each example's own loss; `one_sided` too, only where it exceeds 1."""
    mixture: str | dict[str, float] = "half"
    """A name in MIXTURES, or shares of sources. The release throws the recorded labels away and relabels; `half` of the
    items are recorded ones with their true labels."""
    pool: int | None = Field(None, ge=2)
    """Draw items that are not recorded from so many, made beforehand; anew in every step if unset (of metrics that are
    computed item by item, 1,024 are made)."""
    calibrate: bool = True
    """Multiply the loss by one constant: its mean gradient norm on the bank becomes the ordinary loss's."""
    input: Literal["probability", "log_probability"] = "log_probability"
    """Of the classification network: p passes no gradient where it is 0 or 1; log p does."""
    output: Literal["absolute", "identity", "monotone"] = "monotone"
    """Of the classification network: the absolute value can fold the learned curve, and the penalty is blind to the
    sign of its slope; a network that is monotone by construction has neither trap."""

    @field_validator("steepness")
    @classmethod
    def _of_a_network(cls, steepness: float, others: ValidationInfo) -> float:
        default = cls.model_fields["steepness"].default  # stands in every config that was written out
        correlation, method = (others.data.get(name) for name in ("correlation", "method"))
        if steepness != default and not (correlation == "spearman" and method in NETWORKS):
            raise ValueError(
                f"it is of correlation spearman by method {' or '.join(NETWORKS)}, not of {correlation} by {method}"
            )
        return steepness

    @field_validator("mixture")
    @classmethod
    def _known_mixture(cls, mixture: str | dict[str, float]) -> str | dict[str, float]:
        known = set().union(*MIXTURES.values())
        if isinstance(mixture, str):
            if mixture not in MIXTURES:
                raise ValueError(f"one of {', '.join(MIXTURES)}, or shares of {', '.join(sorted(known))}")
        elif not mixture.keys() <= known or min(mixture.values(), default=0) < 0 or not sum(mixture.values()) > 0:
            raise ValueError(f"shares, not negative and not all 0, of {', '.join(sorted(known))}")
        return mixture

    def shares(self) -> dict[str, float]:
        """Return the share of the items of a step that comes from each source; together 1."""
        mixture = MIXTURES[self.mixture] if isinstance(self.mixture, str) else self.mixture
        return {name: share / sum(mixture.values()) for name, share in mixture.items() if share > 0}

    def sorts_by_network(self) -> bool:
        """Return whether the ranks are those of a sorting network, so that `steepness` counts."""
        return self.correlation == "spearman" and self.method in NETWORKS

    @model_validator(mode="after")
    def _fill_from_fidelity(self) -> Self:
        for name, value in PRESETS[self.fidelity].items():
            if name not in self.model_fields_set:
                self.__dict__[name] = value
        return self


def described() -> str:
    """Return each option as `name=default`, with its choices and what it is, a paragraph each."""
    lines = []
    for name, field in LearnOptions.model_fields.items():
        default, choices = getattr(LearnOptions(), name), get_args(field.annotation)
        known = MIXTURES if name == "mixture" else choices if get_origin(field.annotation) is Literal else ()
        named = f" ({', '.join(known)})" if known else ""
        lines.append(
            f"{name}={'null' if default is None else default}{named}: {' '.join(str(field.description).split())}"
        )
    released = " ".join(f"{name}={value}" for name, value in PRESETS["released"].items())
    return "\n".join([*lines, f"fidelity=released chooses, of what is left out: {released}"])
