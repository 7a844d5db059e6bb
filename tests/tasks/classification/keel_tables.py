"""Small tables in the form of KEEL."""

from pathlib import Path

import numpy as np


def write_table(path: Path, positives: int = 15, negatives: int = 60, header: str = "") -> None:
    """Write a table of two numbers, a category and the class; the first number is larger for positives."""
    generator = np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        f"{generator.normal(positive):.3f}, {generator.normal():.3f},{'abc'[number % 3]}, {name}"
        for name, positive, count in (("positive", 2, positives), ("negative", 0, negatives))
        for number in range(count)
    ]
    path.write_text(header + "\n".join(generator.permutation(rows)) + "\n")
