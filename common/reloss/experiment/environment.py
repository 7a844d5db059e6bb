"""Where a run ran: commit, versions, device, command."""

import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from reloss.experiment.task import tasks

LIBRARIES = ("reloss", "torch", "numpy", "scipy", "safetensors", "wandb")  # tasks name more


def commit() -> str:
    """Return the checkout's commit, `+changes` appended if files differ from it; `unknown` outside a checkout.

    An image without a checkout says its commit in the variable RELOSS_COMMIT.
    """
    if named := os.environ.get("RELOSS_COMMIT"):
        return named
    here = Path(__file__).resolve().parent
    try:
        head = _git(here, "rev-parse", "--short=12", "HEAD")
        return head + ("+changes" if _git(here, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def image() -> str:
    """Return the version label of the container image that this runs in; `none` outside one."""
    return os.environ.get("RELOSS_IMAGE", "none")


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.strip()


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide a result; `not installed` where one is missing."""
    found = {"python": platform.python_version()}
    for package in dict.fromkeys([*LIBRARIES, *(name for task in tasks().values() for name in task.libraries)]):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def devices() -> dict[str, Any]:
    """Return the processor, its threads in use, and the GPUs."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"cpu": _cpu_name(), "threads": torch.get_num_threads(), "gpus": gpus}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def describe() -> dict[str, Any]:
    """Return what `environment.json` of a record holds about the machine and the call."""
    command = ["reloss", *sys.argv[1:]] if Path(sys.argv[0]).name in ("reloss", "cli.py") else sys.argv
    where = {"commit": commit(), "image": image(), "command": shlex.join(command)}
    return {**where, "versions": versions(), "devices": devices()}
