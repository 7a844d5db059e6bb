"""Charts as geometry: everything a template needs to draw them as SVG, except for the colours.

A chart is computed here, in Python, so that the page needs no JavaScript library and no network to show it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

WIDTH, HEIGHT = 420.0, 270.0
LEFT, RIGHT, TOP, BOTTOM = 62.0, 10.0, 10.0, 40.0
"""Margins around the frame of the plot."""
MAX_POINTS = 200
"""Points of a series; a longer series is thinned."""
MAX_MARKED = 12
"""Points of a line that shows each of them as a dot."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Series:
    """Values to draw in one colour: a line, with a band from `low` to `high` if these are set, or single points.

    Attributes:
        name: label in the legend.
        x: horizontal positions.
        y: values, as many as `x`.
        low: lower edge of the band.
        high: upper edge of the band.
        kind: a line or single points.
        colour: number of the colour, see `reloss.report.colours`.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    kind: Literal["line", "points"] = "line"
    colour: int = 0


@dataclass(frozen=True)
class Mark:
    """A tick of an axis: its position in the chart, and its label."""

    at: float
    text: str


@dataclass(frozen=True)
class DrawnSeries:
    """A series in the coordinates of the chart: SVG paths of line and band, and centres of points.

    Series of one colour, such as two variants of a loss, differ in their `dash`.
    """

    name: str
    colour: int
    dash: int
    line: str
    band: str
    points: list[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """A chart of several series with its axes; `alt` describes it for readers who do not see it."""

    title: str
    xlabel: str
    ylabel: str
    alt: str
    xticks: list[Mark]
    yticks: list[Mark]
    series: list[DrawnSeries]


def chart(title: str, xlabel: str, ylabel: str, series: Sequence[Series], alt: str) -> Chart | None:
    """Return the chart of the finite values of the series, thinned to MAX_POINTS each; None if there are none."""
    drawable = [(single, *_finite(single)) for single in series]
    drawable = [(single, x, bands) for single, x, bands in drawable if len(x)]
    if not drawable:
        return None
    x_axis = _axis(np.concatenate([x for _, x, _ in drawable]), LEFT, WIDTH - RIGHT)
    y_axis = _axis(np.concatenate([np.concatenate(bands) for _, _, bands in drawable]), HEIGHT - BOTTOM, TOP)
    drawn = [_draw(single, x, bands, x_axis, y_axis, dash) for dash, (single, x, bands) in enumerate(drawable)]
    return Chart(title, xlabel, ylabel, alt, x_axis.ticks, y_axis.ticks, drawn)


@dataclass(frozen=True)
class _Axis:
    """Maps values from `low` to `high` to positions from `start` to `end`; `whole` if all values are integers."""

    low: float
    high: float
    start: float
    end: float
    whole: bool

    def __call__(self, values: Floats) -> Floats:
        return np.round(self.start + (values - self.low) / (self.high - self.low) * (self.end - self.start), 1)

    @property
    def ticks(self) -> list[Mark]:
        values = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], integer=self.whole).tick_values(self.low, self.high)
        return [
            Mark(float(self(np.array(value))), f"{value:.6g}") for value in values if self.low <= value <= self.high
        ]


def _axis(values: Floats, start: float, end: float) -> _Axis:
    low, high = float(values.min()), float(values.max())
    margin = 0.03 * (high - low) or 0.05 * abs(high) or 1.0
    return _Axis(low - margin, high + margin, start, end, bool((values == values.round()).all()))


def _finite(series: Series) -> tuple[Floats, list[Floats]]:
    """Return the positions, and the list of values [, low, high], where all of these are finite."""
    band = [] if series.low is None or series.high is None else [series.low, series.high]
    values = np.array([series.x, series.y, *band], dtype=np.float64)
    values = values[:, np.isfinite(values).all(0)]
    if values.shape[1] > MAX_POINTS:
        values = values[:, np.linspace(0, values.shape[1] - 1, MAX_POINTS).round().astype(int)]
    return values[0], list(values[1:])


def _draw(series: Series, x: Floats, bands: list[Floats], x_axis: _Axis, y_axis: _Axis, dash: int) -> DrawnSeries:
    across, up = x_axis(x), y_axis(bands[0])
    is_marked = series.kind == "points" or len(x) <= MAX_MARKED
    line = "" if series.kind == "points" else _path(across, up)
    band = ""
    if len(bands) == 3:
        low, high = y_axis(bands[1]), y_axis(bands[2])
        band = _path(np.concatenate([across, across[::-1]]), np.concatenate([low, high[::-1]])) + "Z"
    points = list(zip(across.tolist(), up.tolist(), strict=True)) if is_marked else []
    return DrawnSeries(series.name, series.colour, dash, line, band, points)


def _path(x: Floats, y: Floats) -> str:
    return "M" + "L".join(f"{a:g} {b:g}" for a, b in zip(x, y, strict=True))
