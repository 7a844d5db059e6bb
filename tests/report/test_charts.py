import math

import pytest

from reloss.report.charts import BOTTOM, HEIGHT, LEFT, MAX_POINTS, RIGHT, TOP, WIDTH, Series, chart


def numbers(path):
    return [float(word) for word in path.strip("MZ").replace("L", " ").split()]


def test_a_line_spans_the_frame_and_points_upwards():
    (drawn,) = chart("t", "x", "y", [Series("a", [0, 10], [0, 1])], "alt").series
    x0, y0, x1, y1 = numbers(drawn.line)
    assert LEFT < x0 < x1 < WIDTH - RIGHT
    assert TOP < y1 < y0 < HEIGHT - BOTTOM
    margin = 0.03 / 1.06
    assert x0 == pytest.approx(LEFT + margin * (WIDTH - LEFT - RIGHT), abs=0.1)
    assert y1 == pytest.approx(TOP + margin * (HEIGHT - TOP - BOTTOM), abs=0.1)
    assert drawn.points == [(x0, y0), (x1, y1)]


def test_a_band_runs_along_low_and_back_along_high():
    (drawn,) = chart("t", "x", "y", [Series("a", [0, 1], [1, 1], [0, 0], [2, 2])], "alt").series
    x0, low, x1, _, back, high, *_ = numbers(drawn.band)
    assert x0 < x1 == back
    assert high < low
    assert drawn.band.endswith("Z")


def test_ticks_lie_in_the_frame_and_have_labels():
    drawn = chart("t", "x", "y", [Series("a", [1, 20], [0.011, 0.0149])], "alt")
    assert [tick.text for tick in drawn.xticks] == ["5", "10", "15", "20"]
    assert all(LEFT <= tick.at <= WIDTH - RIGHT for tick in drawn.xticks)
    assert all(TOP <= tick.at <= HEIGHT - BOTTOM for tick in drawn.yticks)
    assert [tick.text for tick in drawn.yticks] == ["0.011", "0.012", "0.013", "0.014", "0.015"]


def test_values_that_are_not_finite_are_skipped():
    drawn = chart("t", "x", "y", [Series("a", [0, 1, 2], [1, math.nan, 2]), Series("b", [0], [math.inf])], "alt")
    assert [series.name for series in drawn.series] == ["a"]
    assert len(drawn.series[0].points) == 2
    assert chart("t", "x", "y", [Series("a", [], []), Series("b", [0], [math.nan])], "alt") is None


@pytest.mark.parametrize("value", [0.0, 5.0, -1e-9, 1e9])
def test_a_constant_is_drawn_within_the_frame(value):
    (drawn,) = chart("t", "x", "y", [Series("a", [1, 2, 3], [value] * 3)], "alt").series
    assert all(TOP < y < HEIGHT - BOTTOM for _, y in drawn.points)


def test_long_series_are_thinned_and_keep_their_ends():
    (drawn,) = chart("t", "x", "y", [Series("a", range(100_000), range(100_000))], "alt").series
    values = numbers(drawn.line)
    assert len(values) == 2 * MAX_POINTS
    assert values[0] == pytest.approx(LEFT + 0.03 / 1.06 * (WIDTH - LEFT - RIGHT), abs=0.1)
    assert drawn.points == []


def test_points_have_no_line():
    (drawn,) = chart("t", "x", "y", [Series("a", range(50), range(50), kind="points")], "alt").series
    assert drawn.line == ""
    assert len(drawn.points) == 50
