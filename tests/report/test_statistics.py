import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from reloss.report.statistics import describe, paired_difference

SCORES = st.floats(0, 100).map(lambda value: round(value, 2))


@given(st.lists(st.tuples(SCORES, SCORES), min_size=2, max_size=10))
def test_the_interval_equals_the_one_of_the_paired_t_test(pairs):
    ours, baseline = np.array(pairs).T
    difference = paired_difference(dict(enumerate(ours)), dict(enumerate(baseline)))
    assert difference.n == len(pairs)
    assert difference.mean == pytest.approx((ours - baseline).mean(), abs=1e-9)
    if np.ptp(ours - baseline) > 1e-6:  # SciPy returns NaN if all differences are equal
        expected = stats.ttest_rel(ours, baseline).confidence_interval(0.95)
        assert (difference.low, difference.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    else:
        assert (difference.low, difference.high) == pytest.approx((difference.mean, difference.mean), abs=1e-6)


def test_pairs_are_the_common_seeds():
    difference = paired_difference({0: 1.0, 2: 5.0, 7: 9.0}, {2: 4.0, 0: 3.0, 5: 100.0})
    assert difference.mean == -0.5
    assert difference.n == 2
    assert difference.high - difference.mean == pytest.approx(12.7062 * 1.5, rel=1e-4)  # t(0.975, 1) x standard error


def test_one_pair_has_no_interval_and_none_no_difference():
    assert paired_difference({3: 2.0}, {3: 0.5}) == (1.5, None, None, 1)
    assert paired_difference({0: 1.0}, {1: 1.0}) is None
    assert paired_difference({}, {}) is None


@given(st.lists(SCORES, min_size=2, max_size=10))
def test_describe_is_mean_and_sample_deviation(values):
    sample = describe(values)
    assert sample.mean == pytest.approx(sum(values) / len(values))
    assert sample.std == pytest.approx(statistics.stdev(values), abs=1e-9)
    assert sample.n == len(values)


def test_one_value_has_no_deviation():
    assert describe([4.0]) == (4.0, None, 1)
