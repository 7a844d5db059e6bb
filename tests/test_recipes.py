"""The recipes of CONTRIBUTING.md: what they promise to be enough is enough."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reloss.experiment.settings import override
from reloss.experiment.task import find_experiment, tasks
from reloss.learning import PredictionBank, fit_surrogate
from reloss.metrics import METRICS, accuracy, get_metric
from reloss.surrogates import SurrogateLoss, build, load
from reloss.surrogates.registry import KINDS

ROOT = Path(__file__).resolve().parent.parent
TOY = Path(__file__).parent / "recipes" / "reloss_toy"
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def files_to_touch(recipe: str, header: str = "file") -> list[str]:
    """Return the files in the table of a recipe, by the header of its first column."""
    section = GUIDE.partition(f"\n## {recipe}\n")[2].partition("\n## ")[0]
    table = section.partition(f"\n| {header} |")[2].partition("\n\n")[0]
    return re.findall(r"^\| `([^`]+)` \|", table, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("recipe", "header", "most"),
    [
        ("Add a metric", "file", 2),
        ("Add a kind of surrogate", "file", 3),
        ("Add a task", "other file", 4),
        ("Add an experiment", "file", 1),
    ],
)
def test_a_recipe_touches_few_files_that_exist(recipe: str, header: str, most: int) -> None:
    files = files_to_touch(recipe, header)
    assert 0 < len(files) <= most
    for file in files:
        assert list(ROOT.glob(re.sub(r"<\w+>", "*", file))), file


def test_every_task_has_the_files_of_the_recipe() -> None:
    files = files_to_touch("Add a task", "file in the folder")
    assert len(files) == 9
    own = {"README.md"}  # the toy's is this guide
    assert {path.name for path in TOY.iterdir() if path.is_file()} == set(files) - own
    missing = {
        f"{task.name}/{name}" for task in tasks().values() for name in files if not (task.folder / name).exists()
    }
    assert missing == set()


# A task, out of tree

Reloss = Callable[..., str]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Reloss:
    """Install the toy task out of tree, as pip would; return a function that runs `reloss` there."""
    site = tmp_path_factory.mktemp("site")
    shutil.copytree(TOY, site / "reloss_toy", ignore=shutil.ignore_patterns("__pycache__"))
    info = site / "reloss_toy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: reloss-toy\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[reloss.tasks]\ntoy = reloss_toy\n", encoding="utf-8")
    path = os.pathsep.join([str(site), str(ROOT / "common"), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}

    def reloss(*words: str) -> str:
        command = [sys.executable, "-m", "reloss.cli", *words]
        done = subprocess.run(command, cwd=site, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return reloss


def test_a_task_out_of_tree_runs_to_its_table(toy: Reloss) -> None:
    (listed,) = [row for row in json.loads(toy("list", "--json")) if row["task"] == "toy"]
    assert listed["name"] == "toy/clouds_linear"
    assert listed["losses"] == ["ce", "approx", "reloss"]

    record = Path(toy("run", listed["name"], "--loss", "reloss", "--seed", "0", "--track", "off").strip())
    assert record.parts[-4:] == ("toy", "clouds_linear", "reloss", "seed0")

    rows = {row["loss"]: row for row in json.loads(toy("table", "toy", "--format", "json"))}
    ordinary, learned = (rows[loss]["mean"] for loss in ("ce", "reloss"))
    assert 65 < ordinary < 80  # percent; the best classifier reaches about 79
    assert learned == pytest.approx(ordinary, abs=6)
    assert rows["reloss"]["difference"] == pytest.approx(learned - ordinary)
    assert rows["reloss"]["spearman"] > 0.6
    assert rows["approx"]["mean"] is None


# A kind of surrogate


class MarginReLoss(SurrogateLoss):
    """A learned function of each example's margin: logit of the target minus the largest other logit."""

    def __init__(self, width: int = 16, scale: float = 1.0) -> None:
        super().__init__(scale)
        self.width = width
        self.layers = nn.Sequential(nn.Linear(1, width), nn.Linear(width, 1))

    def features(self, outputs: Tensor, targets: Tensor) -> Tensor:
        is_target = F.one_hot(targets, outputs.shape[-1]).bool()
        others = outputs.masked_fill(is_target, -torch.inf).amax(-1, keepdim=True)
        return outputs.gather(-1, targets[..., None]) - others

    @staticmethod
    def ordinary_loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.movedim(-1, 1), targets, reduction="none").mean(-1)


def test_a_kind_of_surrogate_is_a_class_and_its_name(
    improving_bank: Callable[..., PredictionBank], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KINDS, "margin", MarginReLoss)
    result = fit_surrogate(build("margin", (5,), width=8), improving_bank(), accuracy, steps=30, items=32)
    assert result.spearman > 0.8
    result.surrogate.save_pretrained(tmp_path / "margin")
    loaded = load(tmp_path / "margin")
    outputs, targets = torch.randn(6, 5), torch.randint(5, (6,))
    assert torch.equal(loaded(outputs, targets), result.surrogate(outputs, targets))


# A metric


def test_a_metric_is_a_function_and_its_name(
    improving_bank: Callable[..., PredictionBank], monkeypatch: pytest.MonkeyPatch
) -> None:
    def error_rate_of_class_0(outputs: Tensor, targets: Tensor) -> Tensor:
        wrong = (outputs.argmax(-1) == 0) != (targets == 0)
        return 1 - wrong.float().mean(-1)

    monkeypatch.setitem(METRICS, "class_0", error_rate_of_class_0)
    assert get_metric("class_0") is error_rate_of_class_0
    surrogate = build("classification", (5,))
    assert fit_surrogate(surrogate, improving_bank(), "class_0", steps=20, items=32).spearman > 0.3


# An experiment


def test_an_experiment_is_a_function_and_its_name(monkeypatch: pytest.MonkeyPatch, cli: Callable) -> None:
    task = tasks()["classification"]

    def digits_wide() -> Any:
        config = override(task.experiments["classification/digits_cnn"](), ["train.epochs=1"])
        return config.model_copy(update={"name": "classification/digits_wide"})

    monkeypatch.setitem(task.experiments, "classification/digits_wide", digits_wide)  # type: ignore[arg-type]
    assert find_experiment("classification/digits_wide")[1].train.model_dump()["epochs"] == 1
    code, out, _ = cli("list")
    assert code == 0
    assert "classification/digits_wide" in out
