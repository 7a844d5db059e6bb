"""Time and peak memory of soft ranks, side by side with the alternatives, in one run: `make bench-ranking`.

Forward, and forward + backward, of float32 ranks of standard normal values: the median of warm runs, taken in turns by
the operators, with the device synchronised. Peak memory is what a run allocates beyond what it starts with: on a GPU by
the allocator's count, on a CPU by the profiler's. On a GPU the kernel launches of forward + backward are counted, too.
The other libraries are installed on the way; one that does not install is a row that says why. A case that would need
more than the memory allowed, or an operator whose last size took too long, is left out and says so.

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
MOST_SECONDS = 0.15  # of one run; larger sizes of that operator are not tried
SECONDS_A_CASE = 6.0
LEAST_SECONDS = 0.3  # a quick case runs more often than asked for, so that no slow moment of the machine decides
MOST_BYTES = 8 << 30
MOST_VALUES = 1 << 27
KINDS = 200
COUNTED = ("launches",) if torch.cuda.is_available() else ()
FIELDS = ("operator", "batch", "n", "forward_ms", "forward_backward_ms", "peak_mib", *COUNTED, "note")
Operator = Callable[[Tensor], Tensor]


def operators(device: str, folder: Path) -> tuple[dict[str, Operator], dict[str, str]]:
    """Return the operators by name, others' installed into `folder`, and why some are missing."""
    missing: dict[str, str] = {}
    found: dict[str, Operator] = {
        "reloss bitonic": lambda x: soft_rank(x, "bitonic"),
        "reloss laplace": lambda x: soft_rank(x, "laplace"),
        "reloss pairwise": lambda x: soft_rank(x, "pairwise"),
    }
    found["diffsort 0.2.0 bitonic"] = _diffsort(device)
    for name, load in (("torchsort", _torchsort), ("fast-soft-sort", _fast_soft_sort), ("softtorch", _softtorch)):
        if reason := _install(name, device, folder):
            missing[name] = f"not installable: {reason}"
            continue
        try:
            found[name] = load()
        except ImportError as error:
            missing[name] = f"does not import: {error}"
    return found, missing


def _install(name: str, device: str, folder: Path) -> str:
    """Install the latest `name` into `folder`, beside the locked environment; returns why it failed, or nothing."""
    environment_variables = dict(os.environ)
    if device == "cpu":  # torchsort builds for CUDA wherever it finds nvcc, and then needs all of CUDA
        folders = [path for path in os.environ["PATH"].split(os.pathsep) if not (Path(path) / "nvcc").exists()]
        environment_variables["PATH"] = os.pathsep.join(folders)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--upgrade", "--target", str(folder)]
    command = [sys.executable, "-m", "pip", "install", *options, name]
    done = subprocess.run(command, env=environment_variables, capture_output=True, text=True, check=False)
    errors = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
    return (errors or ["pip failed"])[0][:90] if done.returncode else ""


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
    """One operator on kinds of values [batch, n] in turn, and how long its warm runs took."""

    def __init__(self, operator: Operator, values: list[Tensor], weights: Tensor, device: str, runs: int) -> None:
        """Run twice, the second time warm. Raises whatever the operator raises."""
        self.operator, self.turn, self.weights, self.device = operator, cycle(values), weights, device
        self.ahead: list[float] = []
        self.whole: list[float] = []
        self.both()
        first = seconds(self.both, device)
        self.runs = max(3, min(max(runs, int(LEAST_SECONDS / first)), int(SECONDS_A_CASE / first)))

    def forward(self) -> Tensor:
        """Return the ranks of the next values."""
        return self.operator(next(self.turn))

    def both(self) -> None:
        """Rank the next values, forward and backward."""
        (self.forward() * self.weights).sum().backward()

    def run(self) -> None:
        """Take the time of one run more, unless there were enough."""
        if len(self.whole) < self.runs:
            self.ahead.append(seconds(self.forward, self.device))
            self.whole.append(seconds(self.both, self.device))

    def measured(self) -> dict[str, Any]:
        """Return the medians in ms, the peak memory in MiB, and the launches on a GPU."""
        return {
            "forward_ms": 1e3 * statistics.median(self.ahead),
            "forward_backward_ms": 1e3 * statistics.median(self.whole),
            "peak_mib": peak_bytes(self.both, self.device) / 2**20,
            **({"launches": launches(self.both)} if self.device == "cuda" else {}),
            "note": f"median of {self.runs}",
        }


def seconds(call: Callable[[], Any], device: str) -> float:
    """Return how long a call takes, with the device synchronised."""
    _synchronize(device)
    began = time.perf_counter()
    call()
    _synchronize(device)
    return time.perf_counter() - began


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak_bytes(call: Callable[[], Any], device: str) -> int:
    """Return the most memory that a call holds beyond what it starts with."""
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
    """Return how many kernels a call launches on a GPU, by PyTorch or another library."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        call()
        torch.cuda.synchronize()
    events = profile.profiler.kineto_results.events()
    return sum(event.name().startswith(("cudaLaunchKernel", "cuLaunchKernel")) for event in events)


def held_bytes(name: str, batch: int, n: int) -> int:
    """Return about how many bytes an operator is known to hold for the backward pass, 0 where that is little."""
    blocks = (n - 1).bit_length()
    layers = blocks * (blocks + 1) // 2
    if name.startswith("diffsort"):
        return 4 * layers * (6 * batch + 2) * n * n
    if name == "reloss bitonic":
        return 4 * layers * 8 * batch * n
    return 4 * 4 * batch * n * n if name == "softtorch" else 0


def table(device: str, folder: Path, sizes: tuple[int, ...], runs: int) -> list[dict[str, Any]]:
    """Return one row for each operator, batch and size."""
    running, missing = operators(device, folder)
    rows: dict[tuple[str, int, int], dict[str, Any]] = {}
    for batch in BATCHES:
        left_out = dict(missing)
        for n in sizes:
            tried = {name: operator for name, operator in running.items() if name not in left_out}
            found = {name: {"note": note} for name, note in left_out.items()} | compare(tried, batch, n, device, runs)
            for name, values in found.items():
                rows[name, batch, n] = {"operator": name, "batch": batch, "n": n, **values}
                print(*table_of([rows[name, batch, n]]).texts()[0], sep="  ", flush=True)
                if values.get("forward_backward_ms", 0) > 1e3 * MOST_SECONDS:
                    left_out[name] = f"not run: the size before took over {MOST_SECONDS:g} s"
    return [rows[name, batch, n] for name in (*running, *missing) for batch in BATCHES for n in sizes]


def compare(tried: dict[str, Operator], batch: int, n: int, device: str, runs: int) -> dict[str, dict[str, Any]]:
    """Return what was measured of each operator on values [batch, n], or the note that says why nothing was."""
    # Each run ranks values of its own, as training does: a branch predictor learns a repeated sort by heart.
    kinds = max(1, min(KINDS, MOST_VALUES // (batch * n)))
    generator = torch.Generator(device).manual_seed(0)
    values = [torch.randn(batch, n, device=device, generator=generator).requires_grad_() for _ in range(kinds)]
    weights = torch.randn(batch, n, device=device, generator=generator)
    cases: dict[str, Case] = {}
    found: dict[str, dict[str, Any]] = {}
    for name, operator in tried.items():
        if held_bytes(name, batch, n) > MOST_BYTES:
            found[name] = {"note": f"not run: needs about {held_bytes(name, batch, n) / 2**30:.0f} GiB"}
            continue
        try:
            cases[name] = Case(operator, values, weights, device, runs)
        except Exception as error:
            found[name] = {"note": f"failed: {type(error).__name__}: {str(error).splitlines()[0][:80]}"}
    for _ in range(max((case.runs for case in cases.values()), default=0)):
        for case in cases.values():  # in turns, so that what else the machine does slows all alike
            case.run()
    return found | {name: case.measured() for name, case in cases.items()}


def table_of(rows: list[dict[str, Any]]) -> Table:
    """Return the rows as a table; a field that a row lacks is empty."""
    return Table(FIELDS, [[row.get(name, "") for name in FIELDS] for row in rows])


def write(rows: list[dict[str, Any]], device: str, out: Path) -> None:
    """Write CSV, Markdown and plot."""
    out.mkdir(parents=True, exist_ok=True)
    commit = environment.commit()  # before the tables change the tree
    (out / "ranking.csv").write_text(table_of(rows).csv() + "\n")
    name = torch.cuda.get_device_name() if device == "cuda" else environment.devices()["cpu"]
    where = f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}"
    title = f"# Soft ranks\n\n{where}, commit {commit}, {date.today()}. Command: `make bench-ranking`.\n\n"
    (out / "ranking.md").write_text(title + table_of(rows).markdown() + "\n")
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    for axis, batch in zip(figure.subplots(1, 2, sharey=True), BATCHES, strict=True):
        for operator in dict.fromkeys(row["operator"] for row in rows):
            mine = [r for r in rows if (r["operator"], r["batch"]) == (operator, batch) and "forward_ms" in r]
            if mine:
                times = [row["forward_backward_ms"] for row in mine]
                axis.loglog([row["n"] for row in mine], times, marker="o", label=operator)
        axis.set(title=f"batch {batch}", xlabel="n", ylabel="forward + backward, ms")
        axis.legend(fontsize=8)
    figure.savefig(out / "ranking.png", dpi=120)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=results_folder(), help="folder to write to; %(default)s")
    parser.add_argument("--runs", type=int, default=20, help="warm runs of each case")
    parser.add_argument("--most", type=int, default=SIZES[-1], help="largest n")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = tuple(n for n in SIZES if n <= arguments.most)
    with TemporaryDirectory() as folder:
        sys.path.append(folder)
        rows = table(device, Path(folder), sizes, arguments.runs)
    write(rows, device, arguments.out)


if __name__ == "__main__":
    main()
