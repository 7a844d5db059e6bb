"""Time and peak memory of soft ranks, compared with other libraries: `make bench-ranking`.

Each case ranks float32 standard normal values, forward and forward + backward. Times are medians of warm runs with the
device synchronised. The operators take turns, so that a slow moment of the machine affects all of them. Peak memory is
the memory that a run allocates on top of what is in use, counted by the allocator on a GPU and by the profiler on a
CPU. On a GPU the kernel launches of forward + backward are counted, too.

The other libraries are installed into a temporary folder. If one cannot be installed, or a case would need too much
memory or time, its row states the reason.

Writes ranking.{csv,md,png} into --out.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks import results_folder
from reloss.experiment import environment
from reloss.ranking import soft_rank
from reloss.report.table import Table

SIZES = (64, 256, 1024, 5000, 10_000, 100_000, 1_000_000)
BATCHES = (1, 32)
MAX_RUN_SECONDS = 0.15  # if a run takes longer, larger sizes of this operator are skipped
MAX_CASE_SECONDS = 6.0
MIN_CASE_SECONDS = 0.3  # a fast case runs more often than requested, so that one slow run does not matter
MAX_BYTES = 8 << 30
MAX_VALUES = 1 << 27  # in all inputs of a case
MAX_INPUTS = 200  # different inputs of a case
GPU_FIELDS = ("launches",) if torch.cuda.is_available() else ()
FIELDS = ("operator", "batch", "n", "forward_ms", "forward_backward_ms", "peak_mib", *GPU_FIELDS, "note")
Operator = Callable[[Tensor], Tensor]


def operators(device: str, folder: Path) -> tuple[dict[str, Operator], dict[str, str]]:
    """Return the operators by name, and the reasons why others are missing. Installs libraries into `folder`."""
    missing: dict[str, str] = {}
    available: dict[str, Operator] = {
        "reloss bitonic": lambda x: soft_rank(x, "bitonic"),
        "reloss laplace": lambda x: soft_rank(x, "laplace"),
        "reloss pairwise": lambda x: soft_rank(x, "pairwise"),
    }
    available["diffsort 0.2.0 bitonic"] = _diffsort(device)
    for name, load in (("torchsort", _torchsort), ("fast-soft-sort", _fast_soft_sort), ("softtorch", _softtorch)):
        if reason := _install(name, device, folder):
            missing[name] = f"not installable: {reason}"
            continue
        try:
            available[name] = load()
        except ImportError as error:
            missing[name] = f"does not import: {error}"
    return available, missing


def _install(name: str, device: str, folder: Path) -> str:
    """Install the latest `name` into `folder`, outside the locked environment. Return the error, or "" on success."""
    environment_variables = dict(os.environ)
    if device == "cpu":  # torchsort builds for CUDA if it finds nvcc, and then needs all of CUDA
        folders = [path for path in os.environ["PATH"].split(os.pathsep) if not (Path(path) / "nvcc").exists()]
        environment_variables["PATH"] = os.pathsep.join(folders)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--upgrade", "--target", str(folder)]
    command = [sys.executable, "-m", "pip", "install", *options, name]
    process = subprocess.run(command, env=environment_variables, capture_output=True, text=True, check=False)
    errors = [line.removeprefix("ERROR: ") for line in process.stderr.splitlines() if line.startswith("ERROR: ")]
    return (errors or ["pip failed"])[0][:90] if process.returncode else ""


def _diffsort(device: str) -> Operator:
    from diffsort import DiffSortNet

    networks: dict[int, Any] = {}

    def rank(x: Tensor) -> Tensor:
        n = x.shape[-1]
        if n not in networks:
            networks[n] = DiffSortNet("bitonic", n, device=device, steepness=5.0, distribution="logistic_phi")
        return (networks[n](x)[1] * torch.arange(n, device=x.device)).sum(-1)

    return rank


def _torchsort() -> Operator:
    import torchsort

    return lambda x: torchsort.soft_rank(x, regularization_strength=0.1)


def _fast_soft_sort() -> Operator:
    from fast_soft_sort.pytorch_ops import soft_rank as fast_soft_rank

    return lambda x: fast_soft_rank(x.cpu(), regularization_strength=0.1)


def _softtorch() -> Operator:
    import softtorch

    return lambda x: softtorch.rank(x, axis=-1)


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
        (self.forward() * self.weights).sum().backward()

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
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    total = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            total += event.nbytes()
            peak = max(peak, total)
    return peak


def launches(call: Callable[[], Any]) -> int:
    """Return the number of kernels that a call launches on a GPU, by PyTorch or another library."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        call()
        torch.cuda.synchronize()
    events = profile.profiler.kineto_results.events()
    return sum(event.name().startswith(("cudaLaunchKernel", "cuLaunchKernel")) for event in events)


def estimated_bytes(name: str, batch: int, n: int) -> int:
    """Return an estimate of the bytes that an operator keeps for the backward pass, 0 if they are few."""
    blocks = (n - 1).bit_length()
    layers = blocks * (blocks + 1) // 2
    if name.startswith("diffsort"):
        return 4 * layers * (6 * batch + 2) * n * n
    if name == "reloss bitonic":
        return 4 * layers * 8 * batch * n
    return 4 * 4 * batch * n * n if name == "softtorch" else 0


def table(device: str, folder: Path, sizes: tuple[int, ...], runs: int) -> list[dict[str, Any]]:
    """Return one row for each operator, batch and size."""
    available, missing = operators(device, folder)
    rows: dict[tuple[str, int, int], dict[str, Any]] = {}
    for batch in BATCHES:
        skipped = dict(missing)
        for n in sizes:
            remaining = {name: operator for name, operator in available.items() if name not in skipped}
            results = {name: {"note": reason} for name, reason in skipped.items()}
            for name, result in (results | compare(remaining, batch, n, device, runs)).items():
                rows[name, batch, n] = {"operator": name, "batch": batch, "n": n, **result}
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
            failures[name] = {"note": f"not run: needs about {estimated_bytes(name, batch, n) / 2**30:.0f} GiB"}
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


def write(rows: list[dict[str, Any]], device: str, out: Path) -> None:
    """Write the results as CSV, Markdown and a plot."""
    out.mkdir(parents=True, exist_ok=True)
    commit = environment.commit()  # before the tables change the working tree
    (out / "ranking.csv").write_text(table_of(rows).csv() + "\n")
    name = torch.cuda.get_device_name() if device == "cuda" else environment.devices()["cpu"]
    machine = (
        f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}"
    )
    title = f"# Soft ranks\n\n{machine}, commit {commit}, {date.today()}. Command: `make bench-ranking`.\n\n"
    (out / "ranking.md").write_text(title + table_of(rows).markdown() + "\n")
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    for axis, batch in zip(figure.subplots(1, 2, sharey=True), BATCHES, strict=True):
        for operator in dict.fromkeys(row["operator"] for row in rows):
            curve = [r for r in rows if (r["operator"], r["batch"]) == (operator, batch) and "forward_ms" in r]
            if curve:
                times = [row["forward_backward_ms"] for row in curve]
                axis.loglog([row["n"] for row in curve], times, marker="o", label=operator)
        axis.set(title=f"batch {batch}", xlabel="n", ylabel="forward + backward, ms")
        axis.legend(fontsize=8)
    figure.savefig(out / "ranking.png", dpi=120)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=results_folder(), help="output folder (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=20, help="number of warm runs of a case (default: %(default)s)")
    parser.add_argument("--most", type=int, default=SIZES[-1], help="largest n (default: %(default)s)")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = tuple(n for n in SIZES if n <= arguments.most)
    with TemporaryDirectory() as folder:
        sys.path.append(folder)
        rows = table(device, Path(folder), sizes, arguments.runs)
    write(rows, device, arguments.out)


if __name__ == "__main__":
    main()
