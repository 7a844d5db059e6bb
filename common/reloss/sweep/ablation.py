"""What an ablation is: experiments and variants of them, one factor at a time around a centre. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass

ABLATION = "ablation"


@dataclass(frozen=True)
class Variant:
    """One value of one factor: a loss, and the settings that differ from the experiment's own."""

    factor: str
    value: str
    loss: str
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ablation:
    """The grid of a task.

    Attributes:
        experiments: names of the experiments, each with the approximate minutes of a run on one core.
        variants: variants of each experiment, including the ordinary loss and the centre.
        name: what `reloss sweep` calls it. The table of the ablation shows those called `ablation`.
    """

    experiments: Mapping[str, float]
    variants: tuple[Variant, ...]
    name: str = ABLATION
