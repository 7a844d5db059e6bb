import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small import merged, run_small

from reloss.runtime.files import read_json, write_json

JOINTS = {"lsp": 14, "coco": 17}
FILES = {
    "lsp": (("annotations/lsp_train.json", "images"), ("annotations/lsp_val.json", "images")),
    "coco": (
        ("annotations/person_keypoints_train2017.json", "train2017"),
        ("annotations/person_keypoints_val2017.json", "val2017"),
    ),
}
COUNTS = (12, 4)
NARROW = f"model.config={Path(__file__).parent / 'narrow_resnet18.py'}"


@pytest.fixture
def narrow() -> str:
    """The setting of a small model."""
    return NARROW


@pytest.fixture(scope="session")
def persons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with drawn persons, 12 for training and 4 for test: each joint is a disc in its own colour."""
    folder = tmp_path_factory.mktemp("persons")
    generator = np.random.default_rng(0)
    for name, splits in FILES.items():
        for (labels, images), count in zip(splits, COUNTS, strict=True):
            draw(folder / name, labels, images, JOINTS[name], count, generator)
    withhold(folder / "coco")
    return folder


def withhold(root: Path) -> None:
    """Make a test-dev set from the test persons, in COCO's form: images and a detector's boxes without joints."""
    labels, images = FILES["coco"][1]
    known = read_json(root / labels)
    shutil.copytree(root / images, root / "test2017")
    write_json(root / "annotations/image_info_test-dev2017.json", {**known, "annotations": []})
    found = [{**person, "score": 0.9} for person in known["annotations"]]
    boxes = [{key: person[key] for key in ("image_id", "category_id", "bbox", "score")} for person in found]
    write_json(root / "person_detection_results/COCO_test-dev2017_detections_AP_H_609_person.json", boxes)


def draw(root: Path, labels: str, images: str, joints: int, count: int, generator: np.random.Generator) -> None:
    """Draw `count` persons, one per image; the last joint of every second person is hidden."""
    (root / images).mkdir(parents=True, exist_ok=True)
    entries, annotations = [], []
    y, x = np.mgrid[:120, :100]
    for number in range(count):
        pixels = generator.integers(0, 60, (120, 100, 3), dtype=np.uint8)
        points = generator.integers((20, 20), (80, 100), (joints, 2))
        for joint, (px, py) in enumerate(points):
            pixels[(x - px) ** 2 + (y - py) ** 2 < 16] = (255 - 15 * joint, 15 * joint, 128)
        file = f"{Path(labels).stem}_{number}.png"
        Image.fromarray(pixels).save(root / images / file)
        shown = np.full(joints, 2)
        shown[-1] = 2 * (number % 2)
        entries.append({"id": number, "file_name": file, "width": 100, "height": 120})
        annotations.append(
            {
                "id": number,
                "image_id": number,
                "category_id": 1,
                "iscrowd": 0,
                "bbox": [15, 15, 70, 90],
                "area": 4000.0,
                "num_keypoints": int((shown > 0).sum()),
                "keypoints": np.concatenate([points, shown[:, None]], 1).flatten().tolist(),
            }
        )
    category = {"id": 1, "name": "person", "keypoints": [str(joint) for joint in range(joints)], "skeleton": []}
    write_json(root / labels, {"images": entries, "annotations": annotations, "categories": [category]})


@pytest.fixture
def run_lsp(persons: Path, tmp_path: Path) -> Callable[..., Path]:
    """Run an LSP experiment on the drawn persons and return the record."""
    tiny = (
        *("train.epochs=2", "train.batch_size=4", "train.validate_every=1", "data.held_out=4"),
        "train.precision=no",  # bfloat16 is slow on many CPUs
        *("recording.item_size=2", "learn.steps=4", "learn.items=4", "learn.validation_fraction=0.4"),
    )

    def start(
        loss: str = "mse",
        *settings: str,
        name: str = "pose/lsp_resnet18",
        runs: Path = tmp_path / "runs",
        **more: object,
    ) -> Path:
        options = {"data": persons, "runs": runs, **more}
        model = (NARROW,) if name == "pose/lsp_resnet18" else ()
        return run_small(name, loss, merged(model, tiny, settings), **options)  # type: ignore[arg-type]

    return start
