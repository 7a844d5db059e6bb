"""Surrogates that ship with the package load by name, and a fitted one can be added."""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from surrogate_files import OPTIONS, losses, refusal
from torch.testing import assert_close

from reloss import ClassificationReLoss, zoo_names
from reloss.learning import LearnOptions
from reloss.metrics import get_metric
from reloss.ranking import spearman
from reloss.runtime import download
from reloss.runtime.errors import UsageError
from reloss.surrogates import KINDS, SetReLoss, pretrained
from reloss.surrogates.pretrained import WEIGHTS, add_pretrained, model_card, pretrained_names

SHIPPED = [name for name in pretrained_names() if not name.startswith("released/")]
CLASSES = {surrogate.__name__: surrogate for surrogate in KINDS.values()}


def shipped_card(name: str) -> dict[str, Any]:
    return json.loads((WEIGHTS / name / "surrogate.json").read_text())


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    def urlopen(*arguments: object, **options: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(download, "urlopen", urlopen)


@pytest.mark.usefixtures("unreachable")
@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_surrogate_loads_frozen_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    card = shipped_card(name)
    surrogate = CLASSES[card["class"]].from_pretrained(name)
    assert surrogate.options() == card["options"]
    assert not surrogate.training
    assert not any(parameter.requires_grad for parameter in surrogate.parameters())


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_model_card_matches_its_json(name):
    folder, card = WEIGHTS / name, shipped_card(name)
    text = (folder / "README.md").read_text()
    assert text == model_card(name, card)
    get_metric(card["metric"])
    LearnOptions.model_validate(card["learn"])  # fields of this version alone
    shown = (f"{card['fit']['spearman']:.4f}", f"{card['fit']['spearman_synthetic']:.4f}", *card["about"]["commands"])
    assert all(part in text for part in shown)
    assert card["fit"]["spearman"] > 0.9
    assert not any(
        machine in text + json.dumps(card) for machine in ("/tmp", "/home", "/root", "/work", str(Path.cwd()))
    )


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_surrogate_is_small_and_complete(name):
    files = {path.name: path.stat().st_size for path in (WEIGHTS / name).iterdir()}
    assert files.keys() == {"surrogate.safetensors", "surrogate.json", "README.md"}
    assert sum(files.values()) < 1_000_000


def test_shipped_surrogate_ranks_other_predictions(improving_bank):
    bank = improving_bank()
    outputs, targets = bank.items(torch.arange(len(bank)))
    losses = ClassificationReLoss.from_pretrained("classification/cifar10").per_item(outputs, targets)
    assert spearman(-losses, get_metric("accuracy")(outputs, targets)) > 0.95


def test_wheel_holds_every_shipped_file(tmp_path):
    root = Path(__file__).parents[2]
    for part in ("common", "tasks"):
        shutil.copytree(root / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for part in ("pyproject.toml", "README.md"):
        shutil.copy(root / part, tmp_path)
    pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", tmp_path, ".")
    done = subprocess.run(pip, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    folder = "reloss/surrogates/weights"
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"reloss/metric_loss/zoo/{name}.safetensors" for name in zoo_names()} <= set(names)
    files = {name for name in names if name.startswith(folder)}
    shipped = [path.relative_to(WEIGHTS).as_posix() for path in WEIGHTS.rglob("*") if path.is_file()]
    assert files == {f"{folder}/{path}" for path in shipped}
    assert len(files) == 3 * len(SHIPPED) > 0


def test_names():
    released = ["released/cls", "released/nat", "released/pose_256x192", "released/pose_384x288"]
    assert pretrained_names() == [*SHIPPED, *released]
    assert "classification/cifar10" in SHIPPED


def test_existing_path_has_priority_over_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ClassificationReLoss(**OPTIONS).save_pretrained("classification/cifar10")
    assert ClassificationReLoss.from_pretrained("classification/cifar10").options() == OPTIONS


def test_unknown_name_is_refused():
    message = refusal(Path("clasification/cifar10"), UsageError)
    assert ", ".join(pretrained_names()) in message
    assert message.endswith("; did you mean classification/cifar10?")
    assert "did you mean" not in refusal(Path("qqqq"), UsageError)


@pytest.mark.parametrize(
    ("surrogate_class", "name", "named_class"),
    [
        (SetReLoss, "classification/cifar10", "ClassificationReLoss"),
        (SetReLoss, "released/cls", "ClassificationReLoss"),
        (ClassificationReLoss, "released/pose_256x192", "PoseReLoss"),
        (ClassificationReLoss, "released/pose_384x288", "PoseReLoss"),
        (ClassificationReLoss, "released/nat", "TranslationReLoss"),
    ],
)
@pytest.mark.usefixtures("unreachable")
def test_name_for_another_class_is_refused(surrogate_class, name, named_class):
    message = f"{name} is a {named_class}, not a {surrogate_class.__name__}; reloss.load picks the class itself"
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        surrogate_class.from_pretrained(name)


ABOUT = {"data": "synthetic", "commands": ["reloss learn"], "good_for": "tests", "not_good_for": "much"}


def test_adding_to_the_package(cli, improving_bank, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "WEIGHTS", tmp_path / "weights")
    for out, seed in (("first", 0), ("second", 1)):
        sets = ("--set", "steps=4", "items=8", f"seed={seed}")
        cli("learn", "--bank", improving_bank(name=out).path, "--metric", "accuracy", "--out", tmp_path / out, *sets)
    with pytest.raises(UsageError, match="holds no some/name yet"):
        add_pretrained("some/name", tmp_path / "first")
    assert "some/name" not in pretrained_names()
    add_pretrained("some/name", tmp_path / "first", ABOUT)
    assert "some/name" in pretrained_names()
    add_pretrained("some/name", tmp_path / "second")  # keeps `about` of the first
    card = json.loads((tmp_path / "weights" / "some" / "name" / "surrogate.json").read_text())
    assert card == {**json.loads((tmp_path / "second" / "surrogate.json").read_text()), "about": ABOUT}
    text = (tmp_path / "weights" / "some" / "name" / "README.md").read_text()
    for part in (f"{card['fit']['spearman']:.4f}", card["bank"], "24, which is 20%", "**Not good for:** much"):
        assert part in text
    first, second, added = (
        losses(ClassificationReLoss.from_pretrained(where))
        for where in (tmp_path / "first", tmp_path / "second", "some/name")
    )
    assert_close(added, second, rtol=0, atol=0)
    assert (added - first).abs().max() > 1e-3
