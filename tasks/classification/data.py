"""Images: torchvision's data sets and transforms, and scikit-learn's digits. Tables are in `tabular`.

Small images stay in memory and are augmented a batch at a time (`Pixels`), which is many times faster than one by one.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset, Subset, TensorDataset
from torchvision import datasets
from torchvision.transforms import v2

from reloss.experiment.task import CONTENTS
from reloss.runtime import download
from reloss.runtime.errors import RelossError, UsageError
from reloss.runtime.files import hash_of_files
from reloss.runtime.progress import progress
from reloss_tasks.classification import tabular
from reloss_tasks.classification.config import Data
from reloss_tasks.classification.folders import ClassFolders

# Mean and standard deviation of each channel of the training images. CIFAR: computed from the data; ImageNet: as in
# torchvision's references.
CHANNELS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
DOWNLOADS = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}
ARCHIVE_LIMIT = 200 << 20  # bytes; each archive has about 163 MiB


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


class Pixels(Dataset):
    """Small images in memory, augmented and normalised a batch at a time.

    Args:
        images: [n, C, H, W], uint8.
        targets: [n] classes.
        name: data set, for its CHANNELS.
        augmented: whether each image is padded, cropped at random and flipped at random (He et al. 2016, section 4.2).
    """

    def __init__(self, images: Tensor, targets: Tensor, name: str, augmented: bool) -> None:
        self.images, self.targets, self.augmented = images, targets, augmented
        self.mean, self.deviation = (torch.tensor(values).view(-1, 1, 1) for values in CHANNELS[name])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        images = self.images[indices]
        if self.augmented:
            images = _flip(_crop(images, padding=images.shape[-1] // 8))
        images = (images.float() / 255 - self.mean) / self.deviation
        return list(zip(images, self.targets[indices], strict=True))


def _crop(images: Tensor, padding: int) -> Tensor:
    """Pad images [n, C, H, W] with black and crop each to its size at a random position."""
    n, _, height, width = images.shape
    padded = F.pad(images, (padding,) * 4)
    top, left = torch.randint(2 * padding + 1, (2, n, 1))
    rows = (top + torch.arange(height))[:, None, :, None]
    columns = (left + torch.arange(width))[:, None, None, :]
    channels = torch.arange(images.shape[1])[:, None, None]
    return padded[torch.arange(n)[:, None, None, None], channels, rows, columns]


def _flip(images: Tensor) -> Tensor:
    return torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(-1), images)


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
    if config.name == "imagenet":
        augmented = _open(config, root, train=True, transform=_training_transform(config))
        plain = _open(config, root, train=True, transform=_evaluation_transform(config))
        test = _open(config, root, train=False, transform=_evaluation_transform(config))
        classes, test_classes = augmented.classes, test.classes
        targets, test_targets = np.asarray(augmented.targets), np.asarray(test.targets)
    else:
        images, targets, classes = _pixels(config, root, train=True)
        augmented, plain = (Pixels(images, torch.from_numpy(targets), config.name, random) for random in (True, False))
        images, test_targets, test_classes = _pixels(config, root, train=False)
        test = Pixels(images, torch.from_numpy(test_targets), config.name, augmented=False)
    if classes != test_classes:
        raise RelossError(f"training and test images of {config.name} in {root} have different classes")
    training, held_out = _split(_first_of_each_class(targets, config.per_class), config.validation_fraction)
    test_indices = _first_of_each_class(test_targets, config.test_per_class)
    indices = (training, held_out, test_indices)
    return _splits(config, (augmented, plain, test), (targets, test_targets), indices, len(classes))


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
        _image_files(config, root)
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
    if config.name not in DOWNLOADS:
        folder = root / config.name
        raise UsageError(
            f"{config.name} has no free download: get it from image-net.org and put it at "
            f"{folder}/train/CLASS/*.JPEG and {folder}/val/CLASS/*.JPEG"
        )
    kind = DOWNLOADS[config.name]
    try:
        kind(root)
    except RuntimeError:  # missing or damaged
        archive = root / kind.filename
        download.fetch(kind.url, archive, kind.tgz_md5, ARCHIVE_LIMIT)
        names = [f"{kind.base_folder}/{name}" for name in _downloaded_files(kind)]
        download.unpack(archive, {name: root / name for name in names})
        archive.unlink()


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
    elif config.format == "folder":
        folder = _folder(config, root)
        digest = hash_of_files(folder, _image_files(config, root))
    else:
        kind = _as_downloaded(config)
        paths = [root / kind.base_folder / name for name in _downloaded_files(kind)]
        digest = hash_of_files(root, [path for path in paths if path.exists()])
    return f"{CONTENTS}-{digest[:16]}"


def _folder(config: Data, root: Path) -> Path:
    """Return ROOT/NAME, or ROOT itself if it contains the images."""
    for folder in (root / config.name, root):
        if (folder / "train").is_dir():
            return folder
    raise RelossError(
        f"no images of {config.name}: expected class folders in {root / config.name / 'train'} and in 'test' or 'val' "
        "next to it; name the folder with --data"
    )


def _image_files(config: Data, root: Path) -> list[Path]:
    """Return the files of the images in class folders, training images first; none of them is empty."""
    splits = (_open_folder(config, root, train=train, transform=None) for train in (True, False))
    return [path for split in splits for path in split.files()]


def _open(config: Data, root: Path, *, train: bool, transform: v2.Transform | None) -> datasets.VisionDataset:
    if config.format == "folder":
        return _open_folder(config, root, train=train, transform=transform)
    try:
        return _as_downloaded(config)(root, train=train, transform=transform)
    except RuntimeError:
        raise RelossError(
            f"no {config.name} in {root}: run `reloss data fetch {config.name} --data {root}`; if {root / config.name} "
            "has class folders, use --set data.format=folder"
        ) from None


def _open_folder(config: Data, root: Path, *, train: bool, transform: v2.Transform | None) -> ClassFolders:
    folder = _folder(config, root)
    split = "train" if train else "test" if (folder / "test").is_dir() else "val"
    try:
        return ClassFolders(folder / split, transform)
    except FileNotFoundError as error:
        raise RelossError(f"no images of {config.name} in {folder / split}: {error}") from None


def _as_downloaded(config: Data) -> type[datasets.CIFAR10]:
    """Return torchvision's class for the data set."""
    if config.name not in DOWNLOADS:
        raise UsageError(f"{config.name} has no data.format={config.format}; use data.format=folder")
    return DOWNLOADS[config.name]


def _downloaded_files(kind: type[datasets.CIFAR10]) -> list[str]:
    return [name for name, _ in (*kind.train_list, *kind.test_list)] + [kind.meta["filename"]]


def _pixels(config: Data, root: Path, *, train: bool) -> tuple[Tensor, np.ndarray, list[str]]:
    """Return all images of one split [n, 3, size, size] as uint8, their classes [n], and the names of the classes."""
    dataset = _open(config, root, train=train, transform=None)
    resize = v2.Resize(config.side)
    if isinstance(dataset, datasets.CIFAR10):
        images = resize(torch.from_numpy(dataset.data).permute(0, 3, 1, 2))
    else:
        images = torch.empty(len(dataset), 3, config.side, config.side, dtype=torch.uint8)
        with progress(len(dataset), f"reading {config.name}") as advance:
            for index in range(len(dataset)):
                images[index] = resize(v2.functional.pil_to_tensor(dataset[index][0]))
                advance()
    return images.contiguous(), np.asarray(dataset.targets), dataset.classes


def _training_transform(config: Data) -> v2.Transform:
    crop = v2.RandomResizedCrop(config.side)
    return v2.Compose([v2.ToImage(), crop, v2.RandomHorizontalFlip(), *_to_normal(config)])


def _evaluation_transform(config: Data) -> v2.Transform:
    size = config.side
    crop = (v2.Resize(size * 256 // 224), v2.CenterCrop(size))
    return v2.Compose([v2.ToImage(), *crop, *_to_normal(config)])


def _to_normal(config: Data) -> list[v2.Transform]:
    mean, deviation = CHANNELS[config.name]
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, deviation)]


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
