"""The data of pose estimation: where they lie, and what is missing."""

from __future__ import annotations

import hashlib
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from reloss.download import fetch
from reloss.errors import RelossError
from reloss.files import atomic, read_json
from reloss.progress import progress, say
from tasks.pose.config import Data

# Relative to DATA/<name>: annotations, then folders of images.
ANNOTATIONS = {
    "coco": ("annotations/person_keypoints_train2017.json", "annotations/person_keypoints_val2017.json"),
    "lsp": ("annotations/lsp_train.json", "annotations/lsp_val.json"),
}
IMAGES = {"coco": ("train2017", "val2017"), "lsp": ("images", "images")}
BOXES = "person_detection_results/COCO_val2017_detections_AP_H_56_person.json"
SOURCES = {
    "coco": "`reloss data fetch coco` downloads it; a folder that is there is used",
    "lsp": "Leeds Sports Pose, extended, as COCO-style annotations of 14 joints",
}


COCO = "http://images.cocodataset.org"
# Address, MD5 sum (as several public download scripts state it), and what of the archive is needed.
ARCHIVES = (
    ("annotations/annotations_trainval2017.zip", "f4bbac642086de4f52a3fdda2de5fa2c", "annotations/person_keypoints_"),
    ("zips/val2017.zip", "442b8da7639aecaf257c1dceb8ba8c80", "val2017/"),
    ("zips/train2017.zip", "cced6f7f71b7629ddf16f17bbcfab6b2", "train2017/"),
)


def fetch_coco(folder: Path) -> None:
    """Download COCO 2017's images and annotations into FOLDER/coco, verified; what is there already stays.

    The detector's boxes are not at an address that can be downloaded from without a browser.

    Raises:
        RelossError: an archive cannot be downloaded or unpacked; the same call goes on from there.
    """
    root = folder / "coco"
    for (address, md5, needed), part in zip(ARCHIVES, ("annotations", "val2017", "train2017"), strict=True):
        if _is_complete(root, part):
            say(f"{root / part} is there")
            continue
        archive = root / Path(address).name
        fetch(f"{COCO}/{address}", archive, md5)
        _unpack(archive, needed, root)
        archive.unlink()


def _is_complete(root: Path, part: str) -> bool:
    labels = [root / file for file in ANNOTATIONS["coco"]]
    if not all(path.exists() for path in labels):
        return False
    if part == "annotations":
        return True
    images = read_json(root / f"annotations/person_keypoints_{part}.json")["images"]
    return all((root / part / image["file_name"]).exists() for image in images)


def _unpack(archive: Path, needed: str, root: Path) -> None:
    """Unpack what begins with `needed`, checked by the archive's sums, but for files that are there in their size."""
    try:
        with ZipFile(archive) as opened:
            members = [m for m in opened.infolist() if m.filename.startswith(needed) and not m.is_dir()]
            with progress(len(members), f"unpack {archive.name}") as advance:
                for member in members:
                    target = root / member.filename
                    if not target.exists() or target.stat().st_size != member.file_size:
                        with atomic(target) as temporary:
                            temporary.write_bytes(opened.read(member))
                    advance()
    except BadZipFile as error:
        raise RelossError(f"{archive} cannot be unpacked ({error}); remove it and fetch again") from error


def box_file(config: Data, folder: Path) -> Path:
    """Return where the detector's boxes lie."""
    return folder / config.name / BOXES


def describe(config: Data, folder: Path) -> str:
    """Return what was found.

    Raises:
        RelossError: something is missing; the message names it, where it goes and where it is from.
    """
    root = folder / config.name
    found = []
    for labels_file, images in zip(ANNOTATIONS[config.name], IMAGES[config.name], strict=True):
        for path in (root / labels_file, root / images):
            if not path.exists():
                raise RelossError(f"{config.name}: {path} is missing; {SOURCES[config.name]}")
        labels = read_json(root / labels_file)
        names = [image["file_name"] for image in labels["images"]]
        missing = [name for name in names if not (root / images / name).exists()]
        if missing:
            raise RelossError(
                f"{config.name}: {len(missing)} of {len(names)} images of {root / labels_file} are missing in "
                f"{root / images}, such as {missing[0]}"
            )
        found.append(f"{len(names)} images with {len(labels['annotations'])} persons")
    if config.boxes == "detector" and not box_file(config, folder).exists():
        raise RelossError(
            f"{config.name}: the detector's boxes {box_file(config, folder)} are missing: mmpose's documentation of "
            "COCO says where they can be downloaded by hand; or test on annotated boxes with "
            "--set data.boxes=annotated (scores are then higher and not comparable)"
        )
    return f"{config.name} in {root}: {found[0]} to train on, {found[1]} to test on"


def fingerprint(config: Data, folder: Path) -> str:
    """Return a hash of the annotations."""
    digest = hashlib.sha256()
    for labels_file in ANNOTATIONS[config.name]:
        path = folder / config.name / labels_file
        if not path.exists():
            raise RelossError(f"{config.name}: {path} is missing; {SOURCES[config.name]}")
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
