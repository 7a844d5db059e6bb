"""What an ablation is: experiments and variants of them, one factor at a time around a centre. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """One value of one factor: a loss and the settings that differ from the experiment's own."""

    factor: str
    value: str
    loss: str
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ablation:
    """The grid of a task.

    Attributes:
        experiments: by name, with roughly the minutes that a run takes on one core.
        variants: of each experiment; the ordinary loss and the centre are among them.
    """

    experiments: Mapping[str, float]
    variants: tuple[Variant, ...]
