"""The persons: which files are needed, what is missing, and the download of COCO."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile, ZipFile

from reloss.experiment.task import CONTENTS
from reloss.runtime import download
from reloss.runtime.errors import RelossError, UsageError
from reloss.runtime.files import atomic, hash_of_files, read_data, short_hash
from reloss.runtime.progress import progress, say
from reloss_tasks.pose.config import Data

# Paths relative to DATA/<name>, for training and for test: annotation files, then folders of images.
ANNOTATIONS = {
    "coco": ("annotations/person_keypoints_train2017.json", "annotations/person_keypoints_val2017.json"),
    "lsp": ("annotations/lsp_train.json", "annotations/lsp_val.json"),
}
IMAGES = {"coco": ("train2017", "val2017"), "lsp": ("images", "images")}
BOXES = "person_detection_results/COCO_val2017_detections_AP_H_56_person.json"
TEST_DEV = ("annotations/image_info_test-dev2017.json", "test2017")
TEST_DEV_BOXES = "person_detection_results/COCO_test-dev2017_detections_AP_H_609_person.json"
SOURCES = {
    "coco": "`reloss data fetch coco` downloads it; existing files are used",
    "lsp": "put Leeds Sports Pose, extended, there, as COCO-style annotations of 14 joints",
}
COCO = "http://images.cocodataset.org"


class Archive(NamedTuple):
    """An archive of COCO.

    Attributes:
        address: address relative to `COCO`.
        md5: checksum, which several public download scripts state.
        needed: the needed annotation files in the archive, or its folder of images.
        labels: annotation file that lists the images of the folder.
    """

    address: str
    md5: str
    needed: tuple[str, ...]
    labels: str = ""


ARCHIVES = (
    Archive("annotations/annotations_trainval2017.zip", "f4bbac642086de4f52a3fdda2de5fa2c", ANNOTATIONS["coco"]),
    Archive("zips/val2017.zip", "442b8da7639aecaf257c1dceb8ba8c80", ("val2017/",), ANNOTATIONS["coco"][1]),
    Archive("zips/train2017.zip", "cced6f7f71b7629ddf16f17bbcfab6b2", ("train2017/",), ANNOTATIONS["coco"][0]),
)
TEST_ARCHIVES = (
    Archive("annotations/image_info_test2017.zip", "85da7065e5e600ebfee8af1edb634eb5", (TEST_DEV[0],)),
    Archive("zips/test2017.zip", "77ad2c53ac5d0aea611d422c0938fb35", ("test2017/",), TEST_DEV[0]),
)


def fetch(config: Data, folder: Path) -> None:
    """Download COCO 2017 into FOLDER/coco and verify it: images, annotations and, if wanted, the test-dev images.

    Existing files are kept. The detector's boxes have to be downloaded by hand, with a browser.

    Raises:
        UsageError: the data set cannot be downloaded; the message says where to put it.
        RelossError: an archive cannot be downloaded or unpacked; running the command again resumes.
    """
    root = folder / config.name
    if config.name != "coco":
        raise UsageError(
            f"{config.name} cannot be downloaded; put Leeds Sports Pose, extended, as COCO-style annotations of 14 "
            f"joints at {root}: {', '.join(ANNOTATIONS[config.name])} and {IMAGES[config.name][0]}/"
        )
    for archive in ARCHIVES + (TEST_ARCHIVES if config.test_dev else ()):
        if _is_complete(root, archive):
            say(f"{', '.join(str(root / path) for path in archive.needed)}: complete")
            continue
        path = root / Path(archive.address).name
        download.fetch(f"{COCO}/{archive.address}", path, archive.md5)
        _unpack(path, archive.needed, root)
        path.unlink()


def _is_complete(root: Path, archive: Archive) -> bool:
    if not archive.labels:
        return all((root / path).exists() for path in archive.needed)
    (folder,) = archive.needed
    images = read_data(root / archive.labels)["images"]
    return all((root / folder / image["file_name"]).exists() for image in images)


def _unpack(archive: Path, needed: tuple[str, ...], root: Path) -> None:
    """Unpack the members whose names start with `needed`, except files that exist with the right size."""
    try:
        with ZipFile(archive) as file:
            members = [
                member for member in file.infolist() if member.filename.startswith(needed) and not member.is_dir()
            ]
            with progress(len(members), f"unpack {archive.name}") as advance:
                for member in members:
                    target = download.member_path(root, member.filename)
                    if not target.exists() or target.stat().st_size != member.file_size:
                        with atomic(target) as temporary:
                            temporary.write_bytes(file.read(member))
                    advance()
    except BadZipFile as error:
        raise RelossError(f"{archive} cannot be unpacked ({error}); remove it and run the command again") from error


def check(config: Data, folder: Path) -> str:
    """Return one line that describes the persons.

    Raises:
        RelossError: a file is missing; the message says where it belongs and how to get it.
    """
    root = folder / config.name
    sizes = []
    for labels_file, images in zip(ANNOTATIONS[config.name], IMAGES[config.name], strict=True):
        labels = _checked_labels(config.name, root, labels_file, images, SOURCES[config.name])
        sizes.append(f"{len(labels['images'])} images with {len(labels['annotations'])} persons")
    if config.boxes == "detector":
        _check_boxes(
            root / BOXES,
            "use annotated boxes with --set data.boxes=annotated (scores are then higher and not comparable)",
        )
    description = f"{config.name} in {root}: {sizes[0]} for training, {sizes[1]} for test"
    if config.test_dev:
        without = "skip test-dev with --set data.test_dev=false"
        try:
            source = "`reloss data fetch pose/coco_hrnet_w48_dark_384x288` downloads it"
            labels = _checked_labels(config.name, root, *TEST_DEV, source)
        except RelossError as error:
            raise RelossError(f"{error}; or {without}") from None
        _check_boxes(root / TEST_DEV_BOXES, without)
        description += f", {len(labels['images'])} images of test-dev"
    return description


def _checked_labels(name: str, root: Path, labels_file: str, images: str, source: str) -> dict[str, Any]:
    for path in (root / labels_file, root / images):
        if not path.exists():
            raise RelossError(f"{name}: {path} is missing; {source}")
    labels: dict[str, Any] = read_data(root / labels_file)
    missing = [image["file_name"] for image in labels["images"] if not (root / images / image["file_name"]).exists()]
    if missing:
        raise RelossError(
            f"{name}: {len(missing)} of {len(labels['images'])} images of {root / labels_file} are missing in "
            f"{root / images}, such as {missing[0]}; unpack or copy them there"
        )
    return labels


def _check_boxes(path: Path, alternative: str) -> None:
    if not path.exists():
        raise RelossError(
            f"coco: the detector's boxes {path} are missing: mmpose's documentation of COCO says where to download "
            f"them by hand; or {alternative}"
        )


def fingerprint(config: Data, folder: Path) -> str:
    """Return a hash of the annotations, the detector's boxes if used, and the images (see `hash_of_files`).

    Raises:
        RelossError: annotations or images are missing or cannot be read.
    """
    root, name = folder / config.name, config.name
    images: list[Path] = []
    for labels_file, images_folder in zip(ANNOTATIONS[name], IMAGES[name], strict=True):
        labels = _checked_labels(name, root, labels_file, images_folder, SOURCES[name])
        images += [root / images_folder / image["file_name"] for image in labels["images"]]
    files = [root / path for path in (*ANNOTATIONS[name], *([BOXES] if config.boxes == "detector" else []))]
    hashes = [hash_of_files(root, paths) for paths in ([path for path in files if path.exists()], images)]
    return f"{CONTENTS}-{short_hash(hashes)}"
