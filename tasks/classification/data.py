"""Images through torchvision's data sets and transforms, and scikit-learn's digits."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, Subset, TensorDataset
from torchvision import datasets
from torchvision.transforms import v2

from reloss.errors import RelossError, UsageError
from tasks.classification.config import Data

# Mean and standard deviation of the training images' channels: CIFAR-10's and CIFAR-100's as computed from the data,
# ImageNet's as torchvision's references use them.
CHANNELS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
DOWNLOADS = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}


class Splits(NamedTuple):
    """Images to train on, to draw the curve with, and to test on; and the number of classes."""

    train: Dataset
    validation: Dataset
    test: Dataset
    classes: int


def load(config: Data, root: Path) -> Splits:
    """Return the images of `config` below the folder `root`.

    Raises:
        RelossError: the images are missing; the message names the expected path.
        UsageError: the data set does not come in this format.
    """
    if config.format == "sklearn":
        return _digits(config)
    varied = _open(config, root, train=True, transform=_training_transform(config))
    plain = _open(config, root, train=True, transform=_evaluation_transform(config))
    test = _open(config, root, train=False, transform=_evaluation_transform(config))
    if varied.classes != test.classes:
        raise RelossError(f"training and test images of {config.name} in {root} are not of the same classes")
    chosen = _first_of_each_class(np.asarray(varied.targets), config.per_class)
    training, held_out = _split(chosen, config.validation_fraction)
    tested = Subset(test, _first_of_each_class(np.asarray(test.targets), config.test_per_class).tolist())
    validation = Subset(plain, held_out.tolist()) if len(held_out) else tested
    return Splits(Subset(varied, training.tolist()), validation, tested, len(varied.classes))


def describe(config: Data, root: Path) -> str:
    """Return one line that says what was found.

    Raises:
        RelossError: the images are missing.
    """
    splits = load(config, root)
    counts = ", ".join(f"{len(getattr(splits, name))} {name}" for name in ("train", "validation", "test"))
    return f"{config.name}: {counts} images of {splits.classes} classes"


def fetch(config: Data, root: Path) -> None:
    """Download the images into `root` and verify their checksum.

    Raises:
        UsageError: the data set cannot be downloaded freely.
        RelossError: the download failed.
    """
    if config.name == "digits":
        return
    if config.name not in DOWNLOADS:
        where = root / config.name
        raise UsageError(
            f"{config.name} has no free download: get it from image-net.org and lay it out as "
            f"{where}/train/CLASS/*.JPEG and {where}/val/CLASS/*.JPEG"
        )
    try:
        for train in (True, False):
            DOWNLOADS[config.name](root, train=train, download=True)
    except (OSError, RuntimeError) as error:
        raise RelossError(f"cannot download {config.name} into {root}: {error}") from error


def fingerprint(config: Data, root: Path) -> str:
    """Return a hash over the names and sizes of the image files (of the digits, over the pixels)."""
    digest = hashlib.sha256()
    if config.format == "sklearn":
        digest.update(_digits_arrays()[0].tobytes())
    else:
        folder = _folder(config, root) if config.format == "folder" else root
        pattern = "*/*/*" if config.format == "folder" else f"{_as_downloaded(config).base_folder}/*"
        for path in sorted(folder.glob(pattern)):
            digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
    return digest.hexdigest()[:16]


def _folder(config: Data, root: Path) -> Path:
    """Return ROOT/NAME, or ROOT itself where it holds the images."""
    for folder in (root / config.name, root):
        if (folder / "train").is_dir():
            return folder
    raise RelossError(
        f"no images of {config.name}: expected class folders in {root / config.name / 'train'} and in 'test' or 'val' "
        "beside it; name the folder with --data"
    )


def _open(config: Data, root: Path, *, train: bool, transform: v2.Transform) -> datasets.VisionDataset:
    if config.format == "folder":
        folder = _folder(config, root)
        split = "train" if train else "test" if (folder / "test").is_dir() else "val"
        try:
            return datasets.ImageFolder(str(folder / split), transform=transform)
        except FileNotFoundError as error:
            raise RelossError(f"no images of {config.name} in {folder / split}: {error}") from None
    try:
        return _as_downloaded(config)(root, train=train, transform=transform)
    except RuntimeError:
        raise RelossError(
            f"no {config.name} in {root}: run `reloss data fetch {config.name} --data {root}`, or, with class folders "
            f"in {root / config.name}, add --set data.format=folder"
        ) from None


def _as_downloaded(config: Data) -> type[datasets.CIFAR10]:
    """Return torchvision's data set."""
    if config.name not in DOWNLOADS:
        raise UsageError(f"{config.name} does not come in data.format={config.format}; use folder")
    return DOWNLOADS[config.name]


def _training_transform(config: Data) -> v2.Transform:
    size = config.image_size
    if config.name == "imagenet":
        crop: list[v2.Transform] = [v2.RandomResizedCrop(size)]
    else:  # He et al. 2016, section 4.2
        crop = [v2.RandomCrop(size, padding=size // 8)]
    return v2.Compose([v2.ToImage(), *crop, v2.RandomHorizontalFlip(), *_to_normal(config)])


def _evaluation_transform(config: Data) -> v2.Transform:
    size = config.image_size
    crop = [v2.Resize(size * 256 // 224), v2.CenterCrop(size)] if config.name == "imagenet" else [v2.Resize(size)]
    return v2.Compose([v2.ToImage(), *crop, *_to_normal(config)])


def _to_normal(config: Data) -> list[v2.Transform]:
    mean, deviation = CHANNELS[config.name]
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, deviation)]


def _first_of_each_class(targets: np.ndarray, limit: int | None) -> np.ndarray:
    """Return the indices of the first `limit` images of each class, in their order."""
    if limit is None:
        return np.arange(len(targets))
    return np.sort(np.concatenate([np.flatnonzero(targets == target)[:limit] for target in np.unique(targets)]))


def _split(indices: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Hold out a fraction, the same one for every seed of a run."""
    order = np.random.default_rng(0).permutation(indices)
    count = round(len(indices) * fraction)
    return np.sort(order[count:]), np.sort(order[:count])


def _digits_arrays() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    return load_digits(return_X_y=True)


def _digits(config: Data) -> Splits:
    pixels, targets = _digits_arrays()
    images = torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 8 - 1  # 0..16 -> -1..1
    whole = TensorDataset(images, torch.from_numpy(targets))
    rest, test = _split(np.arange(len(images)), 0.25)
    rest = rest[_first_of_each_class(targets[rest], config.per_class)]
    training, held_out = _split(rest, config.validation_fraction)
    tested = Subset(whole, test.tolist())
    validation = Subset(whole, held_out.tolist()) if len(held_out) else tested
    return Splits(Subset(whole, training.tolist()), validation, tested, 10)
