"""Charts as geometry: what a template needs to draw them as SVG, whatever the colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

WIDTH, HEIGHT = 420.0, 270.0
LEFT, RIGHT, TOP, BOTTOM = 62.0, 10.0, 10.0, 40.0  # of the frame, within the picture
POINTS = 200  # a series holds at most
MARKED = 12  # a line of up to so many points shows them

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Series:
    """Values to draw in one colour: a line, with a band from `low` to `high` where they are given, or single points."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    kind: Literal["line", "points"] = "line"
    slot: int = 0
    """The number of its colour."""


@dataclass(frozen=True)
class Mark:
    """A tick of an axis: where, and what stands there."""

    at: float
    text: str


@dataclass(frozen=True)
class Drawn:
    """A series in the picture's coordinates: SVG paths of line and band, and centres of points."""

    name: str
    slot: int
    line: str
    band: str
    points: list[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """A picture of several series, with its axes; `alt` says in words what it shows."""

    title: str
    xlabel: str
    ylabel: str
    alt: str
    xticks: list[Mark]
    yticks: list[Mark]
    series: list[Drawn]


def chart(title: str, xlabel: str, ylabel: str, series: Sequence[Series], alt: str) -> Chart | None:
    """Return the chart of the series' finite values, thinned to POINTS each; None if there are none."""
    kept = [(each, *_finite(each)) for each in series]
    kept = [(each, x, bands) for each, x, bands in kept if len(x)]
    if not kept:
        return None
    xs = _axis(np.concatenate([x for _, x, _ in kept]), LEFT, WIDTH - RIGHT)
    ys = _axis(np.concatenate([np.concatenate(bands) for _, _, bands in kept]), HEIGHT - BOTTOM, TOP)
    drawn = [_draw(each, x, bands, xs, ys) for each, x, bands in kept]
    return Chart(title, xlabel, ylabel, alt, xs.ticks, ys.ticks, drawn)


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    start: float
    end: float
    whole: bool

    def __call__(self, values: Floats) -> Floats:
        return np.round(self.start + (values - self.low) / (self.high - self.low) * (self.end - self.start), 1)

    @property
    def ticks(self) -> list[Mark]:
        found = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], integer=self.whole).tick_values(self.low, self.high)
        return [Mark(float(self(np.array(v))), f"{v:.6g}") for v in found if self.low <= v <= self.high]


def _axis(values: Floats, start: float, end: float) -> _Axis:
    low, high = float(values.min()), float(values.max())
    margin = 0.03 * (high - low) or 0.05 * abs(high) or 1.0
    return _Axis(low - margin, high + margin, start, end, bool((values == values.round()).all()))


def _finite(series: Series) -> tuple[Floats, list[Floats]]:
    """Return the positions, and values [, low, high], where all are finite."""
    band = [] if series.low is None or series.high is None else [series.low, series.high]
    values = np.array([series.x, series.y, *band], dtype=np.float64)
    values = values[:, np.isfinite(values).all(0)]
    if values.shape[1] > POINTS:
        values = values[:, np.linspace(0, values.shape[1] - 1, POINTS).round().astype(int)]
    return values[0], list(values[1:])


def _draw(series: Series, x: Floats, bands: list[Floats], xs: _Axis, ys: _Axis) -> Drawn:
    across, up = xs(x), ys(bands[0])
    marked = series.kind == "points" or len(x) <= MARKED
    line = "" if series.kind == "points" else _path(across, up)
    band = ""
    if len(bands) == 3:
        outline = np.concatenate([across, across[::-1]]), np.concatenate([ys(bands[1]), ys(bands[2])[::-1]])
        band = _path(*outline) + "Z"
    points = list(zip(across.tolist(), up.tolist(), strict=True)) if marked else []
    return Drawn(series.name, series.slot, line, band, points)


def _path(x: Floats, y: Floats) -> str:
    return "M" + "L".join(f"{a:g} {b:g}" for a, b in zip(x, y, strict=True))
