"""Small networks on tables of two classes, trained for all folds and learning rates of a set at once.

One small network keeps a core waiting for Python. So the networks of all folds and rates are one stack: their weights
are [R, in, out], a batch is [R, B, F], and a loss takes scores [R, B] and targets [R, B] and returns [R], as every
surrogate does. The gradient of the sum of R losses holds the gradient of each network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from reloss.runtime.errors import RelossError
from reloss_tasks.classification.experiments import KEEL_SETS
from reloss_tasks.classification.tabular import FOLDS, encode, find, read, split

GROUPS: tuple[tuple[str, ...], ...] = (
    ("yeast1", "yeast3", "yeast4", "yeast5", "yeast6", "flaref"),
    ("abalone17", "abalone20", "cargood", "carvgood", "segment0", "winered4"),
)
"""Names of KEEL sets in two halves. Sets that label the same rows, such as yeast1 and yeast3, are in the same half."""

SETS = tuple(name for group in GROUPS for name in group)
RATES = (0.05, 0.15, 0.5)
WIDTH, EPOCHS, BATCH = 32, 20, 128
MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4
VALIDATION = 0.2  # share of the rows outside the test fold

Loss = Callable[[Tensor, Tensor], Tensor]
"""Scores [R, B] and targets [R, B] -> the loss of each network [R]."""


class Folds(NamedTuple):
    """A set of E rows with F columns, split K times.

    Attributes:
        features: [K, E, F], standardised on the training rows of each split.
        targets: [E] in {0, 1}.
        training: rows to train on [K, n]; the last few of longer splits are dropped.
        validation: rows for choosing the learning rate, of each split.
        test: rows for the results, of each split.
    """

    features: Tensor
    targets: Tensor
    training: Tensor
    validation: list[Tensor]
    test: list[Tensor]


def group_of(name: str) -> int:
    """Return the half that a set belongs to."""
    return next(number for number, group in enumerate(GROUPS) if name in group)


def load_keel(name: str, root: Path) -> Folds:
    """Return a KEEL set in five folds.

    Args:
        name: a key of `KEEL_SETS`.
        root: data folder; see `reloss_tasks.classification.tabular.find`.

    Raises:
        RelossError: there is no such file, or it is damaged.
    """
    return split_rows(*read(find(KEEL_SETS[name], root)), FOLDS)


def load_sklearn(name: str) -> Folds:
    """Return a set of scikit-learn, split once: `breast_cancer` (malignant is positive) or `digit_eight`, in noise."""
    from sklearn import datasets

    if name == "breast_cancer":
        values, classes = datasets.load_breast_cancer(return_X_y=True)
        positive = classes == 0
    else:
        values, classes = datasets.load_digits(return_X_y=True)
        values = values / 16 + 0.3 * np.random.default_rng(0).normal(size=values.shape)
        positive = classes == 8
    return split_rows(list(values.T), positive, 1)


def split_rows(columns: list[np.ndarray], positive: np.ndarray, splits: int) -> Folds:
    """Return columns [E] each and classes [E] in the first `splits` of five folds."""
    parts = [split(positive, fold, VALIDATION) for fold in range(splits)]
    fewest = min(len(training) for training, _, _ in parts)
    generator = torch.Generator().manual_seed(0)
    training = [torch.from_numpy(rows)[torch.randperm(len(rows), generator=generator)[:fewest]] for rows, _, _ in parts]
    return Folds(
        features=torch.stack([torch.from_numpy(encode(columns, rows)) for rows, _, _ in parts]),
        targets=torch.from_numpy(positive).long(),
        training=torch.stack(training),
        validation=[torch.from_numpy(rows) for _, rows, _ in parts],
        test=[torch.from_numpy(rows) for _, _, rows in parts],
    )


class Networks:
    """R = K * L networks of two hidden layers: network k * L + l belongs to split k and learning rate l.

    Args:
        columns: F.
        splits: K; networks of one split begin with the same weights, whatever the rate.
        rates: L learning rates.
        seed: seed of the weights.
    """

    def __init__(self, columns: int, splits: int, rates: Sequence[float], seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.weights: list[Tensor] = []
        for inputs, outputs in ((columns, WIDTH), (WIDTH, WIDTH), (WIDTH, 1)):
            for shape in ((splits, inputs, outputs), (splits, 1, outputs)):
                initial = (2 * torch.rand(shape, generator=generator) - 1) / math.sqrt(inputs)
                self.weights.append(initial.repeat_interleave(len(rates), 0).requires_grad_())
        self.velocities = [torch.zeros_like(weight) for weight in self.weights]
        self.rates = torch.tensor(rates).repeat(splits)[:, None, None]

    def __call__(self, features: Tensor) -> Tensor:
        """Return the scores [R, B] of features [K, B, F]."""
        hidden = features.repeat_interleave(len(self.rates) // len(features), 0)
        first, first_bias, second, second_bias, last, last_bias = self.weights
        hidden = torch.baddbmm(first_bias, hidden, first).relu()
        hidden = torch.baddbmm(second_bias, hidden, second).relu()
        return torch.baddbmm(last_bias, hidden, last)[..., 0]

    @torch.no_grad()
    def step(self, losses: Tensor, share: float) -> None:
        """Take one step of SGD with momentum: losses [R], and the share of the learning rate."""
        gradients = torch.autograd.grad(losses, self.weights, torch.ones_like(losses))
        for weight, velocity, gradient in zip(self.weights, self.velocities, gradients, strict=True):
            velocity.mul_(MOMENTUM).add_(gradient).add_(weight, alpha=WEIGHT_DECAY)
            weight.sub_(share * self.rates * velocity)


def batches(folds: Folds, seed: int, epochs: int = EPOCHS) -> Iterator[Tensor]:
    """Yield the rows [K, B] of each step; every split has its own order, and batches that are not full are dropped.

    Raises:
        RelossError: there are fewer training rows than a batch needs.
    """
    splits, rows = folds.training.shape
    if rows < BATCH:
        raise RelossError(f"{rows} training rows are fewer than a batch of {BATCH}")
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.rand(splits, rows, generator=generator).argsort(1)
        shuffled = folds.training.gather(1, order)
        for first in range(0, rows - BATCH + 1, BATCH):
            yield shuffled[:, first : first + BATCH]


def train(
    folds: Folds,
    loss: Loss,
    rates: Sequence[float] = RATES,
    seed: int = 0,
    epochs: int = EPOCHS,
    observe: Callable[[int, int, Tensor, Tensor, Networks], None] | None = None,
) -> Tensor:
    """Train a network for each split and rate, and return its scores of all rows [K, L, E].

    Args:
        folds: the set.
        loss: the loss of each network.
        rates: learning rates; each falls to 0 along a cosine.
        seed: seed of the weights and of the order of the rows, the same for every loss.
        epochs: passes over the training rows.
        observe: called in each step with its number, the number of all steps, scores [R, B], targets [R, B] and the
            networks.
    """
    splits, columns = len(folds.features), folds.features.shape[-1]
    networks = Networks(columns, splits, rates, seed)
    steps = epochs * (folds.training.shape[1] // BATCH)
    split_numbers = torch.arange(splits)[:, None]
    for number, rows in enumerate(batches(folds, seed, epochs)):
        scores = networks(folds.features[split_numbers, rows])
        targets = folds.targets[rows].repeat_interleave(len(rates), 0)
        if observe is not None:
            observe(number, steps, scores.detach(), targets, networks)
        networks.step(loss(scores, targets), 0.5 * (1 + math.cos(math.pi * number / steps)))
    with torch.no_grad():
        return networks(folds.features).unflatten(0, (splits, len(rates)))
