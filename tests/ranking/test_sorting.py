import torch
from hypothesis import given
from hypothesis import strategies as st

from reloss.ranking.sorting import cumulative_counts


@given(places=st.lists(st.integers(0, 12), max_size=20), size=st.integers(0, 10))
def test_cumulative_counts_equal_a_search_in_the_sorted_places(places, size):
    places = torch.tensor([places, places[::-1]], dtype=torch.int64)
    expected = torch.searchsorted(places.sort().values, torch.arange(size).expand(2, -1).contiguous(), right=True)
    assert torch.equal(cumulative_counts(places, size), expected)
