"""Time and peak memory of soft operators, compared with other libraries: `make bench-ranking PEERS=folder`.

Each case is an operation (rank, sort, top k, median) on float32 standard normal values, forward and forward + backward.
Times are medians of warm runs with the device synchronised. The libraries take turns, so that a slow moment of the
machine affects all of them. Peak memory is what a run allocates on top of what is in use: counted by the allocator on a
GPU, and on a CPU by the profiler of PyTorch plus the tracer of NumPy's memory. On a GPU the kernel launches of forward
+ backward are counted, too.

If a library is missing, or a case would need too much memory or time, its row states the reason. The other libraries
are described in `benchmarks/ranking_libraries.py`.

Writes ranking.{csv,md,png} into --out.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable
from datetime import date
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks import results_folder
from benchmarks.ranking_libraries import OPERATIONS, Operator, estimated_bytes, operators
from reloss.experiment import environment
from reloss.report.table import Table

SIZES = (8, 64, 256, 1024, 10_000, 100_000, 1_000_000)
BATCHES = (1, 256)
MAX_RUN_SECONDS = 0.15  # if a run takes longer, larger sizes of this operator are skipped
MAX_CASE_SECONDS = 1.0
MIN_CASE_SECONDS = 0.15  # a fast case runs more often than requested, so that one slow run does not matter
MAX_BYTES = 1 << 29
MAX_VALUES = 1 << 26  # in all inputs of a case
MAX_INPUTS = 100  # different inputs of a case
GPU_FIELDS = ("launches",) if torch.cuda.is_available() else ()
FIELDS = ("operation", "library", "batch", "n", "forward_ms", "forward_backward_ms", "peak_mib", *GPU_FIELDS, "note")
OURS = "reloss laplace"


class Case:
    """One operator, its inputs [batch, n], which it ranks in turn, and the times of its warm runs."""

    def __init__(self, operator: Operator, values: list[Tensor], weights: Tensor, device: str, runs: int) -> None:
        """Run twice; the second, warm run determines the number of runs. Raises what the operator raises."""
        self.operator, self.inputs, self.weights, self.device = operator, cycle(values), weights, device
        self.forward_seconds: list[float] = []
        self.forward_backward_seconds: list[float] = []
        self.forward_backward()
        duration = seconds(self.forward_backward, device)
        self.runs = max(3, min(max(runs, int(MIN_CASE_SECONDS / duration)), int(MAX_CASE_SECONDS / duration)))

    def forward(self) -> Tensor:
        """Return the ranks of the next input."""
        return self.operator(next(self.inputs))

    def forward_backward(self) -> None:
        """Rank the next input, forward and backward."""
        result = self.forward()
        weights = self.weights if result.dim() == self.weights.dim() else self.weights[..., 0]  # of a median
        (result * weights).sum().backward()

    def run(self) -> None:
        """Time one more run, unless all runs are done."""
        if len(self.forward_backward_seconds) < self.runs:
            self.forward_seconds.append(seconds(self.forward, self.device))
            self.forward_backward_seconds.append(seconds(self.forward_backward, self.device))

    def result(self) -> dict[str, Any]:
        """Return the median times in ms, the peak memory in MiB, and the kernel launches on a GPU."""
        return {
            "forward_ms": 1e3 * statistics.median(self.forward_seconds),
            "forward_backward_ms": 1e3 * statistics.median(self.forward_backward_seconds),
            "peak_mib": peak_bytes(self.forward_backward, self.device) / 2**20,
            **({"launches": launches(self.forward_backward)} if self.device == "cuda" else {}),
            "note": f"median of {self.runs}",
        }


def seconds(call: Callable[[], Any], device: str) -> float:
    """Return the duration of a call in seconds, with the device synchronised."""
    _synchronize(device)
    start = time.perf_counter()
    call()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak_bytes(call: Callable[[], Any], device: str) -> int:
    """Return the peak memory of a call in bytes, on top of the memory in use before it."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    tracemalloc.start()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    traced = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    total = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            total += event.nbytes()
            peak = max(peak, total)
    return peak + traced


def launches(call: Callable[[], Any]) -> int:
    """Return the number of kernels that a call launches on a GPU, by PyTorch or another library."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        call()
        torch.cuda.synchronize()
    events = profile.profiler.kineto_results.events()
    return sum(event.name().startswith(("cudaLaunchKernel", "cuLaunchKernel")) for event in events)


def table(operation: str, device: str, sizes: tuple[int, ...], runs: int) -> list[dict[str, Any]]:
    """Return one row for each library, batch and size."""
    available, missing = operators(operation, device)
    rows: dict[tuple[str, int, int], dict[str, Any]] = {}
    for batch in BATCHES:
        skipped = dict(missing)
        for n in sizes:
            remaining = {name: operator for name, operator in available.items() if name not in skipped}
            results: dict[str, dict[str, Any]] = {name: {"note": reason} for name, reason in skipped.items()}
            if batch * n > MAX_VALUES:
                results |= {name: {"note": f"not run: {batch} x {n} values"} for name in remaining}
            else:
                results |= compare(remaining, batch, n, device, runs)
            for name, result in results.items():
                rows[name, batch, n] = {"operation": operation, "library": name, "batch": batch, "n": n, **result}
                print(*table_of([rows[name, batch, n]]).texts()[0], sep="  ", flush=True)
                if result.get("forward_backward_ms", 0) > 1e3 * MAX_RUN_SECONDS:
                    skipped[name] = f"not run: the previous size took over {MAX_RUN_SECONDS:g} s"
    return [rows[name, batch, n] for name in (*available, *missing) for batch in BATCHES for n in sizes]


def compare(candidates: dict[str, Operator], batch: int, n: int, device: str, runs: int) -> dict[str, dict[str, Any]]:
    """Return the result of each operator on values [batch, n], or a note with the reason why there is none."""
    # Every run ranks other values, as in training. A branch predictor would memorise a sort that is repeated.
    inputs = max(1, min(MAX_INPUTS, MAX_VALUES // (batch * n)))
    generator = torch.Generator(device).manual_seed(0)
    values = [torch.randn(batch, n, device=device, generator=generator).requires_grad_() for _ in range(inputs)]
    weights = torch.randn(batch, n, device=device, generator=generator)
    cases: dict[str, Case] = {}
    failures: dict[str, dict[str, Any]] = {}
    for name, operator in candidates.items():
        if estimated_bytes(name, batch, n) > MAX_BYTES:
            failures[name] = {"note": f"not run: needs about {estimated_bytes(name, batch, n) / 2**30:.1f} GiB"}
            continue
        try:
            cases[name] = Case(operator, values, weights, device, runs)
        except Exception as error:
            failures[name] = {"note": f"failed: {type(error).__name__}: {str(error).splitlines()[0][:80]}"}
    for _ in range(max((case.runs for case in cases.values()), default=0)):
        for case in cases.values():  # in turns, so that other work on the machine slows all of them equally
            case.run()
    return failures | {name: case.result() for name, case in cases.items()}


def table_of(rows: list[dict[str, Any]]) -> Table:
    """Return the rows as a table. A missing field is an empty cell."""
    return Table(FIELDS, [[row.get(name, "") for name in FIELDS] for row in rows])


def comparisons(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the fastest other library for each case, and how many times as long as ours it takes."""
    compared = []
    timed = [row for row in rows if "forward_backward_ms" in row]
    for ours in (row for row in timed if row["library"] == OURS):
        case = {name: ours[name] for name in ("operation", "batch", "n")}
        others = [row for row in timed if case.items() <= row.items() and not row["library"].startswith("reloss")]
        comparison = {**case, f"{OURS} ms": ours["forward_backward_ms"]}
        best = min(others, key=lambda row: row["forward_backward_ms"], default=None)
        duration = best["forward_backward_ms"] if best else ""
        comparison["fastest other library"] = best["library"] if best else "none within the limits"
        comparison["its ms"] = duration
        comparison["times ours"] = duration / ours["forward_backward_ms"] if best else ""
        compared.append(comparison)
    return compared


def summary(rows: list[dict[str, Any]]) -> Table:
    """Return the comparisons as a table."""
    cases = comparisons(rows)
    return Table(list(cases[0]) if cases else [], [list(case.values()) for case in cases])


def standing(rows: list[dict[str, Any]]) -> str:
    """Return a line for each operation: where ours is first, from 64 values on, and how far behind it is elsewhere."""
    lines = []
    for operation in OPERATIONS:
        cases = [case for case in comparisons(rows) if case["operation"] == operation and case["n"] >= 64]
        behind = [case for case in cases if case["times ours"] and case["times ours"] < 1]
        line = f"- {operation}: first in {len(cases) - len(behind)} of {len(cases)} cases from 64 values on"
        if behind:
            factors = [f"{case['batch']} x {case['n']}: {1 / case['times ours']:.1f}" for case in behind]
            line += "; slower than the fastest, in times, at " + ", ".join(factors)
        lines.append(f"{line}.")
    return "\n".join(lines)


def write(rows: list[dict[str, Any]], device: str, out: Path) -> None:
    """Write the results as CSV, Markdown and a plot."""
    out.mkdir(parents=True, exist_ok=True)
    commit = environment.commit()  # before the tables change the working tree
    (out / "ranking.csv").write_text(table_of(rows).csv() + "\n")
    name = torch.cuda.get_device_name() if device == "cuda" else environment.devices()["cpu"]
    machine = (
        f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}"
    )
    title = f"# Soft operators\n\n{machine}, commit {commit}, {date.today()}. Command: `make bench-ranking`.\n\n"
    title += "![Forward + backward, by number of values](ranking.png)\n\n"
    title += (
        "Operators of different libraries soften in different ways; only LapSum computes the same ranks and masks as "
        "`laplace`. A library is slower than ours if its factor is above 1. Cases are batch x n.\n\n"
    )
    parts = (standing(rows), summary(rows).markdown(), "## All cases", table_of(rows).markdown())
    (out / "ranking.md").write_text(title + "\n\n".join(parts) + "\n")
    plot(rows).savefig(out / "ranking.png", dpi=100)


def plot(rows: list[dict[str, Any]]) -> Figure:
    """Return the times of forward + backward by n, one plot for each operation and batch."""
    figure = Figure(figsize=(16, 8), layout="constrained")
    axes = figure.subplots(len(BATCHES), len(OPERATIONS), sharex=True, sharey=True)
    names = list(dict.fromkeys(row["library"] for row in rows))
    colours = {name: f"C{index % 10}" for index, name in enumerate(names)}
    for column, operation in enumerate(OPERATIONS):
        for line, batch in enumerate(BATCHES):
            axis = axes[line][column]
            for name in names:
                curve = [r for r in rows if (r["operation"], r["batch"], r["library"]) == (operation, batch, name)]
                curve = [row for row in curve if "forward_backward_ms" in row]
                if curve:
                    times = [row["forward_backward_ms"] for row in curve]
                    style = "-o" if name.startswith("reloss") else "--s"
                    axis.loglog([r["n"] for r in curve], times, style, color=colours[name], label=name, markersize=4)
            axis.set(title=f"{operation}, batch {batch}", xlabel="n", ylabel="forward + backward, ms")
            if axis.lines:
                axis.legend(fontsize=7)
    return figure


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=results_folder(), help="output folder (default: %(default)s)")
    parser.add_argument("--peers", type=Path, help="folder with the other libraries")
    parser.add_argument("--runs", type=int, default=10, help="number of warm runs of a case (default: %(default)s)")
    parser.add_argument("--most", type=int, default=SIZES[-1], help="largest n (default: %(default)s)")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = tuple(n for n in SIZES if n <= arguments.most)
    if arguments.peers:
        sys.path.append(str(arguments.peers))
    peak_bytes(lambda: torch.ones(1), device)  # the profiler's first call allocates memory of its own
    rows = [row for operation in OPERATIONS for row in table(operation, device, sizes, arguments.runs)]
    write(rows, device, arguments.out)


if __name__ == "__main__":
    main()
