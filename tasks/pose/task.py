"""The adapter that the core sees; imports torch and mmpose only when a run begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reloss.experiment.task import Run, Task
from reloss.runtime.errors import UsageError
from reloss_tasks.pose.experiments import EXPERIMENTS

if TYPE_CHECKING:
    from reloss.surrogates import SurrogateLoss


class PoseTask(Task):
    """Pose estimation: mmpose's data sets, models and evaluation, mmengine's training loop."""

    name = "pose"

    @property
    def experiments(self) -> Mapping[str, Callable[[], Any]]:
        """Return the functions that make the experiments, by name."""
        return EXPERIMENTS

    @property
    def folder(self) -> Path:
        """Return this folder."""
        return Path(__file__).parent

    def new_surrogate(self, config: Any) -> SurrogateLoss:
        """Return a fresh surrogate for heatmaps of the size in the mmpose config."""
        from reloss.surrogates import build
        from reloss_tasks.pose.training import heatmap_size

        learn, shape = config.learn, (1, *heatmap_size(config))
        return build("pose", shape, fidelity=learn.fidelity, input=learn.input, output=learn.output)

    def check_data(self, config: Any, data: Path) -> str:
        """Return what was found of the experiment's images and annotations."""
        from reloss_tasks.pose.data import describe

        return describe(config.data, data)

    def fetch_data(self, config: Any, data: Path) -> None:
        """Download COCO's images and annotations; LSP cannot be downloaded as it is needed here."""
        from reloss_tasks.pose.data import SOURCES, fetch_coco

        if config.data.name != "coco":
            raise UsageError(
                f"{config.data.name} is not fetched; put {SOURCES[config.data.name]} into {data / config.data.name}"
            )
        fetch_coco(data, config.data.test_dev)

    def data_fingerprint(self, config: Any, data: Path) -> str:
        """Return a hash over the annotations and the images."""
        from reloss_tasks.pose.data import fingerprint

        return fingerprint(config.data, data)

    def train(self, run: Run) -> None:
        """Train with mmengine."""
        from reloss_tasks.pose.training import train

        train(run)

    def evaluate(self, run: Run) -> dict[str, float]:
        """Return mmpose's scores on the persons to test on, and on held-out ones."""
        from reloss_tasks.pose.training import evaluate

        return evaluate(run)
