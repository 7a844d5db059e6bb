import hashlib
import io
import pickle
import shutil
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from reloss.runtime import download
from reloss.runtime.errors import RelossError, UsageError
from reloss_tasks.classification import data
from reloss_tasks.classification.config import Data
from reloss_tasks.classification.images import CHANNELS

FOLDER = {"name": "cifar10", "format": "folder", "image_size": 32}


def folder(**changes):
    return Data(**{**FOLDER, **changes})


def targets(split):
    return [int(target) for _, target in split]


def test_folder(images):
    splits = data.load(folder(), images)
    assert splits.classes == 6
    assert targets(splits.train) == sorted(5 * list(range(6)))
    assert targets(splits.test) == sorted(2 * list(range(6)))
    assert splits.validation is splits.test
    image = splits.test[0][0]
    assert image.shape == (3, 32, 32)
    mean, deviation = (torch.tensor(value).view(3, 1, 1) for value in CHANNELS["cifar10"])
    pixels = (image * deviation + mean) * 255
    assert torch.allclose(pixels, pixels.round(), atol=1e-3)
    assert 0 <= pixels.round().min() < pixels.round().max() <= 255


def test_the_data_set_may_be_in_a_folder_of_its_name(images, tmp_path):
    shutil.copytree(images, tmp_path / "cifar10")
    (tmp_path / "cifar10" / "test").rename(tmp_path / "cifar10" / "val")
    assert data.check(folder(), tmp_path) == "cifar10: 30 train, 12 validation, 12 test images of 6 classes"


def test_per_class(images):
    splits = data.load(folder(per_class=2, test_per_class=1), images)
    assert targets(splits.train) == sorted(2 * list(range(6)))
    assert targets(splits.test) == list(range(6))
    assert splits.train.indices == [index for start in range(0, 30, 5) for index in (start, start + 1)]


@pytest.mark.parametrize("format", ["folder", "sklearn"])
def test_validation_is_disjoint_and_the_same_for_every_seed(images, format):
    name = "cifar10" if format == "folder" else "digits"
    config = Data(name=name, format=format, image_size=32, validation_fraction=0.2)
    indices = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        splits = data.load(config, images)
        indices.append((splits.train.indices, splits.validation.indices))
    assert indices[0] == indices[1]
    training, held_out = map(set, indices[0])
    assert training & held_out == set()
    assert len(held_out) == (6 if format == "folder" else 270)
    assert len(training | held_out) == (30 if format == "folder" else 1348)


def test_validation_images_are_not_augmented(images):
    splits = data.load(folder(validation_fraction=0.2), images)
    assert torch.equal(splits.validation[0][0], splits.validation[0][0])
    torch.manual_seed(0)
    assert any(not torch.equal(splits.train[0][0], splits.train[0][0]) for _ in range(5))


def test_digits_test_images_are_never_trained_on(images):
    splits = data.load(Data(name="digits", format="sklearn", image_size=8), images)
    assert len(splits.train) + len(splits.test) == 1797
    assert set(splits.train.indices) & set(splits.test.indices) == set()
    assert splits.train[0][0].shape == (1, 8, 8)
    pixels = torch.stack([image for image, _ in splits.train])
    assert (pixels.min(), pixels.max()) == (-1, 1)


def test_fingerprint_changes_with_the_files(images, tmp_path):
    shutil.copytree(images, tmp_path / "one")
    before = data.fingerprint(folder(), tmp_path / "one")
    assert before == data.fingerprint(folder(), images)
    Image.new("RGB", (32, 32)).save(tmp_path / "one" / "train" / "a" / "more.png")
    added = data.fingerprint(folder(), tmp_path / "one")
    (tmp_path / "one" / "train" / "a" / "more.png").rename(tmp_path / "one" / "train" / "b" / "more.png")
    moved = data.fingerprint(folder(), tmp_path / "one")
    assert len({before, added, moved}) == 3
    (tmp_path / "one" / "train" / "b" / "more.png").unlink()
    (tmp_path / "one" / "train" / "a" / "note.txt").write_text("not an image")
    (tmp_path / "one" / "note.txt").write_text("nor this")
    assert data.fingerprint(folder(), tmp_path / "one") == before
    image = tmp_path / "one" / "test" / "c" / "1.png"
    image.write_bytes(bytes(image.stat().st_size))
    assert data.fingerprint(folder(), tmp_path / "one") != before


def test_fingerprint_of_the_digits_covers_their_labels(tmp_path, monkeypatch):
    config = Data(name="digits", format="sklearn", image_size=8)
    pixels, labels = data._digits_arrays()
    before = data.fingerprint(config, tmp_path)
    for changed in ((pixels, labels[::-1].copy()), (16 - pixels, labels)):
        monkeypatch.setattr(data, "_digits_arrays", lambda changed=changed: changed)
        assert data.fingerprint(config, tmp_path) != before


def test_fingerprint_covers_only_the_files_of_the_data_set(tmp_path):
    config = Data(name="cifar10", format="torchvision", image_size=32)
    before = data.fingerprint(config, tmp_path)
    (tmp_path / "cifar-100-python").mkdir()
    (tmp_path / "cifar-100-python" / "train").write_bytes(b"pixels")
    assert data.fingerprint(config, tmp_path) == before
    batches = tmp_path / "cifar-10-batches-py"
    batches.mkdir()
    (batches / "data_batch_1").write_bytes(b"pixels")
    with_batch = data.fingerprint(config, tmp_path)
    (batches / "note.txt").write_text("not in the data set")
    assert data.fingerprint(config, tmp_path) == with_batch != before
    (batches / "data_batch_1").write_bytes(b"PIXELS")
    assert data.fingerprint(config, tmp_path) not in (with_batch, before)


def test_missing_folders_name_the_expected_path(tmp_path):
    with pytest.raises(RelossError, match=f"class folders in {tmp_path / 'cifar10' / 'train'}"):
        data.load(folder(), tmp_path)
    (tmp_path / "cifar10" / "train" / "a").mkdir(parents=True)
    with pytest.raises(RelossError, match=f"no images of cifar10 in {tmp_path / 'cifar10' / 'train'}"):
        data.load(folder(), tmp_path)
    Image.new("RGB", (32, 32)).save(tmp_path / "cifar10" / "train" / "a" / "0.png")
    with pytest.raises(RelossError, match=f"no images of cifar10 in {tmp_path / 'cifar10' / 'val'}"):
        data.load(folder(), tmp_path)


def test_different_classes_in_training_and_test_are_refused(images, tmp_path):
    shutil.copytree(images, tmp_path / "images")
    (tmp_path / "images" / "test" / "a").rename(tmp_path / "images" / "test" / "z")
    with pytest.raises(RelossError, match="have different classes; only one of them has"):
        data.load(folder(), tmp_path / "images")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_missing_cifar_names_the_command_that_fetches_it(tmp_path, name):
    with pytest.raises(RelossError, match=f"run `reloss data fetch {name} --data {tmp_path}`"):
        data.load(Data(name=name, format="torchvision", image_size=32), tmp_path)


@pytest.mark.parametrize("use", [data.load, data.fingerprint])
def test_imagenet_is_read_from_folders_only(tmp_path, use):
    with pytest.raises(UsageError, match=r"imagenet has no data\.format=torchvision; use data\.format=folder"):
        use(Data(name="imagenet", format="torchvision", image_size=32), tmp_path)


def test_fetch_needs_no_network_for_the_digits(tmp_path):
    data.fetch(Data(name="digits", format="sklearn", image_size=8), tmp_path)
    assert list(tmp_path.iterdir()) == []


CIFAR10 = Data(name="cifar10", format="torchvision", image_size=32)


@pytest.fixture
def requests(tmp_path, monkeypatch):
    """A CIFAR-10 with four images per batch instead of the server; returns the list of requests."""
    content = {"batches.meta": {"label_names": [str(label) for label in range(10)]}}
    for number, name in enumerate([*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]):
        content[name] = {"data": np.full((4, 3072), number, np.uint8), "labels": [0, 1, 2, 3]}
    served = {name: pickle.dumps(value) for name, value in content.items()}
    sums = {name: hashlib.md5(value).hexdigest() for name, value in served.items()}
    monkeypatch.setattr(
        datasets.CIFAR10, "train_list", [[f"data_batch_{n}", sums[f"data_batch_{n}"]] for n in range(1, 6)]
    )
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(datasets.CIFAR10, "meta", {**datasets.CIFAR10.meta, "md5": sums["batches.meta"]})
    requests = []

    def fetch(url, path, checksum, limit):
        requests.append((url, path, checksum, limit))
        with tarfile.open(path, "w:gz") as opened:
            for name, value in {**served, "readme.html": b"", "../../out": b"elsewhere"}.items():
                member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
                member.size = len(value)
                opened.addfile(member, io.BytesIO(value))

    monkeypatch.setattr(download, "fetch", fetch)
    return requests


def test_cifar_is_fetched_unpacked_and_read(requests, tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    for _ in range(2):
        data.fetch(CIFAR10, root)
    url = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    md5 = "c58f30108f718f92721af3b95e74349a"
    assert requests == [(url, root / "cifar-10-python.tar.gz", md5, 200 * 1024**2)]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert [path.name for path in root.iterdir()] == ["cifar-10-batches-py"]
    assert len(list((root / "cifar-10-batches-py").iterdir())) == 7
    splits = data.load(CIFAR10, root)
    assert (targets(splits.train), targets(splits.test)) == (5 * [0, 1, 2, 3], [0, 1, 2, 3])
    assert splits.train.dataset.images[:, 0, 0, 0].tolist() == [batch for batch in range(5) for _ in range(4)]


def test_a_damaged_batch_of_cifar_is_downloaded_again(requests, tmp_path):
    data.fetch(CIFAR10, tmp_path)
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    content = batch.read_bytes()
    batch.write_bytes(content[:100])
    data.fetch(CIFAR10, tmp_path)
    assert len(requests) == 2
    assert batch.read_bytes() == content


def test_hidden_files_and_folders_are_no_classes_and_no_images(images, tmp_path):
    shutil.copytree(images, tmp_path, dirs_exist_ok=True)
    before = data.fingerprint(folder(), tmp_path)
    for hidden in (".ipynb_checkpoints", ".cache", "c/.ipynb_checkpoints"):
        (tmp_path / "train" / hidden).mkdir()
        shutil.copy(images / "train" / "a" / "0.png", tmp_path / "train" / hidden / "0-checkpoint.png")
    shutil.copy(images / "train" / "a" / "0.png", tmp_path / "train" / "b" / "._0.png")
    splits = data.load(folder(), tmp_path)
    assert splits.classes == 6
    assert targets(splits.train) == sorted(5 * list(range(6)))
    assert data.fingerprint(folder(), tmp_path) == before
    shutil.rmtree(tmp_path / "test")
    (tmp_path / "test" / ".cache").mkdir(parents=True)
    with pytest.raises(RelossError, match=r"no images of cifar10 in .*test: there is no class folder in"):
        data.load(folder(), tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"no image", "cannot identify image file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(20), "broken PNG|cannot identify"),
    ],
)
def test_an_unreadable_image_is_named(images, tmp_path, content, reason):
    shutil.copytree(images, tmp_path, dirs_exist_ok=True)
    (tmp_path / "train" / "d" / "3.png").write_bytes(content)
    with pytest.raises(
        RelossError, match=rf"the image .*/train/d/3\.png cannot be read \(.*({reason}).*; remove it, or"
    ):
        data.check(folder(), tmp_path)
    if not content:  # before a record is made
        with pytest.raises(RelossError, match=r"3\.png cannot be read \(it is empty\)"):
            data.fingerprint(folder(), tmp_path)


def test_an_image_that_is_not_square_is_named(images, tmp_path):
    shutil.copytree(images, tmp_path, dirs_exist_ok=True)
    Image.new("RGB", (40, 32)).save(tmp_path / "train" / "d" / "3.png")
    with pytest.raises(RelossError, match=r"train/d/3\.png is 40 x 32; crop it: cifar10 is square"):
        data.check(folder(), tmp_path)
