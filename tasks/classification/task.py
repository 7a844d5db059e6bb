"""The adapter that the core sees; imports torch and torchvision only when a run begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reloss.experiment.task import Run, Task
from reloss.sweep.ablation import Ablation
from reloss_tasks.classification.ablation import ABLATION
from reloss_tasks.classification.experiments import EXPERIMENTS

if TYPE_CHECKING:
    from reloss.surrogates import SurrogateLoss


class ClassificationTask(Task):
    """Image classification: torchvision's data and models, accelerate's training loop."""

    name = "classification"

    @property
    def experiments(self) -> Mapping[str, Callable[[], Any]]:
        """Return the functions that make the experiments, by name."""
        return EXPERIMENTS

    @property
    def folder(self) -> Path:
        """Return this folder."""
        return Path(__file__).parent

    @property
    def ablation(self) -> Ablation:
        """Return the grid of one factor at a time."""
        return ABLATION

    def new_surrogate(self, config: Any) -> SurrogateLoss:
        """Return a fresh surrogate: over sets where one positive class is judged, else over single examples."""
        from reloss.surrogates import build

        kind = "classification" if config.data.positive_class is None else "set"
        learn = config.learn
        return build(kind, (), fidelity=learn.fidelity, input=learn.input, output=learn.output)

    def check_data(self, config: Any, data: Path) -> str:
        """Return what was found of the experiment's images."""
        from reloss_tasks.classification.data import describe

        return describe(config.data, data)

    def fetch_data(self, config: Any, data: Path) -> None:
        """Download CIFAR, verified by torchvision's checksum; ImageNet cannot be downloaded."""
        from reloss_tasks.classification.data import fetch

        fetch(config.data, data)

    def data_fingerprint(self, config: Any, data: Path) -> str:
        """Return a hash over the images in use."""
        from reloss_tasks.classification.data import fingerprint

        return fingerprint(config.data, data)

    def train(self, run: Run) -> None:
        """Train with accelerate."""
        from reloss_tasks.classification.training import train

        train(run)

    def evaluate(self, run: Run) -> dict[str, float]:
        """Return the scores on the test images and on held-out ones."""
        from reloss_tasks.classification.training import evaluate

        return evaluate(run)
