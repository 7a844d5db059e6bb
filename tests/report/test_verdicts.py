"""The rules behind every verdict, at their borders."""

import pytest

from reloss.report.row_status import RowKind
from reloss.report.statistics import Difference, Sample, Side
from reloss.report.verdicts import MARGIN, MIN_SEEDS, judge, reproduction

ABOVE, BELOW, AROUND, SINGLE = Side.ABOVE, Side.BELOW, Side.AROUND, Side.SINGLE
T = 4.302652729911275  # quantile of Student's t for three seeds


@pytest.mark.parametrize(
    ("low", "high", "side"),
    [
        *((1e-9, 2, ABOVE), (0, 2, AROUND), (-1, 1, AROUND), (-2, 0, AROUND), (-2, -1e-9, BELOW)),
        *((0, 0, AROUND), (None, None, SINGLE)),
    ],
)
def test_an_interval_that_touches_zero_is_too_close_to_tell(low, high, side):
    assert Difference(1, low, high, 3).side is side


def sample(mean: float, half_width: float, n: int = MIN_SEEDS) -> Sample:
    """Three seeds whose 95 % interval has this half width."""
    return Sample(mean, half_width * n**0.5 / T, n)


@pytest.mark.parametrize(
    ("ours", "kind"),
    [
        (sample(74.8, 0.99 * MARGIN), RowKind.REPRODUCED),
        (sample(74.8, 1.01 * MARGIN), RowKind.UNDECIDED),  # the mean is right, the interval too wide
        (sample(74.8 + 0.5 * MARGIN, 0.49 * MARGIN), RowKind.REPRODUCED),
        (sample(74.8 + 0.5 * MARGIN, 0.51 * MARGIN), RowKind.UNDECIDED),
        (sample(74.8 - 0.5 * MARGIN, 0.51 * MARGIN), RowKind.UNDECIDED),
        (sample(74.8, 5), RowKind.UNDECIDED),  # noise contains every value
        (sample(74.8 + 2 * MARGIN, 0.9 * MARGIN), RowKind.HIGHER),
        (sample(74.8 + 2 * MARGIN, 1.1 * MARGIN), RowKind.UNDECIDED),
        (sample(74.8 - 2 * MARGIN, 0.9 * MARGIN), RowKind.NOT_REPRODUCED),
        (sample(74.8 - 2 * MARGIN, 1.1 * MARGIN), RowKind.UNDECIDED),
        (Sample(74.8, 0.0, MIN_SEEDS), RowKind.REPRODUCED),
        (Sample(74.8, 0.0, MIN_SEEDS - 1), RowKind.UNDECIDED),
        (Sample(74.8, None, 1), RowKind.UNDECIDED),
    ],
)
def test_only_a_narrow_interval_near_the_published_value_reproduces_it(ours, kind):
    assert reproduction(ours, 74.8)[0] is kind


@pytest.mark.parametrize(
    ("sides", "at_scale", "reduced"),
    [
        ([ABOVE], "verified", "in favour"),
        ([ABOVE, ABOVE], "verified", "in favour"),
        ([BELOW, BELOW], "contradicted", "against"),
        ([ABOVE, AROUND], "undecided", "undecided"),
        ([ABOVE, BELOW], "undecided", "undecided"),
        ([BELOW, SINGLE], "undecided", "undecided"),
        ([AROUND], "undecided", "undecided"),
        ([SINGLE], "undecided", "undecided"),
    ],
)
def test_a_claim_needs_every_interval_on_one_side(sides, at_scale, reduced):
    assert str(judge(sides, True, "a GPU")) == at_scale
    assert str(judge(sides, False, "a GPU")) == f"reduced scale only: {reduced}"


@pytest.mark.parametrize("at_scale", [True, False])
def test_a_claim_without_a_measurement_names_what_a_test_needs(at_scale):
    assert str(judge([], at_scale, "ImageNet and a GPU")) == "not tested: needs ImageNet and a GPU"
