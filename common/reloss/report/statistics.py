"""Means over seeds, and paired differences with their interval.

Two losses are compared run by run: the same seed gives both the same initial weights and data order, so that most of
the noise cancels in the difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

import numpy as np


class Sample(NamedTuple):
    """Mean and standard deviation (n - 1; None for one seed) over n seeds."""

    mean: float
    std: float | None
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + (f" ± {self.std:.2f}" if self.std is not None else "")

    def interval(self) -> tuple[float, float]:
        """Return the 95 % t interval of the mean; for one value, that value twice."""
        half = _half_width(self.std, self.n) if self.std is not None else 0.0
        return self.mean - half, self.mean + half


class Side(StrEnum):
    """Where a 95 % interval lies, which is all that a sentence may state of a difference."""

    ABOVE = "above zero"
    BELOW = "below zero"
    AROUND = "around zero"
    """It contains 0, also at an end: too close to tell."""
    SINGLE = "one seed"
    """There is no interval."""


class Difference(NamedTuple):
    """Mean of paired differences over n common seeds, with its 95 % t interval (None for one seed)."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def side(self) -> Side:
        """Where the interval lies."""
        if self.low is None or self.high is None:
            return Side.SINGLE
        return Side.ABOVE if self.low > 0 else Side.BELOW if self.high < 0 else Side.AROUND

    def __str__(self) -> str:
        interval = f"[{self.low:+.2f}, {self.high:+.2f}]" if self.low is not None else "(one seed)"
        return f"{self.mean:+.2f} {interval}"


def sample_data(sample: Sample | None, prefix: str = "") -> dict[str, float | None]:
    """Return the numbers of a sample by name, for programs: mean, std and n, each after the prefix."""
    values = sample or (None, None, 0)
    return {f"{prefix}{name}": value for name, value in zip(("mean", "std", "n"), values, strict=True)}


def difference_data(difference: Difference | None) -> dict[str, float | None]:
    """Return the numbers of a difference by name, for programs; pairs is the number of common seeds."""
    values = difference or (None, None, None, 0)
    return dict(zip(("difference", "low", "high", "pairs"), values, strict=True))


def describe(values: Sequence[float]) -> Sample:
    """Return mean and standard deviation of at least one value."""
    return Sample(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None, len(values))


def paired_difference(ours: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
    """Return the difference ours - baseline of scores by seed, paired by seed; None without a common seed.

    The interval is Student's t interval for the mean of the differences; with equal differences it has no width.
    """
    seeds = sorted(ours.keys() & baseline.keys())
    if not seeds:
        return None
    differences = np.array([ours[seed] - baseline[seed] for seed in seeds])
    mean, n = float(differences.mean()), len(differences)
    if n == 1:
        return Difference(mean, None, None, 1)
    half = _half_width(float(differences.std(ddof=1)), n)
    return Difference(mean, mean - half, mean + half, n)


def _half_width(std: float, n: int) -> float:
    """Return half the width of Student's 95 % interval for the mean of n > 1 values."""
    from scipy import stats  # slow to import, and most tables of a command need no interval

    return float(stats.t.ppf(0.975, n - 1) * std / np.sqrt(n))
