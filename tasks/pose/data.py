"""The data of pose estimation: where they lie, and what is missing."""

from __future__ import annotations

import hashlib
from pathlib import Path

from reloss.errors import RelossError
from reloss.files import read_json
from tasks.pose.config import Data

# Relative to DATA/<name>: annotations, then folders of images.
ANNOTATIONS = {
    "coco": ("annotations/person_keypoints_train2017.json", "annotations/person_keypoints_val2017.json"),
    "lsp": ("annotations/lsp_train.json", "annotations/lsp_val.json"),
}
IMAGES = {"coco": ("train2017", "val2017"), "lsp": ("images", "images")}
BOXES = "person_detection_results/COCO_val2017_detections_AP_H_56_person.json"
SOURCES = {
    "coco": "cocodataset.org has images and annotations; mmpose's documentation names the detector's boxes",
    "lsp": "Leeds Sports Pose, extended, as COCO-style annotations of 14 joints",
}


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
            f"{config.name}: the detector's boxes {box_file(config, folder)} are missing; get them, or test on "
            "annotated boxes with --set data.boxes=annotated (scores are then higher and not comparable)"
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
