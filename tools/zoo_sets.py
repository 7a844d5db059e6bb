"""Data sets for the losses of the zoo that are not for two classes: KEEL tables, made sets, and sets of scikit-learn.

Each kind of predictions has eight sets in two halves, which share no source, and one set of scikit-learn that no loss
is fitted on. KEEL publishes its tables as one class against the rest; where all classes of a table are published, they
are put together again. Other tables serve as regression: one column is predicted from the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from reloss_tasks.classification.tabular import find, read

SIDE, IMAGES, ROWS = 24, 400, 2000
DOCUMENTS = 20  # in a list
SHARES = (0.6, 0.8, 0.9, 0.97)  # of the rows below each grade of relevance: grades from 0 to 4
LEVELS = (0.0, 1.0, 2.0, -1.0)  # brightness of each class of a mask with several classes


class ZooSet(NamedTuple):
    """A data set of E examples.

    Attributes:
        inputs: [E, ...]: rows [F], lists [D, F], or images [1, H, W].
        targets: [E, ...]: classes, numbers, grades [D], or masks [H, W].
        outputs: outputs of a network per example: number of classes, else 1.
    """

    inputs: Tensor
    targets: Tensor
    outputs: int


class Parts(NamedTuple):
    """Rows for training, for choosing the learning rate, and for the results."""

    training: Tensor
    validation: Tensor
    test: Tensor


def split(data: ZooSet, seed: int) -> Parts:
    """Return 60 % of the examples for training, and 20 % each for validation and test; `seed` decides their order."""
    order = torch.randperm(len(data.inputs), generator=torch.Generator().manual_seed(seed))
    first, second = round(0.6 * len(order)), round(0.8 * len(order))
    return Parts(order[:first], order[first:second], order[second:])


# Tables

KEEL_CLASSES: Mapping[str, tuple[str, ...]] = {
    "vehicle": ("vehicle0", "vehicle1", "vehicle2", "vehicle3"),
    "yeast": ("yeast1", "yeast3", "yeast4", "yeast5", "yeast6"),
    "ecoli": ("ecoli1", "ecoli2", "ecoli3", "ecoli4"),
    "glass": ("glass0", "glass1", "glass2", "glass4", "glass5", "glass6"),
}
"""Tables of several classes: the files in which each of them is positive. Rows that are in none are the last class."""

KEEL_COLUMNS: Mapping[str, tuple[str, int]] = {
    "wine_alcohol": ("winequality-red-4", 10),
    "pima_glucose": ("pima", 1),
    "vehicle_shape": ("vehicle0", 0),
    "yeast_signal": ("yeast1", 0),
}
"""Tables for regression: the file, and the column to predict."""


def keel_classes(name: str, root: Path) -> ZooSet:
    """Return a KEEL table with all its classes; see KEEL_CLASSES."""
    columns, _ = read(find(KEEL_CLASSES[name][0], root))
    rows = np.stack(columns, 1).astype(np.float64)
    classes = np.full(len(rows), len(KEEL_CLASSES[name]))
    places = {key: place for place, key in enumerate(map(tuple, rows.round(3)))}
    for number, file in enumerate(KEEL_CLASSES[name]):
        values, positive = read(find(file, root))
        for key in map(tuple, np.stack(values, 1).astype(np.float64)[positive].round(3)):
            if key in places:
                classes[places[key]] = number
    classes = np.unique(classes, return_inverse=True)[1]
    return table(rows, torch.from_numpy(classes))


def keel_column(name: str, root: Path) -> ZooSet:
    """Return a KEEL table in which one column is predicted from the others; see KEEL_COLUMNS."""
    file, column = KEEL_COLUMNS[name]
    columns, _ = read(find(file, root))
    rows = np.stack(columns, 1).astype(np.float64)
    return regression(np.delete(rows, column, 1), rows[:, column])


def table(rows: np.ndarray, classes: Tensor) -> ZooSet:
    """Return rows [E, F], standardised, with their classes [E]."""
    deviation = rows.std(0)
    features = (rows - rows.mean(0)) / np.where(deviation > 0, deviation, 1)
    return ZooSet(torch.from_numpy(features).float(), classes.long(), int(classes.max()) + 1)


def regression(rows: np.ndarray, values: np.ndarray) -> ZooSet:
    """Return rows [E, F] and values [E], both standardised."""
    numbers = torch.from_numpy((values - values.mean()) / values.std()).float()
    return ZooSet(table(rows, torch.zeros(len(rows))).inputs, numbers, 1)


def lists(data: ZooSet) -> ZooSet:
    """Return lists of DOCUMENTS random rows of a regression set, each graded by the share of rows below it."""
    generator = torch.Generator().manual_seed(0)
    chosen = torch.stack([torch.randperm(len(data.inputs), generator=generator)[:DOCUMENTS] for _ in range(IMAGES)])
    grades = torch.bucketize(data.targets, torch.quantile(data.targets, torch.tensor(SHARES)))
    return ZooSet(data.inputs[chosen], grades[chosen].float(), 1)


# Made tables


def blobs(generator: np.random.Generator) -> ZooSet:
    """Return five normal clouds of six columns, from half of the rows down to one in twenty-five."""
    classes = generator.choice(5, ROWS, p=[0.5, 0.25, 0.13, 0.08, 0.04])
    centres, scales = 1.2 * generator.normal(size=(5, 6)), generator.uniform(0.5, 1.5, (5, 6))
    rows = centres[classes] + scales[classes] * generator.normal(size=(ROWS, 6))
    return table(rows, torch.from_numpy(classes))


def rings(generator: np.random.Generator) -> ZooSet:
    """Return four rings around the origin of two columns, next to four columns of noise."""
    rows = generator.normal(size=(ROWS, 6))
    radius = np.hypot(rows[:, 0], rows[:, 1]) + 0.15 * generator.normal(size=ROWS)
    return table(rows, torch.from_numpy(np.digitize(radius, [1.2, 1.8, 2.3])))


def corners(generator: np.random.Generator) -> ZooSet:
    """Return six classes that follow from the signs of three columns, next to three columns of noise."""
    rows = generator.normal(size=(ROWS, 6))
    signs = rows[:, :3] + 0.3 * generator.normal(size=(ROWS, 3)) > [0.3, 0.6, 0.2]
    return table(rows, torch.from_numpy(np.minimum(signs @ [1, 2, 4], 5)))


def stripes(generator: np.random.Generator) -> ZooSet:
    """Return three classes in stripes across a direction of five columns, of unequal width."""
    rows = generator.normal(size=(ROWS, 5))
    phase = (rows @ [0.9, -0.6, 0.4, 0, 0] + 0.1 * generator.normal(size=ROWS)) % 4
    return table(rows, torch.from_numpy(np.digitize(phase, [2, 3.3])))


def friedman(number: int, generator: np.random.Generator) -> ZooSet:
    """Return one of Friedman's made regression sets, with noise."""
    from sklearn import datasets

    rows, values = getattr(datasets, f"make_friedman{number}")(ROWS, random_state=0)
    return regression(rows, values + 0.5 * values.std() * generator.normal(size=ROWS))


def heavy(generator: np.random.Generator) -> ZooSet:
    """Return a linear relation with a few very large errors."""
    rows = generator.normal(size=(ROWS, 6))
    noise = generator.standard_t(2, ROWS).clip(-20, 20)
    return regression(rows, rows @ [1, -1, 0.5, 0.5, 0, 0] + noise)


def waves(generator: np.random.Generator) -> ZooSet:
    """Return a product of waves of two columns, with errors that grow with a third."""
    rows = generator.normal(size=(ROWS, 5))
    values = np.sin(1.5 * rows[:, 0]) * np.cos(rows[:, 1]) + 0.4 * np.exp(0.5 * rows[:, 2]) * generator.normal(
        size=ROWS
    )
    return regression(rows, values)


# Images

Shape = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Offsets x and y from the centre, radius and angle, in pixels -> which pixels belong to the object."""

SHAPES: Mapping[str, Shape] = {
    "discs": lambda x, y, r, _: x.square() + y.square() < r.square(),
    "rings": lambda x, y, r, _: ((x.square() + y.square()).sqrt() - r).abs() < 1,
    "dots": lambda x, y, r, _: x.square() + y.square() < 5,
    "ellipses": lambda x, y, r, a: (
        (x * a.cos() + y * a.sin()).square() + 5 * (y * a.cos() - x * a.sin()).square() < 2 * r.square()
    ),
    "squares": lambda x, y, r, _: torch.maximum(x.abs(), y.abs()) < r,
    "lines": lambda x, y, r, a: ((x * a.cos() + y * a.sin()).abs() < 2 * r) & ((y * a.cos() - x * a.sin()).abs() < 1),
    "crosses": lambda x, y, r, _: (torch.minimum(x.abs(), y.abs()) < 1) & (torch.maximum(x.abs(), y.abs()) < r),
    "diamonds": lambda x, y, r, _: x.abs() + y.abs() < r,
}


def shapes(name: str, classes: int) -> ZooSet:
    """Return images with one to three objects of a shape in noise, and their masks.

    Args:
        name: a key of SHAPES.
        classes: 1 for a foreground; 4 for a background and three classes, which differ in brightness.
    """
    generator = torch.Generator().manual_seed(sorted(SHAPES).index(name))

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(IMAGES, 3, 1, 1, generator=generator)

    y, x = (axis[None, None] for axis in torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij"))
    objects = SHAPES[name](x - uniform(3, SIDE - 3), y - uniform(3, SIDE - 3), uniform(2, 5), uniform(0, math.pi))
    exists = torch.rand(IMAGES, 3, 1, 1, generator=generator) < torch.tensor([1.0, 0.5, 0.3])[:, None, None]
    labels = torch.randint(1, max(classes, 2), (IMAGES, 3, 1, 1), generator=generator)
    return in_noise((objects & exists).long().mul(labels).amax(1), classes, generator)


def in_noise(masks: Tensor, classes: int, generator: torch.Generator) -> ZooSet:
    """Return images whose pixels have the brightness of their class, in smooth and in white noise: masks [E, H, W]."""
    contrast = 1.2 + torch.rand(len(masks), 1, 1, generator=generator)
    smooth = F.avg_pool2d(torch.randn(len(masks), 1, SIDE + 4, SIDE + 4, generator=generator), 5, 1)[:, 0]
    white = torch.randn(masks.shape, generator=generator)
    images = contrast * torch.tensor(LEVELS)[masks] + smooth + 0.5 * white
    return ZooSet(images[:, None], masks, classes)


# Sets of scikit-learn


def sklearn_set(kind: str, outputs: int) -> ZooSet:
    """Return the set of scikit-learn for a kind: digits in noise, strokes of digits, or diabetes."""
    from sklearn import datasets

    if kind in ("regression", "lists"):
        data = regression(*datasets.load_diabetes(return_X_y=True))
        return lists(data) if kind == "lists" else data
    values, classes = datasets.load_digits(return_X_y=True)
    if kind == "classes":
        noise = np.random.default_rng(0).normal(size=values.shape)
        return table(values / 16 + 0.5 * noise, torch.from_numpy(classes))
    strokes = F.interpolate(torch.from_numpy(values[:IMAGES]).view(-1, 1, 8, 8), SIDE, mode="bilinear")[:, 0] > 8
    labels = 1 + torch.from_numpy(classes[:IMAGES])[:, None, None] % max(outputs - 1, 1)
    return in_noise(strokes * labels, outputs, torch.Generator().manual_seed(0))


# Halves

TABLES: tuple[tuple[str, ...], ...] = (("vehicle", "ecoli", "blobs", "stripes"), ("yeast", "glass", "rings", "corners"))
NUMBERS = (
    ("wine_alcohol", "pima_glucose", "friedman1", "friedman3"),
    ("vehicle_shape", "yeast_signal", "heavy", "waves"),
)
IMAGE_SETS = (("discs", "rings", "dots", "ellipses"), ("squares", "lines", "crosses", "diamonds"))
HALVES: Mapping[str, Sequence[Sequence[str]]] = {
    "classes": TABLES,
    "regression": NUMBERS,
    "lists": NUMBERS,
    "masks": IMAGE_SETS,
}
"""Names of the sets of each kind, in two halves that share no source."""


def load(kind: str, name: str, outputs: int, root: Path) -> ZooSet:
    """Return a set.

    Args:
        kind: kind of predictions, a key of HALVES.
        name: name of the set in HALVES.
        outputs: classes of masks; 1 for a foreground.
        root: data folder, for the KEEL tables.

    Raises:
        RelossError: a KEEL file is missing or damaged.
    """
    if kind == "masks":
        return shapes(name, outputs)
    generator = np.random.default_rng(0)
    if name in KEEL_CLASSES:
        return keel_classes(name, root)
    if name in KEEL_COLUMNS:
        data = keel_column(name, root)
    elif name.startswith("friedman"):
        data = friedman(int(name[-1]), generator)
    else:
        data = {f.__name__: f for f in (blobs, rings, corners, stripes, heavy, waves)}[name](generator)
    return lists(data) if kind == "lists" else data
