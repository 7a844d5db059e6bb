"""The cost of tracking a run with W&B: its share of the wall time of a short training run on CIFAR-10.

The run is `reloss run classification/cifar10_resnet20 --loss ce` with few epochs, in a new process and folder. Its
record contains the time that the run waited for W&B (to start W&B's process, to hand over rows and artifacts, and to
write everything at the end), the share of this time in the wall time, and the CPU time of W&B's processes. The upper
bound of the share adds this CPU time, as if it had delayed the run. In a longer run the share is smaller: it hands over
more rows, but starts and ends only once.

Writes tracking.{csv,md} into --out.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import subprocess
import sys
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks import results_folder
from reloss.experiment import environment
from reloss.experiment.metrics_log import read_metrics
from reloss.report.table import Table
from reloss.runtime.errors import RelossError
from reloss.runtime.files import read_json

EXPERIMENT = "classification/cifar10_resnet20"
SHORT = ("train.epochs=4", "data.per_class=1000")
TARGET = 0.01
FIELDS = (
    *("experiment", "settings", "rows", "wall s", "wait for W&B s", "share %"),
    *("W&B CPU s", "upper bound %", "note"),
)


def measure(data: Path, settings: list[str]) -> dict[str, Any]:
    """Return the row of one tracked run.

    Args:
        data: folder of the data sets.
        settings: further settings of the run, as key=value.

    Raises:
        RelossError: the run or W&B failed.
    """
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "reloss.cli", "run", EXPERIMENT, "--loss", "ce", "--data", str(data)]
        command += ["--runs", folder, "--track", "wandb", "--set", *settings]
        offline = {name: value for name, value in os.environ.items() if name != "WANDB_API_KEY"}
        process = subprocess.run(command, capture_output=True, text=True, env=offline, check=False)
        if process.returncode != 0 or "W&B failed" in process.stderr:
            raise RelossError(f"`{shlex.join(command)}` failed: {process.stderr.strip()[-500:]}")
        record = Path(process.stdout.strip().splitlines()[-1])
        summary = read_json(record / "summary.json")
        cost, wall = summary["tracking"], summary["wall_seconds"]
        bound = (cost["seconds"] + cost["cpu_seconds"]) / wall
        return {
            "experiment": EXPERIMENT,
            "settings": " ".join(settings),
            "rows": len(read_metrics(record / "metrics.jsonl")),
            "wall s": wall,
            "wait for W&B s": cost["seconds"],
            "share %": round(100 * cost["share"], 3),
            "W&B CPU s": cost["cpu_seconds"],
            "upper bound %": round(100 * bound, 3),
            "note": f"target of at most {TARGET:.0%}: " + ("met" if bound <= TARGET else "not met"),
        }


def write(row: dict[str, Any], commit: str, load: float, out: Path) -> None:
    """Write CSV and Markdown."""
    out.mkdir(parents=True, exist_ok=True)
    table = Table(FIELDS, [[str(row[name]) for name in FIELDS]])
    (out / "tracking.csv").write_text(table.csv() + "\n")
    devices = environment.devices()
    machine = (
        f"{', '.join(devices['gpus']) or devices['cpu']}, {devices['threads']} threads, torch {torch.__version__}, "
    )
    machine += f"Python {platform.python_version()}, wandb {environment.versions()['wandb']}"
    lines = [
        "# The cost of tracking a run with Weights & Biases",
        f"{machine}, commit {commit}, {date.today()}. Command: `make bench-tracking`. Offline. Other work ran on the "
        f"machine at the same time (load average {load:.1f} on {os.cpu_count()} cores), so both times are longer than "
        "on an idle machine. The share is relative to the wall time of this run.",
        table.markdown(),
    ]
    (out / "tracking.md").write_text("\n\n".join(lines) + "\n")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=results_folder(), help="output folder (default: %(default)s)")
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(os.environ.get("RELOSS_DATA", "data")),
        help="folder of the data sets (default: %(default)s)",
    )
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further settings of the run")
    arguments = parser.parse_args()
    commit = environment.commit()  # before the run, so that it is the commit of the measured code
    try:
        row = measure(arguments.data, [*SHORT, *arguments.set])
    except RelossError as error:
        sys.exit(str(error))
    print(" | ".join(f"{name} {row[name]}" for name in FIELDS))
    write(row, commit, os.getloadavg()[0], arguments.out)


if __name__ == "__main__":
    main()
