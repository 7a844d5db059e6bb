"""The adapter that the core sees; imports torch and fairseq only when a run begins."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reloss.experiment.task import Run, Task
from reloss_tasks.nmt.experiments import EXPERIMENTS

if TYPE_CHECKING:
    from reloss.surrogates import SurrogateLoss


class TranslationTask(Task):
    """Machine translation: fairseq's preprocessing, models, training and generation."""

    name = "nmt"

    @property
    def experiments(self) -> Mapping[str, Callable[[], Any]]:
        """Return the functions that make the experiments, by name."""
        return EXPERIMENTS

    @property
    def folder(self) -> Path:
        """Return this folder."""
        return Path(__file__).parent

    def new_surrogate(self, config: Any) -> SurrogateLoss:
        """Return a fresh surrogate for the log-probabilities of a sentence's gold tokens."""
        from reloss.surrogates import build

        learn, shape = config.learn, (config.recording.length,)
        return build("translation", shape, fidelity=learn.fidelity, input=learn.input, output=learn.output)

    def check_data(self, config: Any, data: Path) -> str:
        """Return what was found of the experiment's sentence pairs."""
        from reloss_tasks.nmt.data import describe

        return describe(config.data, data)

    def fetch_data(self, config: Any, data: Path) -> None:
        """Download the experiment's sentence pairs, where they are free to download."""
        from reloss_tasks.nmt.download import fetch_texts

        fetch_texts(config.data, data)

    def data_fingerprint(self, config: Any, data: Path) -> str:
        """Return a hash over the texts."""
        from reloss_tasks.nmt.data import fingerprint

        return fingerprint(config.data, data)

    def needs(self, config: Any) -> list[tuple[str, str, int]]:
        """Return the teacher's run, where one is distilled from or begun with."""
        teacher = re.fullmatch(r"(\w+/\w+)/(\w+)/seed(\d+)", config.data.teacher)
        if teacher is None or not (config.data.distilled or config.train.from_teacher):
            return []
        return [(teacher[1], teacher[2], int(teacher[3]))]

    def train(self, run: Run) -> None:
        """Train with fairseq-train."""
        from reloss_tasks.nmt.training import train

        train(run)

    def evaluate(self, run: Run) -> dict[str, float]:
        """Return the scores of what fairseq-generate makes of the test sentences, and of the validation ones."""
        from reloss_tasks.nmt.training import evaluate

        return evaluate(run)
