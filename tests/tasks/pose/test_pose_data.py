import shutil
from zipfile import ZipFile

import pytest

from reloss.experiment.settings import override
from reloss.experiment.task import tasks
from reloss.runtime.errors import RelossError, UsageError
from reloss.runtime.files import read_json
from reloss_tasks.pose import data
from reloss_tasks.pose.config import Data

TASK = tasks()["pose"]


@pytest.fixture
def archives(persons, tmp_path, monkeypatch):
    """Archives in COCO's layout instead of the server; returns the list of requests."""
    folder, requests = tmp_path / "server", []
    folder.mkdir()
    for name, part in (
        *(("annotations_trainval2017", "annotations"), ("val2017", "val2017"), ("train2017", "train2017")),
        *(("image_info_test2017", "annotations"), ("test2017", "test2017")),
    ):
        with ZipFile(folder / f"{name}.zip", "w") as archive:
            for path in sorted((persons / "coco" / part).iterdir()):
                archive.write(path, f"{part}/{path.name}")
            archive.writestr(f"{part}/instances_not_needed.json" if part == "annotations" else f"{part}/", "")

    def fetch(url, path, md5):
        requests.append(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / path.name, path)

    monkeypatch.setattr(data.download, "fetch", fetch)
    return requests


def test_coco_is_downloaded_and_unpacked(archives, tmp_path, cli):
    words = ("data", "fetch", "coco", "--data", tmp_path, "--set", "data.boxes=annotated")
    code, out, err = cli(*words)
    assert code == 0, err
    assert "12 images with 12 persons for training, 4 images with 4 persons for test" in out
    assert sorted(path.name for path in (tmp_path / "coco").iterdir()) == ["annotations", "train2017", "val2017"]
    assert sorted(path.name for path in (tmp_path / "coco" / "annotations").iterdir()) == [
        "person_keypoints_train2017.json",
        "person_keypoints_val2017.json",
    ]
    assert archives == [f"{data.COCO}/{archive.address}" for archive in data.ARCHIVES]
    assert cli(*words)[0] == 0
    assert len(archives) == 3


def test_only_missing_files_are_downloaded(archives, tmp_path):
    config = TASK.experiments["pose/coco_res50_256x192"]()
    TASK.fetch_data(config, tmp_path)
    images = sorted((tmp_path / "coco" / "val2017").iterdir())
    images[0].unlink()
    images[1].write_bytes(b"cut")
    kept = images[2].stat().st_mtime_ns
    archives.clear()
    TASK.fetch_data(config, tmp_path)
    assert archives == [f"{data.COCO}/zips/val2017.zip"]
    assert images[0].stat().st_size > 100
    assert images[1].stat().st_size > 100
    assert images[2].stat().st_mtime_ns == kept


def test_test_dev_is_downloaded_if_it_is_predicted(archives, tmp_path):
    config = TASK.experiments["pose/coco_hrnet_w48_dark_384x288"]()
    TASK.fetch_data(config, tmp_path)
    assert archives == [f"{data.COCO}/{archive.address}" for archive in (*data.ARCHIVES, *data.TEST_ARCHIVES)]
    root = tmp_path / "coco"
    assert (root / "annotations" / "image_info_test-dev2017.json").exists()
    with pytest.raises(RelossError, match=r"boxes .*COCO_val2017\S* are missing: .*--set data.boxes=annotated"):
        TASK.check_data(config, tmp_path)
    (root / data.BOXES).parent.mkdir()
    (root / data.BOXES).write_text("[]")
    with pytest.raises(RelossError, match=r"boxes .*COCO_test-dev2017\S* are missing: .*--set data.test_dev=false"):
        TASK.check_data(config, tmp_path)
    (root / data.TEST_DEV_BOXES).write_text("[]")
    assert TASK.check_data(config, tmp_path).endswith("4 images of test-dev")
    next((root / "test2017").iterdir()).unlink()
    with pytest.raises(RelossError, match=r"1 of 4 images .*; or skip test-dev with --set data.test_dev=false"):
        TASK.check_data(config, tmp_path)


def test_missing_test_dev_files_are_named_with_the_command_that_downloads_them(archives, tmp_path):
    TASK.fetch_data(TASK.experiments["pose/coco_res50_256x192"](), tmp_path)
    config = override(TASK.experiments["pose/coco_hrnet_w48_dark_384x288"](), ["data.boxes=annotated"])
    with pytest.raises(
        RelossError, match=r"test-dev2017.json is missing; `reloss data fetch pose/coco_hrnet_w48\w+` down"
    ):
        TASK.check_data(config, tmp_path)


def test_a_damaged_archive_is_named(tmp_path):
    (tmp_path / "bad.zip").write_bytes(b"no archive")
    with pytest.raises(RelossError, match=r"bad.zip cannot be unpacked"):
        data._unpack(tmp_path / "bad.zip", ("train2017/",), tmp_path)


@pytest.mark.parametrize("name", ["coco", "lsp"])
def test_fingerprint_changes_with_annotations_images_and_boxes(persons, tmp_path, name):
    shutil.copytree(persons / name, tmp_path / name)
    boxes = "annotated" if name == "lsp" else "detector"
    config, root = Data(name=name, boxes=boxes), tmp_path / name
    before = data.fingerprint(config, tmp_path)
    assert before == data.fingerprint(config, persons)
    (root / data.IMAGES[name][0] / "stray.png").write_bytes(b"not annotated")
    assert data.fingerprint(config, tmp_path) == before
    fingerprints = [before]
    for path in (*data.ANNOTATIONS[name], *([data.BOXES] if name == "coco" else [])):
        (root / path).parent.mkdir(exist_ok=True)
        with (root / path).open("a") as file:
            file.write("\n")
        fingerprints.append(data.fingerprint(config, tmp_path))
    for labels, images in zip(data.ANNOTATIONS[name], data.IMAGES[name], strict=True):
        image = root / images / read_json(root / labels)["images"][-1]["file_name"]
        image.write_bytes(bytes(image.stat().st_size))
        fingerprints.append(data.fingerprint(config, tmp_path))
    assert len(set(fingerprints)) == len(fingerprints)
    image.unlink()
    with pytest.raises(RelossError, match=f"1 of 4 images of .* are missing .* such as {image.name}"):
        data.fingerprint(config, tmp_path)


def test_lsp_cannot_be_downloaded(tmp_path):
    with pytest.raises(UsageError, match="lsp cannot be downloaded; put Leeds Sports Pose"):
        TASK.fetch_data(TASK.experiments["pose/lsp_resnet18"](), tmp_path)
