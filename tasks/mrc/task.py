"""The adapter that the core sees; imports torch and transformers only when a run begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reloss.experiment.task import Run, Task
from reloss_tasks.mrc.experiments import EXPERIMENTS

if TYPE_CHECKING:
    from reloss.surrogates import SurrogateLoss


class ReadingTask(Task):
    """Reading comprehension: transformers' encoders and tokenizers, accelerate's training loop."""

    name = "mrc"

    @property
    def experiments(self) -> Mapping[str, Callable[[], Any]]:
        """Return the functions that make the experiments, by name."""
        return EXPERIMENTS

    @property
    def folder(self) -> Path:
        """Return this folder."""
        return Path(__file__).parent

    def new_surrogate(self, config: Any) -> SurrogateLoss:
        """Return a fresh surrogate for start and end logits over the positions of a window."""
        from reloss.surrogates import build

        learn, shape = config.learn, (2, config.data.max_length)
        choices = {"input": learn.input, "output": learn.output, "structure": config.structure}
        return build("reading", shape, fidelity=learn.fidelity, **choices)

    def check_data(self, config: Any, data: Path) -> str:
        """Return what was found of the experiment's questions."""
        from reloss_tasks.mrc.data import describe

        return describe(config.data, data)

    def fetch_data(self, config: Any, data: Path) -> None:
        """Download the experiment's files, verified where a checksum is known."""
        from reloss_tasks.mrc.download import fetch

        fetch(config.data, data)

    def data_fingerprint(self, config: Any, data: Path) -> str:
        """Return a hash of the files."""
        from reloss_tasks.mrc.data import fingerprint

        return fingerprint(config.data, data)

    def train(self, run: Run) -> None:
        """Train with accelerate."""
        from reloss_tasks.mrc.training import train

        train(run)

    def evaluate(self, run: Run) -> dict[str, float]:
        """Return the official scores on the questions to test on, and on held-out ones."""
        from reloss_tasks.mrc.training import evaluate

        return evaluate(run)
