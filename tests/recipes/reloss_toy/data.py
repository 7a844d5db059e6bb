"""The points: drawn from a fixed seed, so there is nothing to download."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from reloss.experiment.task import CONTENTS
from reloss.runtime.files import short_hash
from reloss_toy.config import Data

SPLITS = ("train", "validation", "test")


class Points(NamedTuple):
    """One split.

    Attributes:
        inputs: [E, 2] coordinates.
        targets: [E] classes.
    """

    inputs: Tensor
    targets: Tensor


def load(section: Data, classes: int, split: str) -> Points:
    """Return one split of the points: class c is centred at (c * distance, 0)."""
    generator = torch.Generator().manual_seed(SPLITS.index(split))
    targets = torch.randint(classes, (section.examples,), generator=generator)
    inputs = torch.randn(section.examples, 2, generator=generator)
    inputs[:, 0] += section.distance * targets
    return Points(inputs, targets)


def check(section: Data, folder: Path) -> str:
    """Return one line that describes the data; `folder` is not used."""
    return f"{section.name}: {section.examples} points in each of {', '.join(SPLITS)}"


def fetch(section: Data, folder: Path) -> None:
    """Do nothing: the points are drawn when they are needed."""


def fingerprint(section: Data, folder: Path) -> str:
    """Return a hash of the data."""
    return f"{CONTENTS}-{short_hash(section.model_dump())}"
