"""How a surrogate is learned: the options of the fit. Imports no torch."""

from typing import Any, Literal, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from reloss.surrogates.options import Fidelity, Penalty

NETWORKS = ("bitonic", "odd_even")  # methods of soft ranks that use `steepness`

# What the release computes. The defaults of the fields fix its known flaws; the description of a field says which.
RELEASED: dict[str, Any] = {
    "standardize": False,
    "ties": "ordinal",
    "penalty": "item",
    "mixture": "relabelled",
    "calibrate": False,
}

# Mixtures of items: the shares of the sources in `reloss.learning.items`.
MIXTURES: dict[str, dict[str, float]] = {
    "recorded": {"recorded": 1},
    "relabelled": {"relabelled": 1},  # the release's
    "random": {"random": 1},
    "half": {"recorded": 1, "relabelled": 1},
    "shuffled": {"recorded": 1, "shuffled": 1},  # for any kind of predictions
    "checkpoints": {"recorded": 1, "blended": 1},  # where the targets contain the prediction
    "thresholds": {"recorded": 1, "shifted": 1, "tempered": 1},  # for metrics of a threshold, such as F1
    "perturbed": {"recorded": 1, "noisy": 1, "tempered": 1, "blended": 1},
    "all": {"recorded": 2, "relabelled": 2, "noisy": 1, "tempered": 1, "blended": 1, "random": 1},
}


class LearnOptions(BaseModel):
    """Options of `fit_surrogate`. With `fidelity=released`, unset options in RELEASED take the release's values."""

    model_config = ConfigDict(
        extra="forbid", validate_assignment=False, use_attribute_docstrings=True, allow_inf_nan=False
    )

    fidelity: Fidelity = "corrected"
    """`released`: exactly what the authors' code computes. `corrected`: the same with its known flaws fixed."""
    objective: Literal["rank", "value", "none"] = "rank"
    """`rank`: rank correlation and gradient penalty. `value`: least squares on the metric's value (loss `approx`).
    `none`: nothing is learned, only measured and calibrated (loss `expected`)."""
    correlation: Literal["spearman", "kendall", "pearson"] = "spearman"
    """Correlation of minus the loss with the metric. Pearson takes the losses as they are; Kendall compares pairs."""
    method: Literal["bitonic", "odd_even", "laplace", "pairwise"] = "bitonic"
    """Method of the soft ranks for Spearman's correlation."""
    steepness: float = Field(5.0, gt=0)
    """How sharply the sorting networks `bitonic` and `odd_even` decide a comparison. Other methods refuse it."""
    steps: int = Field(400, ge=1)
    """Number of steps of the optimiser, Adam."""
    items: int = Field(256, ge=2)
    """Number of items that are ranked in one step."""
    learning_rate: float = Field(0.01, gt=0)
    """Learning rate of Adam."""
    weight_decay: float = Field(1e-3, ge=0)
    """Weight decay of Adam."""
    penalty_weight: float = Field(10.0, ge=0)
    """Weight of the gradient penalty, the paper's lambda. Used with `objective=rank` only."""
    validation_fraction: float = Field(0.2, gt=0, lt=1)
    """Share of the bank's items that are held out."""
    validate_every: int = Field(20, ge=1)
    """Steps between two validations. The weights of the best validation are kept."""
    seed: int = 0
    """Seed of the held-out split and of the items of each step."""

    standardize: bool = True
    """Whether losses are standardised before sorting. Raw losses degrade the soft ranks when their scale is small."""
    ties: Literal["mean", "ordinal"] = "mean"
    """Ranks of equal metric values: their mean, or (as released) an arbitrary order. Accuracy has many ties."""
    penalty: Literal["auto", "item", "example", "one_sided", "off"] = "auto"
    """Which gradient norm is held at 1. `item` (as released): the gradient of the item's mean loss; each example's own
    slope then tends to the item size. `example`: that of each example's loss. `one_sided`: the same, only above 1.
    `off`: none. `auto`: `off` with expected features, `one_sided` for sets, else `example`."""
    mixture: str | dict[str, float] = "half"
    """Sources of the items: a name in MIXTURES, or shares such as {recorded: 1, noisy: 1}. The release discards the
    recorded labels and relabels; `half` takes half of the items with their true labels."""
    pool: int | None = Field(None, ge=2)
    """Number of items from the other sources that are generated once and reused. By default they are generated in every
    step (for metrics that are computed item by item, 1,024 are generated once)."""
    patience: int | None = Field(None, ge=1)
    """Number of validations in a row without a better one after which the fit ends; by default it takes all steps."""
    calibrate: bool = True
    """Whether the loss is multiplied by one constant, so that its mean gradient norm on the bank is the ordinary
    loss's."""

    @field_validator("steepness")
    @classmethod
    def _belongs_to_a_network(cls, steepness: float, fields: ValidationInfo) -> float:
        default = cls.model_fields["steepness"].default  # every config that was written out contains it
        correlation, method = (fields.data.get(name) for name in ("correlation", "method"))
        if steepness != default and not (correlation == "spearman" and method in NETWORKS):
            raise ValueError(
                f"steepness is an option of correlation=spearman with method={' or '.join(NETWORKS)}, not of "
                f"correlation={correlation} with method={method}"
            )
        return steepness

    @field_validator("mixture")
    @classmethod
    def _is_known(cls, mixture: str | dict[str, float]) -> str | dict[str, float]:
        sources = set().union(*MIXTURES.values())
        if isinstance(mixture, str):
            if mixture not in MIXTURES:
                raise ValueError(f"expected one of {', '.join(MIXTURES)}, or shares of {', '.join(sorted(sources))}")
        elif not mixture.keys() <= sources or min(mixture.values(), default=0) < 0 or not sum(mixture.values()) > 0:
            raise ValueError(f"expected shares, not negative and not all 0, of {', '.join(sorted(sources))}")
        return mixture

    @model_validator(mode="after")
    def _fill_from_fidelity(self) -> Self:
        if self.fidelity == "released":
            unset = RELEASED.keys() - self.model_fields_set
            self.__dict__.update({name: RELEASED[name] for name in unset})
        return self

    def for_surrogate(self, penalty: Penalty) -> Self:
        """Return these options with `penalty=auto` resolved to the penalty that suits the surrogate."""
        return self.model_copy(update={"penalty": penalty}) if self.penalty == "auto" else self

    def shares(self) -> dict[str, float]:
        """Return the share of each source in the items of a step; the shares sum to 1."""
        mixture = MIXTURES[self.mixture] if isinstance(self.mixture, str) else self.mixture
        return {name: share / sum(mixture.values()) for name, share in mixture.items() if share > 0}

    def sorts_by_network(self) -> bool:
        """Return whether the ranks come from a sorting network, which uses `steepness`."""
        return self.correlation == "spearman" and self.method in NETWORKS


def describe_options() -> str:
    """Return each option as `name=default` with its choices and description, one paragraph each, for `--help`."""
    paragraphs = []
    for name, field in LearnOptions.model_fields.items():
        default, choices = getattr(LearnOptions(), name), get_args(field.annotation)
        names = MIXTURES if name == "mixture" else choices if get_origin(field.annotation) is Literal else ()
        listed = f" ({', '.join(names)})" if names else ""
        description = " ".join(str(field.description).split())
        paragraphs.append(f"{name}={'null' if default is None else default}{listed}: {description}")
    released = " ".join(f"{name}={value}" for name, value in RELEASED.items())
    return "\n".join([*paragraphs, f"fidelity=released sets, where you do not: {released}"])
