"""Benchmarks give what they compare equal conditions, and results of each device have their own folder."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import losses, ranking, results_folder
from reloss.metric_loss import KINDS
from reloss.ranking import soft_rank


def test_operators_take_turns_and_a_failing_one_becomes_a_note(monkeypatch):
    monkeypatch.setattr(ranking, "MIN_CASE_SECONDS", 0)
    calls = []

    def recorded(name: str) -> Callable[[Tensor], Tensor]:
        def operator(values: Tensor) -> Tensor:
            calls.append(name)
            return soft_rank(values, "laplace")

        return operator

    def broken(values: Tensor) -> Tensor:
        raise RuntimeError("no kernel\nfor this device")

    operators = {"a": recorded("a"), "b": recorded("b"), "broken": broken}
    results = ranking.compare(operators, batch=2, n=8, device="cpu", runs=3)
    warmup, timing, memory = calls[:4], calls[4:16], calls[16:]
    assert (warmup, timing, memory) == (list("aabb"), list("aabb") * 3, list("ab"))
    assert results["broken"] == {"note": "failed: RuntimeError: no kernel"}
    for name in "ab":
        assert results[name]["forward_ms"] > 0
        assert results[name]["forward_backward_ms"] > 0
        assert results[name]["note"] == "median of 3"
        assert results[name]["peak_mib"] * 2**20 >= 2 * 8 * 4  # the ranks alone take this much


def test_cases_where_another_library_is_faster_are_named():
    times = {("reloss laplace", 8): 3.0, ("peer", 8): 1.0}  # fewer than 64 values do not count
    times |= {("reloss laplace", 64): 3.0, ("peer", 64): 2.0, ("slow", 64): 9.0, ("reloss pairwise", 64): 1.0}
    times |= {("reloss laplace", 100): 1.0, ("peer", 100): 2.0, ("reloss laplace", 1000): 1.0}
    rows = [{"operation": "rank", "batch": 1, "library": library, "n": n, "forward_backward_ms": duration}
            for (library, n), duration in times.items()]  # fmt: skip
    assert ranking.standing(rows).splitlines()[0] == (
        "- rank: first in 2 of 3 cases from 64 values on; slower than the fastest, in times, at 1 x 64: 1.5."
    )


def test_losses_are_compared_with_the_first_one():
    rows = losses.measure("logits", losses.class_losses("cpu"), torch.randn(8, 3), torch.arange(8) % 3, runs=3)
    assert [row[1] for row in rows] == ["cross-entropy", "ClassificationReLoss", "SetReLoss"]
    assert rows[0][3] == 1
    assert all(row[2] > 0 and row[3] == row[2] / rows[0][2] for row in rows)


@pytest.mark.parametrize(("gpu", "folder"), [(None, "cpu"), ("NVIDIA H100 80GB HBM3", "nvidia-h100-80gb-hbm3")])
def test_the_results_folder_is_named_after_the_device(monkeypatch, gpu, folder):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: gpu)
    assert results_folder() == Path("results", "benchmarks", folder)


def test_learned_losses_of_all_kinds_are_measured():
    measured = [losses.measure(*case, runs=1) for case in losses.kinds("cpu")]
    assert [row[1] for rows in measured for row in rows][1::2] == ["learned"] * len(measured)
    assert {rows[0][0].partition(" ")[0] for rows in measured} == KINDS.keys() - {
        *("signed_labels", "tokens", "heatmaps", "spans")
    }
