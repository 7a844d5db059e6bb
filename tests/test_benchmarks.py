"""The benchmark of ranks compares like with like."""

from collections.abc import Callable

from torch import Tensor

from benchmarks import ranking
from reloss.ranking import soft_rank


def test_operators_take_turns_and_one_that_fails_is_a_row(monkeypatch):
    monkeypatch.setattr(ranking, "LEAST_SECONDS", 0)
    calls = []

    def called(name: str) -> Callable[[Tensor], Tensor]:
        def operator(values: Tensor) -> Tensor:
            calls.append(name)
            return soft_rank(values, "laplace")

        return operator

    def broken(values: Tensor) -> Tensor:
        raise RuntimeError("no kernel\nfor this device")

    tried = {"a": called("a"), "b": called("b"), "broken": broken}
    found = ranking.compare(tried, batch=2, n=8, device="cpu", runs=3)
    warm, timed, measured = calls[:4], calls[4:16], calls[16:]
    assert (warm, timed, measured) == (list("aabb"), list("aabb") * 3, list("ab"))
    assert found["broken"] == {"note": "failed: RuntimeError: no kernel"}
    for name in "ab":
        assert found[name]["forward_ms"] > 0
        assert found[name]["forward_backward_ms"] > 0
        assert found[name]["note"] == "median of 3"
        assert found[name]["peak_mib"] * 2**20 >= 2 * 8 * 4  # of the ranks alone
