"""A criterion that records what it sees, so that a training loop needs one changed line."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reloss.learning import PredictionBank
from reloss.metric_loss.kinds import KINDS, Kind, detect
from reloss.metric_loss.learn import bank_bytes, find_kind, item_size_for, learn_from_bank
from reloss.metric_loss.result import LearnedLoss
from reloss.runtime.distributed import barrier, is_main, processes, rank
from reloss.runtime.errors import RelossError, UsageError
from reloss.runtime.progress import say


class Recorder(nn.Module):
    """A loss that records predictions: use it in place of the ordinary loss, train as usual, then call `learn`.

        criterion = Recorder(nn.BCEWithLogitsLoss())
        ...                                            # train with criterion(outputs, targets)
        result = criterion.learn(metric)

    Batches are recorded when gradients are enabled, so an evaluation under `torch.no_grad()` leaves no trace. To record
    held-out predictions as well, which helps where the training set is learned by heart, call `record`. The size on
    disk is bounded: what is kept is a uniform sample of the training.

    Args:
        loss: the ordinary loss, (outputs, targets) -> scalar.
        kind: kind of the predictions, a key of `reloss.metric_loss.KINDS`; recognised in the first batch by default.
        item_size: number of examples that are scored together; by default about a batch.
        path: the folder for the recording; by default a temporary one, removed with the recorder. In several processes
            it must be a folder that all of them see.
        max_bytes: bound of the recording's size on disk.

    Raises:
        UsageError: the loss cannot be called, the kind is unknown, or several processes have no common path.
    """

    def __init__(
        self,
        loss: nn.Module,
        *,
        kind: str | None = None,
        item_size: int | None = None,
        path: str | Path | None = None,
        max_bytes: int = 256 << 20,
    ) -> None:
        super().__init__()
        if isinstance(loss, type) or not callable(loss):
            example = f"Recorder({loss.__name__}())" if isinstance(loss, type) else "Recorder(nn.CrossEntropyLoss())"
            raise UsageError(f"the loss must be a function of (outputs, targets), not {loss!r}: write {example}")
        if path is None and processes() > 1:
            raise UsageError("several processes record together: pass Recorder(loss, path=FOLDER), the same folder")
        self.loss = loss
        self.kind: Kind | None = None if kind is None else find_kind(kind)
        self.item_size, self.max_bytes = item_size, max_bytes
        if path is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="reloss-")
            path = self._temporary.name
        self.path = Path(path) / "bank"
        self.bank: PredictionBank | None = None
        self.step = 0

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the ordinary loss of one batch, and record the batch if gradients are enabled."""
        if torch.is_grad_enabled():
            self.record(outputs, targets)
        return self.loss(outputs, targets)

    @torch.no_grad()
    def record(self, outputs: Tensor, targets: Tensor) -> None:
        """Record one batch: outputs [B, ...], targets [B, ...].

        Raises:
            UsageError: the batch has no known kind.
            RelossError: the outputs hold NaN, or the folder holds another recording.
        """
        outputs, targets = outputs.detach(), targets.detach()
        if self.kind is None:
            self.kind = KINDS[detect(outputs, targets)]
        outputs, targets = self.kind.prepare(outputs, targets)
        if self.bank is None:
            self.bank = self._open(outputs, targets)
        self.bank.append(outputs, targets, self.step)
        self.step += 1

    def _open(self, outputs: Tensor, targets: Tensor) -> PredictionBank:
        assert self.kind is not None
        size = self.item_size or item_size_for(self.kind, len(outputs))
        if is_main():
            max_bytes = min(self.max_bytes, bank_bytes(outputs, targets, size))
            PredictionBank.create(
                self.path, item_size=size, max_bytes=max_bytes, full_precision=self.kind.full_precision
            )
            say(f"recording {self.kind.title} {list(outputs.shape[1:])} (kind={self.kind.name}), {size} per item")
        barrier()
        return PredictionBank.open(self.path, writer=rank(), writers=processes())

    def learn(self, metric: Any, **options: Any) -> LearnedLoss:
        """Return a loss learned from what was recorded. Recording can continue afterwards.

        Args:
            metric: see `learn_loss`.
            options: further arguments of `learn_loss`: predictions, higher_is_better, steps and so on.

        Raises:
            RelossError: nothing was recorded, or too little; see `fit_surrogate`.
            UsageError: see `learn_loss`.
        """
        if self.bank is None or self.kind is None:
            raise RelossError(
                "nothing was recorded: train with the recorder as the loss, criterion(outputs, targets), before learn"
            )
        self.bank.flush()
        barrier()
        if is_main():
            self.bank.finish()
        barrier()
        bank = PredictionBank.open(self.path)
        result = learn_from_bank(
            bank, self.kind, self.loss, metric, recording=self, distributed=processes() > 1, **options
        )
        self.bank.resume(self.step)
        return result

    def extra_repr(self) -> str:
        """Return the state of the recording, for `print`."""
        return f"{self.step} batches recorded as {self.kind.title}" if self.kind else "nothing recorded yet"
