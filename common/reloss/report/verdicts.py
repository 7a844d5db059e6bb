"""What measurements allow to state: whether a published number is reproduced, and what a claim is worth.

Both rules look at 95 % intervals only, so that noise earns no verdict: a wide interval leaves everything undecided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from reloss.report.row_status import RowKind
from reloss.report.statistics import Sample, Side

MARGIN = 0.2
"""Points around a published score that count as equal: half of the one improvement on a validation split that could be
verified (74.4 to 74.8 AP). A larger margin could not tell the learned loss from the ordinary one."""
MIN_SEEDS = 3
"""Fewer seeds can agree by chance."""


def reproduction(ours: Sample, published: float) -> tuple[RowKind, str]:
    """Return whether a score at full scale reproduces the published one, with a note. Both are in percent.

    `reproduced` needs MIN_SEEDS seeds and a 95 % t interval of their mean that lies wholly within MARGIN points of the
    published value. So the interval is at most 2 MARGIN points wide. An interval beyond the margin on one side is a
    difference; every other one is undecided.
    """
    low, high = ours.interval()
    if ours.n < MIN_SEEDS:
        return RowKind.UNDECIDED, f"{ours.n} of {MIN_SEEDS} seeds"
    if published - MARGIN <= low and high <= published + MARGIN:
        return RowKind.REPRODUCED, ""
    if high < published - MARGIN:
        return RowKind.NOT_REPRODUCED, "below the published value"
    if low > published + MARGIN:
        return RowKind.HIGHER, ""
    return RowKind.UNDECIDED, f"[{low:.2f}, {high:.2f}] is not within {MARGIN:g} points of the published value"


class Verdict(StrEnum):
    """What the evidence makes of a claim. The values are the words that are shown."""

    VERIFIED = "verified"
    CONTRADICTED = "contradicted"
    UNDECIDED = "undecided"
    """Measured at the claim's scale, and too close to tell."""
    REDUCED = "reduced scale only"
    """Measured on less data or a smaller model than the claim speaks of; the note tells the direction."""
    NOT_TESTED = "not tested"
    """The note tells what a test needs."""


@dataclass(frozen=True)
class Judgement:
    """A verdict with its note; the text joins both."""

    verdict: Verdict
    note: str = ""

    def __str__(self) -> str:
        return f"{self.verdict}: {self.note}" if self.note else str(self.verdict)


def judge(sides: Sequence[Side], at_scale: bool, needs: str) -> Judgement:
    """Return the verdict on a claim.

    A measurement supports the claim if its 95 % interval lies above 0, and opposes it if the interval lies below 0; an
    interval that contains 0, also at an end, and a single seed do neither. The measurements as a whole are

    - in favour, if every one of them supports the claim,
    - against it, if every one of them opposes it,
    - undecided otherwise: some interval contains 0, or they disagree.

    At the scale of the claim, these are the verdicts `verified`, `contradicted` and `undecided`. At a smaller scale the
    verdict is `reduced scale only`, with the direction as its note: nothing there verifies or contradicts the claim.
    Without any measurement it is `not tested`.

    Args:
        sides: where each measured difference lies; a positive difference supports the claim.
        at_scale: whether they were measured at the scale that the claim speaks of.
        needs: what a test at this scale needs.
    """
    if not sides:
        return Judgement(Verdict.NOT_TESTED, f"needs {needs}")
    directions = set(sides)
    if not at_scale:
        words = {Side.ABOVE: "in favour", Side.BELOW: "against"}
        return Judgement(Verdict.REDUCED, words.get(sides[0], "undecided") if len(directions) == 1 else "undecided")
    if directions == {Side.ABOVE}:
        return Judgement(Verdict.VERIFIED)
    return Judgement(Verdict.CONTRADICTED if directions == {Side.BELOW} else Verdict.UNDECIDED)
