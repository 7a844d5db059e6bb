"""What W&B costs a run: a short training of CIFAR-10's ResNet-20 with tracking, its share of the wall time.

The run is `reloss run classification/cifar10_resnet20 --loss ce` at a few epochs, in a process and folder of its own.
Its record says how long it waited for W&B (to start its process, to hand over rows and artifacts, and at the end for it
to write), which share of the run's wall time that was, and how much processor time W&B's own processes took beside it.
The share "at most" adds that, as if they had held up the run all the while. A longer run hands over more rows and waits
once all the same, so its share is smaller.

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
    *("experiment", "settings", "rows", "wall s", "waited for W&B s", "share %"),
    *("W&B's processor s", "share at most %", "note"),
)


def measure(data: Path, settings: list[str]) -> dict[str, Any]:
    """Return the row of one tracked run.

    Raises:
        RelossError: it failed, or W&B did.
    """
    with TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "reloss.cli", "run", EXPERIMENT, "--loss", "ce", "--data", str(data)]
        words += ["--runs", folder, "--track", "wandb", "--set", *settings]
        offline = {name: value for name, value in os.environ.items() if name != "WANDB_API_KEY"}
        done = subprocess.run(words, capture_output=True, text=True, env=offline, check=False)
        if done.returncode != 0 or "W&B failed" in done.stderr:
            raise RelossError(f"`{shlex.join(words)}` failed: {done.stderr.strip()[-500:]}")
        record = Path(done.stdout.strip().splitlines()[-1])
        summary = read_json(record / "summary.json")
        cost, wall = summary["tracking"], summary["wall_seconds"]
        bound = (cost["seconds"] + cost["cpu_seconds"]) / wall
        return {
            "experiment": EXPERIMENT,
            "settings": " ".join(settings),
            "rows": len(read_metrics(record / "metrics.jsonl")),
            "wall s": wall,
            "waited for W&B s": cost["seconds"],
            "share %": round(100 * cost["share"], 3),
            "W&B's processor s": cost["cpu_seconds"],
            "share at most %": round(100 * bound, 3),
            "note": f"at most {TARGET:.0%} wanted: " + ("met" if bound <= TARGET else "not met"),
        }


def write(row: dict[str, Any], commit: str, load: float, out: Path) -> None:
    """Write CSV and Markdown."""
    out.mkdir(parents=True, exist_ok=True)
    table = Table(FIELDS, [[str(row[name]) for name in FIELDS]])
    (out / "tracking.csv").write_text(table.csv() + "\n")
    devices = environment.devices()
    where = f"{', '.join(devices['gpus']) or devices['cpu']}, {devices['threads']} threads, torch {torch.__version__}, "
    where += f"Python {platform.python_version()}, wandb {environment.versions()['wandb']}"
    lines = [
        "# What Weights & Biases costs a run",
        f"{where}, commit {commit}, {date.today()}. Command: `make bench-tracking`. Offline. Beside it ran other work "
        f"(load average {load:.1f} on {os.cpu_count()} cores), so both times are longer than on an idle machine; the "
        "share is of this run's own wall time.",
        table.markdown(),
    ]
    (out / "tracking.md").write_text("\n\n".join(lines) + "\n")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=results_folder(), help="folder to write to; %(default)s")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("RELOSS_DATA", "data")), help="data sets")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further settings of the run")
    arguments = parser.parse_args()
    commit = environment.commit()  # of the code that runs
    try:
        row = measure(arguments.data, [*SHORT, *arguments.set])
    except RelossError as error:
        sys.exit(str(error))
    print(" | ".join(f"{name} {row[name]}" for name in FIELDS))
    write(row, commit, os.getloadavg()[0], arguments.out)


if __name__ == "__main__":
    main()
