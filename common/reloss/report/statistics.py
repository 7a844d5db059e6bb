"""Means over seeds, and paired differences with their interval.

Two losses are compared run by run: the same seed gives both the same initial weights and data order, so that most of
the noise cancels in the difference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import cache
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
    return student_quantile(0.95, n - 1) * std / math.sqrt(n)


@cache
def student_quantile(probability: float, freedom: int) -> float:
    """Return the bound that |t| stays below with the given probability, for Student's t.

    The probability is a finite sum in the angle a = atan(t / sqrt(freedom)) (Abramowitz and Stegun, 26.7.3 and 26.7.4),
    and grows with it, so halving an interval finds the angle. scipy.stats would take half a second to import.

    Args:
        probability: the probability, in (0, 1).
        freedom: degrees of freedom, a whole number of at least 1.
    """
    low, high = 0.0, math.pi / 2
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if _probability(middle, freedom) < probability else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _probability(angle: float, freedom: int) -> float:
    """Return the probability that |t| < sqrt(freedom) tan(angle)."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = sine * cosine if odd else sine
    total = 0.0
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= cosine**2 * k / (k + 1)
    return 2 / math.pi * (angle + total) if odd else total
