"""The benchmark of ranks compares like with like, and keeps each device's results apart."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import ranking, results_folder
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


@pytest.mark.parametrize(("gpu", "folder"), [(None, "cpu"), ("NVIDIA H100 80GB HBM3", "nvidia-h100-80gb-hbm3")])
def test_results_are_kept_under_the_name_of_the_device(monkeypatch, gpu, folder):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: gpu)
    assert results_folder() == Path("results", "benchmarks", folder)
