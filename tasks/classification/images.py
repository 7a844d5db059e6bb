"""Images on disk: torchvision's data sets and class folders.

Small images stay in memory and are augmented a batch at a time (`Pixels`), which is many times faster than one by one.
Importing torchvision takes seconds, so `data` imports this module only where an experiment has images on disk.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset
from torchvision import datasets
from torchvision.transforms import v2

from reloss.runtime import download
from reloss.runtime.errors import RelossError, UsageError
from reloss.runtime.files import hash_of_files
from reloss.runtime.progress import progress
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


class Images(NamedTuple):
    """All images of a data set, before any is held out.

    Attributes:
        augmented: training images, augmented at random.
        plain: training images as they are, for validation.
        test: test images.
        targets: classes of the training images, [n].
        test_targets: classes of the test images, [m].
        classes: number of classes.
    """

    augmented: Dataset
    plain: Dataset
    test: Dataset
    targets: np.ndarray
    test_targets: np.ndarray
    classes: int


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


def load(config: Data, root: Path) -> Images:
    """Return the images of `config` in the data folder `root`.

    Raises:
        RelossError: the images are missing, or training and test images have different classes.
        UsageError: the data set has no such format.
    """
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
        raise RelossError(
            f"training and test images of {config.name} in {root} have different classes; only one of them has "
            f"{', '.join(sorted(set(classes) ^ set(test_classes)))}"
        )
    return Images(augmented, plain, test, targets, test_targets, len(classes))


def check(config: Data, root: Path) -> None:
    """Check the files in class folders.

    Raises:
        RelossError: an image is missing or empty.
    """
    _image_files(config, root)


def fetch(config: Data, root: Path) -> None:
    """Download the images into `root` and verify torchvision's checksum. Intact files are kept.

    Raises:
        UsageError: the data set cannot be downloaded freely.
        RelossError: the archive cannot be downloaded or unpacked; running the command again resumes.
    """
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
    """Return a hash of the downloaded files, or of the images in class folders (see `hash_of_files`).

    Raises:
        RelossError: the images are missing or cannot be read.
        UsageError: the data set has no such format.
    """
    if config.format == "folder":
        return hash_of_files(_folder(config, root), _image_files(config, root))
    kind = _as_downloaded(config)
    paths = [root / kind.base_folder / name for name in _downloaded_files(kind)]
    return hash_of_files(root, [path for path in paths if path.exists()])


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
                image = dataset[index][0]
                if image.width != image.height:
                    name, size = dataset.samples[index][0], f"{image.width} x {image.height}"
                    raise RelossError(f"the image {name} is {size}; crop it: {config.name} is square")
                images[index] = resize(v2.functional.pil_to_tensor(image))
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
