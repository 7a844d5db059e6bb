"""Benchmarks of speed and memory, side by side with the alternatives."""

import re
from pathlib import Path

import torch


def results_folder() -> Path:
    """Return the folder for results of this machine: results/benchmarks/cpu, or with the GPU's name instead of cpu."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return Path("results", "benchmarks", re.sub("[^a-z0-9]+", "-", name.lower()).strip("-"))
