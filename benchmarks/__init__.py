"""Speed and memory, side by side with the alternatives."""

import re
from pathlib import Path

import torch


def results_folder() -> Path:
    """Return where results of this machine are kept: results/benchmarks/cpu, or the name of its GPU instead of cpu."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return Path("results", "benchmarks", re.sub("[^a-z0-9]+", "-", name.lower()).strip("-"))
