import pytest
from hypothesis import given
from hypothesis import strategies as st

from reloss.experiment.seeds import derive_seed, own_seed


def test_a_stream_has_the_same_seed_everywhere() -> None:
    assert derive_seed(0, "initialisation") == 3241431703514431502
    assert derive_seed(3, "epoch", 7) == 3576386118271327276


@given(st.integers(0, 2**31), st.integers(0, 1000))
def test_streams_and_seeds_differ(seed: int, epoch: int) -> None:
    streams = [(seed, "epoch", epoch), (seed, "epoch", epoch + 1), (seed + 1, "epoch", epoch), (seed, "part", epoch)]
    seeds = {derive_seed(*stream) for stream in streams}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_each_process_has_its_own_seed_and_the_main_one_the_usual_seed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    single = own_seed(5, "epoch", 2)
    assert single == derive_seed(5, "epoch", 2)
    seeds = []
    for rank in range(4):
        monkeypatch.setenv("RANK", str(rank))
        seeds.append(own_seed(5, "epoch", 2))
    assert seeds[0] == single
    assert len(set(seeds)) == 4
