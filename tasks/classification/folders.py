"""Images in class folders, FOLDER/<class>/*.png: the name of its folder is the class of an image.

Hidden files and folders are ignored: file browsers and notebooks leave them behind, such as `.ipynb_checkpoints`, and
one that counted as a class would shift the numbers of the classes after it.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from torchvision import datasets
from torchvision.datasets.folder import IMG_EXTENSIONS, default_loader, has_file_allowed_extension
from torchvision.transforms import v2

from reloss.runtime.errors import RelossError


class ClassFolders(datasets.ImageFolder):
    """torchvision's `ImageFolder` without hidden files and folders; an unreadable image is named.

    Args:
        folder: holds one folder per class.
        transform: applied to every image.

    Raises:
        FileNotFoundError: there is no class folder, or one without images.
    """

    def __init__(self, folder: Path, transform: v2.Transform | None) -> None:
        super().__init__(str(folder), transform, loader=read_image, is_valid_file=self._is_image)

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        """Return the names of the class folders in order, and the number of each."""
        classes = [name for name in super().find_classes(directory)[0] if not name.startswith(".")]
        if not classes:
            raise FileNotFoundError(f"there is no class folder in {directory}")
        return classes, {name: number for number, name in enumerate(classes)}

    def _is_image(self, path: str) -> bool:
        names = Path(path).relative_to(self.root).parts
        return has_file_allowed_extension(path, IMG_EXTENSIONS) and not any(name.startswith(".") for name in names)

    def files(self) -> list[Path]:
        """Return the files of all images.

        Raises:
            RelossError: a file is missing or empty.
        """
        files = [Path(path) for path, _ in self.samples]
        for file in files:
            try:
                size = file.stat().st_size
            except OSError as error:
                raise _unreadable(file, error) from error
            if size == 0:
                raise _unreadable(file, "it is empty")
        return files


def read_image(path: str) -> Image.Image:
    """Return an image in RGB.

    Raises:
        RelossError: the file cannot be read as an image.
    """
    try:
        return default_loader(path)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow's, for damaged files
        raise _unreadable(path, error) from error


def _unreadable(path: str | Path, reason: object) -> RelossError:
    return RelossError(f"the image {path} cannot be read ({reason}); remove it, or replace it with an intact copy")
