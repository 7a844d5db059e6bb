"""The observer of a run's training: it fills the bank and writes the record."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from reloss.experiment.task import Run
from reloss.runtime import distributed
from reloss.runtime.errors import RelossError
from reloss.runtime.progress import say
from reloss_tasks.nmt.config import TranslationExperiment
from reloss_tasks.nmt.scoring import validation_scores
from reloss_tasks.nmt.watched_tasks import NO_TOKEN

DIVERGED = "training diverged"
REMEDY = "the last checkpoint is kept. Try a smaller train.lr"


class Watcher:
    """Fills the bank while a model trains, and writes metrics and validation predictions into the record.

    Args:
        run: the run.

    Attributes:
        epoch: the current epoch, counted from 1.
        update: the number of updates so far.
    """

    def __init__(self, run: Run[TranslationExperiment]) -> None:
        self.run = run
        self.epoch = 0
        self.update = 0
        self._validated: list[tuple[Tensor, Tensor, Tensor]] = []
        self._start = time.monotonic()

    def rewind(self, epoch: int, updates: int) -> None:
        """Drop what was recorded after this epoch and this number of updates: training will record it again."""
        if updates:
            say(f"resuming from epoch {epoch}")
        self.run.record.rewind_to_epoch(epoch)
        if self.run.bank is not None:
            self.run.bank.resume(updates)

    def begin_epoch(self, epoch: int) -> None:
        """Start the clock of an epoch."""
        self.epoch, self._start, self._validated = epoch, time.monotonic(), []

    def trained(self, predicted: Callable[[], tuple[Tensor, Tensor]], update: int) -> None:
        """Append a batch to the bank, if there is one."""
        self.update = update
        if self.run.bank is not None:
            self.run.bank.append(*self._with_length(*predicted()), update)

    def validated(self, ids: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Keep the predictions for those sentences of a batch that are among the first validation sentences."""
        rows = (ids < self.run.config.recording.examples).nonzero()[:, 0]
        self._validated.append((ids[rows].cpu(), *self._with_length(outputs[rows].cpu(), targets[rows].cpu())))

    def _with_length(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Pad or cut sentences to the recorded length."""
        missing = self.run.config.recording.length - outputs.shape[1]  # negative: cut
        outputs = F.pad(outputs, (0, missing) * (outputs.dim() - 1))
        return outputs, F.pad(targets, (0, 0, 0, missing), value=NO_TOKEN)

    def end_epoch(self, task: Any, model: Any, stats: dict[str, Any]) -> None:
        """Log the epoch, and record the predictions for the validation sentences.

        Raises:
            RelossError: the training loss is not finite.
        """
        from fairseq.logging import metrics

        training = metrics.get_smoothed_values("train")
        loss = float(training["loss"])
        if not math.isfinite(loss):
            raise RelossError(f"{DIVERGED}: the loss before update {self.update} is {loss}; {REMEDY}")
        seconds = round(time.monotonic() - self._start, 2)
        scores = validation_scores(task, model, self.run.config)
        nll_loss = stats["nll_loss"]
        uncertainty = getattr(task.criterion, "uncertainty", None)
        self.run.record.log(
            int(stats["num_updates"]),
            epoch=self.epoch,
            train_loss=loss,
            train_nll_loss=float(training["nll_loss"]),
            validation_loss=float(stats["loss"]),
            validation_nll_loss=float(nll_loss.avg if hasattr(nll_loss, "avg") else nll_loss),
            lr=float(training["lr"]),
            seconds=seconds,
            **scores,
            **(uncertainty.summary() if uncertainty is not None else {}),
        )
        self._save_predictions()
        self.run.flush_bank()
        say(
            f"epoch {self.epoch} (update {stats['num_updates']} of {self.run.config.train.updates}): loss {loss:.4f}, "
            + " ".join(f"{name} {value:.2f}" for name, value in scores.items())
            + f", {seconds:.0f} s"
        )

    def _save_predictions(self) -> None:
        """Record the validation predictions of all processes, sorted by sentence."""
        batches = [batch for of_process in distributed.gather_objects(self._validated) for batch in of_process]
        if distributed.is_main():
            ids, outputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
            _, order = np.unique(ids.numpy(), return_index=True)  # fairseq's order depends on the seed
            self.run.record.save_predictions(self.epoch, outputs[order], targets[order])

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch, which the checkpoint stores."""
        return {"epoch": self.epoch}
