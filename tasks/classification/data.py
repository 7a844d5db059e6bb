"""The splits of every data set: scikit-learn's digits, images on disk (`images`) and tables (`tabular`)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from reloss.experiment.task import CONTENTS
from reloss.runtime.errors import RelossError, UsageError
from reloss_tasks.classification import tabular
from reloss_tasks.classification.config import Data


class Splits(NamedTuple):
    """Examples for training, validation (the test images if none are held out) and test, and the network's outputs.

    Attributes:
        train: training images.
        validation: images for the learning curve.
        test: test images.
        classes: number of outputs of the network; 1 with a positive class, whose targets are 0 or 1.
    """

    train: Dataset
    validation: Dataset
    test: Dataset
    classes: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return tuple(self.test[0][0].shape)


def load(config: Data, root: Path, seed: int = 0) -> Splits:
    """Return the examples of `config` in the data folder `root`.

    Args:
        config: the data set.
        root: the data folder.
        seed: seed of the run. It decides the splits of tables, and the splits and the noise of noisy_digits.

    Raises:
        RelossError: the data are missing; the message names the expected path.
        UsageError: the data set has no such format.
    """
    if config.format == "tabular":
        examples, targets, rows = tabular.load(config, root, seed)
        return _splits(config, (examples,) * 3, (targets, targets), rows, classes=2)
    if config.name == "digits":
        return _digits(config)
    if config.name == "noisy_digits":
        return _noisy_digits(config, seed)
    from reloss_tasks.classification import images

    augmented, plain, test, targets, test_targets, classes = images.load(config, root)
    training, held_out = _split(_first_of_each_class(targets, config.per_class), config.validation_fraction)
    test_indices = _first_of_each_class(test_targets, config.test_per_class)
    indices = (training, held_out, test_indices)
    return _splits(config, (augmented, plain, test), (targets, test_targets), indices, classes)


def _splits(
    config: Data,
    images: tuple[Dataset, Dataset, Dataset],
    targets: tuple[np.ndarray, np.ndarray],
    indices: tuple[np.ndarray, ...],
    classes: int,
) -> Splits:
    """Return the splits. `images` and `indices`: of training, validation and test; `targets`: of training and test."""
    train, validation, test = (
        _subset(config, *parts, classes)
        for parts in zip(images, (targets[0], targets[0], targets[1]), indices, strict=True)
    )
    held_out = len(indices[1]) > 0
    return Splits(train, validation if held_out else test, test, classes if config.positive_class is None else 1)


def _subset(config: Data, images: Dataset, targets: np.ndarray, indices: np.ndarray, classes: int) -> Subset:
    if config.positive_class is None:
        return Subset(images, indices.tolist())
    if config.positive_class >= classes:
        raise UsageError(f"data.positive_class={config.positive_class}: {config.name} has classes 0 to {classes - 1}")
    positive = targets == config.positive_class
    indices = _with_class_ratio(config, positive, indices)
    return OneAgainstRest(images, indices.tolist(), config.positive_class, positives=int(positive[indices].sum()))


class OneAgainstRest(Subset):
    """A subset with targets 1 for the positive class and 0 for the rest; `positives` is the number of targets 1."""

    def __init__(self, images: Dataset, indices: list[int], positive_class: int, positives: int) -> None:
        super().__init__(images, indices)
        self.positive_class, self.positives = positive_class, positives

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, target = super().__getitem__(index)
        return image, int(target == self.positive_class)

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, int]]:
        return [(image, int(target == self.positive_class)) for image, target in super().__getitems__(indices)]


def _with_class_ratio(config: Data, positive: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Drop positives until there are `negatives_per_positive` for each; the choice is the same for every seed.

    Raises:
        RelossError: no positive remains, or there is no negative.
    """
    positives, negatives = indices[positive[indices]], indices[~positive[indices]]
    if config.negatives_per_positive is not None:
        count = len(negatives) // config.negatives_per_positive
        positives = np.random.default_rng(0).permutation(positives)[:count]
    if len(indices) and not (len(positives) and len(negatives)):
        raise RelossError(
            f"of {len(indices)} images of {config.name}, {len(positives)} have class {config.positive_class} and "
            f"{len(negatives)} have not: too few for data.negatives_per_positive={config.negatives_per_positive}"
        )
    return np.sort(np.concatenate((positives, negatives)))


def check(config: Data, root: Path) -> str:
    """Return one line that describes the data.

    Raises:
        RelossError: the data are missing, or an image is empty.
    """
    if config.format == "folder":
        from reloss_tasks.classification import images

        images.check(config, root)
    splits = load(config, root)
    counts = ", ".join(f"{len(getattr(splits, name))} {name}" for name in ("train", "validation", "test"))
    if config.format == "tabular":
        return f"{config.name}: {counts} rows of {splits.shape[0]} features"
    return f"{config.name}: {counts} images of {splits.classes} classes"


def fetch(config: Data, root: Path) -> None:
    """Download the images into `root` and verify torchvision's checksum. Intact files are kept.

    Raises:
        UsageError: the data set cannot be downloaded freely.
        RelossError: the archive cannot be downloaded or unpacked; running the command again resumes.
    """
    if config.format == "tabular":
        tabular.find(config.name, root)
        return
    if config.format == "sklearn":
        return
    from reloss_tasks.classification import images

    images.fetch(config, root)


def fingerprint(config: Data, root: Path) -> str:
    """Return a hash of the table, of the digits, of the downloaded files, or of the images (see `hash_of_files`).

    Raises:
        RelossError: the images are missing or cannot be read.
        UsageError: the data set has no such format.
    """
    if config.format == "tabular":
        digest = hashlib.sha256(tabular.find(config.name, root).read_bytes()).hexdigest()
    elif config.format == "sklearn":
        digest = hashlib.sha256(b"".join(part.tobytes() for part in _digits_arrays())).hexdigest()
    else:
        from reloss_tasks.classification import images

        digest = images.fingerprint(config, root)
    return f"{CONTENTS}-{digest[:16]}"


def _first_of_each_class(targets: np.ndarray, limit: int | None) -> np.ndarray:
    """Return the indices of the first `limit` images of each class, in ascending order."""
    if limit is None:
        return np.arange(len(targets))
    return np.sort(np.concatenate([np.flatnonzero(targets == target)[:limit] for target in np.unique(targets)]))


def _split(indices: np.ndarray, fraction: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Split off a fraction, by default the same for every run. Return the rest and the fraction, in order."""
    order = np.random.default_rng(seed).permutation(indices)
    count = round(len(indices) * fraction)
    return np.sort(order[count:]), np.sort(order[:count])


def _digits_arrays() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    return load_digits(return_X_y=True)


def _digits(config: Data) -> Splits:
    pixels, targets = _digits_arrays()
    rest, test = _split(np.arange(len(targets)), 0.25)
    rest = rest[_first_of_each_class(targets[rest], config.per_class)]
    return _splits_of_digits(config, _as_images(pixels), targets, (*_split(rest, config.validation_fraction), test))


def _noisy_digits(config: Data, seed: int) -> Splits:
    """Return the digits with normal noise of 0.3 times a pixel's range; the seed decides noise and splits."""
    pixels, targets = _digits_arrays()
    images = _as_images(pixels)
    images += 0.6 * torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    rest, test = _split(np.arange(len(targets)), 0.4, seed)
    rest = rest[_first_of_each_class(targets[rest], config.per_class)]
    return _splits_of_digits(config, images, targets, (*_split(rest, config.validation_fraction, seed), test))


def _as_images(pixels: np.ndarray) -> Tensor:
    """Return pixels [n, 64] from 0 to 16 as images [n, 1, 8, 8] from -1 to 1."""
    return torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 8 - 1


def _splits_of_digits(
    config: Data, images: Tensor, targets: np.ndarray, indices: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> Splits:
    dataset = TensorDataset(images, torch.from_numpy(targets))
    return _splits(config, (dataset, dataset, dataset), (targets, targets), indices, classes=10)
