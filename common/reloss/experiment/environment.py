"""The environment of a run: commit, versions, devices, command."""

import os
import platform
import shlex
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from reloss.experiment.task import tasks

LIBRARIES = ("reloss", "torch", "numpy", "safetensors", "wandb")  # tasks name more


def commit() -> str:
    """Return the checkout's commit, with `+changes` appended if files differ from it; `unknown` outside a checkout.

    The variable RELOSS_COMMIT overrides it, for images without a checkout.
    """
    if override := os.environ.get("RELOSS_COMMIT"):
        return override
    here = Path(__file__).resolve().parent
    try:
        head = _git(here, "rev-parse", "--short=12", "HEAD")
        return head + ("+changes" if _git(here, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def image() -> str:
    """Return the version label of the container image; `none` outside one."""
    return os.environ.get("RELOSS_IMAGE", "none")


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=20).stdout.strip()


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect results; `not installed` if one is missing."""
    packages = dict.fromkeys([*LIBRARIES, *(name for task in tasks().values() for name in task.libraries)])
    return {"python": platform.python_version(), **{package: _version(package) for package in packages}}


@cache
def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def devices() -> dict[str, Any]:
    """Return the name of the processor, the number of threads in use, and the names of the GPUs."""
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
    """Return what a record's `environment.json` states about the checkout, the command and the machine."""
    script = Path(sys.argv[0])
    is_reloss = script.name in ("reloss", "cli.py") or script.parts[-2:] == ("reloss", "__main__.py")
    command = ["reloss", *sys.argv[1:]] if is_reloss else sys.argv
    source = {"commit": commit(), "image": image(), "command": shlex.join(command)}
    return {**source, "versions": versions(), "devices": devices()}
