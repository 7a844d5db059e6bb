"""Training and evaluation with accelerate, from one process to many."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from reloss.errors import RelossError, UsageError
from reloss.experiment.seeds import derive_seed
from reloss.experiment.task import Run
from reloss.progress import progress, say
from tasks.classification import data, models
from tasks.classification.config import ClassificationExperiment, Train

Criterion = Callable[[Tensor, Tensor], Tensor]


def train(run: Run) -> None:
    """Train `run` to its last epoch, from its last checkpoint if there is one, and write the final weights.

    All randomness of an epoch follows from (seed, epoch), so an interrupted run ends with the same weights on a CPU.

    Raises:
        RelossError: data are missing, a checkpoint does not fit, or the loss is not finite.
    """
    _Training(run).fit()


def evaluate(run: Run) -> dict[str, float]:
    """Return accuracy, error and (with more than five classes) top-5 accuracy on the test images."""
    config: ClassificationExperiment = run.config
    splits = data.load(config.data, run.data)
    with _accelerator(config.train.precision) as accelerator:
        model = models.build(config.model.name, splits.classes)
        model.load_state_dict(_read_weights(run.record.weights))
        model = accelerator.prepare(model)
        loader = accelerator.prepare(_loader(splits.test, config, accelerator, train=False))
        return _test(accelerator, model, loader)


class _Training:
    def __init__(self, run: Run) -> None:
        self.run = run
        self.config: ClassificationExperiment = run.config
        self.splits = data.load(self.config.data, run.data)
        self.seconds = 0.0

    def fit(self) -> None:
        with _accelerator(self.config.train.precision) as accelerator:
            self.accelerator = accelerator
            self._prepare()
            first = self._resume()
            for epoch in range(first, self.config.train.epochs):
                self._epoch(epoch)
            self.run.record.save_weights(accelerator.unwrap_model(self.model).state_dict())
            accelerator.wait_for_everyone()  # all evaluate what the main process has written

    def _prepare(self) -> None:
        recipe, accelerator = self.config.train, self.accelerator
        set_seed(derive_seed(self.run.seed, "initialisation") % 2**32)
        model = models.build(self.config.model.name, self.splits.classes)
        if self.run.initial_weights is not None:
            model.load_state_dict(_read_weights(self.run.initial_weights))
        optimizer = torch.optim.SGD(
            model.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
        train_loader = _loader(self.splits.train, self.config, accelerator, train=True)
        validation_loader = _loader(self.splits.validation, self.config, accelerator, train=False)
        self.model, self.optimizer, self.train_loader, self.validation_loader = accelerator.prepare(
            model, optimizer, train_loader, validation_loader
        )
        self.criterion = make_criterion(self.run, accelerator.device)
        self.steps_per_epoch = len(self.train_loader)

    def _resume(self) -> int:
        """Load the last checkpoint, if there is one; returns the epoch to begin with."""
        state = self.run.record.load_checkpoint()
        bank = self.run.bank
        if state is None:
            if bank is not None:
                bank.resume(0)
            return 0
        try:
            self.accelerator.unwrap_model(self.model).load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise RelossError(f"the checkpoint in {self.run.record.path} does not fit the model: {error}") from error
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if bank is not None:
            bank.resume(state["bank_position"])
        say(f"going on from epoch {state['epoch']}/{self.config.train.epochs}")
        return int(state["epoch"])

    def _epoch(self, epoch: int) -> None:
        began = time.monotonic()
        set_seed(derive_seed(self.run.seed, "epoch", epoch) % 2**32)
        self.train_loader.set_epoch(epoch)
        totals = torch.zeros(3, device=self.accelerator.device)  # loss, right, examples
        self.model.train()
        recipe = self.config.train
        with progress(self.steps_per_epoch, f"epoch {epoch + 1}/{recipe.epochs}") as advance:
            for number, (images, targets) in enumerate(self.train_loader):
                step = epoch * self.steps_per_epoch + number
                for group in self.optimizer.param_groups:
                    group["lr"] = learning_rate(recipe, step / self.steps_per_epoch)
                totals += self._step(images, targets, step)
                advance()
        self._check_finite(totals, epoch)
        loss, right, examples = self.accelerator.reduce(totals, reduction="sum").tolist()
        scores = _test(self.accelerator, self.model, self.validation_loader)
        if self.accelerator.is_main_process:
            seconds = time.monotonic() - began
            self.run.record.log(
                (epoch + 1) * self.steps_per_epoch,
                epoch=epoch + 1,
                train_loss=loss / examples,
                train_accuracy=right / examples,
                validation_accuracy=scores["accuracy"],
                lr=learning_rate(recipe, epoch),
                seconds=round(seconds, 2),
            )
            say(
                f"epoch {epoch + 1}/{recipe.epochs}: loss {loss / examples:.4f}, "
                f"accuracy {right / examples:.4f} training, {scores['accuracy']:.4f} validation, {seconds:.0f} s"
            )
            self._save(epoch + 1)

    def _step(self, images: Tensor, targets: Tensor, step: int) -> Tensor:
        """Take one training step; returns the sums of loss and right answers, and the number of examples."""
        outputs = self.model(images)
        loss = self.criterion(outputs, targets)
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        if self.config.train.clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.train.clip_norm)
        self.optimizer.step()
        if self.run.bank is not None and self.accelerator.is_main_process:
            self.run.bank.append(outputs, targets, step)
        right = (outputs.argmax(-1) == targets).sum()
        return torch.stack([loss.detach() * len(targets), right, torch.tensor(len(targets), device=loss.device)])

    def _check_finite(self, totals: Tensor, epoch: int) -> None:
        if not math.isfinite(totals[0].item()):
            raise RelossError(
                f"the loss of epoch {epoch + 1} is {totals[0].item()}: training diverged; the checkpoint before it is "
                "kept. Try a smaller train.lr, or train.clip_norm"
            )

    def _save(self, epoch: int) -> None:
        bank = self.run.bank
        if bank is not None:
            bank.flush()
        scaler = self.accelerator.scaler
        self.run.record.save_checkpoint(
            {
                "epoch": epoch,
                "model": self.accelerator.unwrap_model(self.model).state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": scaler.state_dict() if scaler is not None else None,
                "bank_position": bank.position if bank is not None else None,
            }
        )


def make_criterion(run: Run, device: torch.device | str = "cpu") -> Criterion:
    """Return the loss of a run: (logits [B, C], targets [B]) -> scalar."""
    recipe: Train = run.config.train
    if run.loss == "ce":
        return F.cross_entropy
    if run.loss == "label_smoothing":
        return nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    if run.surrogate is None:
        raise RelossError(f"loss '{run.loss}' needs a learned surrogate")
    surrogate, weight = run.surrogate.to(device), recipe.ordinary_weight
    if weight == 0:
        return surrogate
    return lambda outputs, targets: surrogate(outputs, targets) + weight * F.cross_entropy(outputs, targets)


def learning_rate(recipe: Train, epoch: float) -> float:
    """Return the learning rate at a (fractional) epoch: linear warm-up, then cosine to 0 or steps."""
    if epoch < recipe.warmup_epochs:
        return recipe.lr * max(epoch, 0.01) / recipe.warmup_epochs
    if recipe.schedule == "step":
        return recipe.lr * recipe.gamma ** sum(epoch >= milestone for milestone in recipe.milestones)
    share = (epoch - recipe.warmup_epochs) / max(recipe.epochs - recipe.warmup_epochs, 1)
    return recipe.lr * (1 + math.cos(math.pi * share)) / 2


@torch.inference_mode()
def _test(accelerator: Accelerator, model: nn.Module, loader: DataLoader) -> dict[str, float]:
    model.eval()
    right, right5, count = 0, 0, 0
    for images, targets in loader:
        outputs, targets = accelerator.gather_for_metrics((model(images), targets))
        best = outputs.topk(min(5, outputs.shape[-1]), dim=-1).indices == targets[:, None]
        right += int(best[:, 0].sum())
        right5 += int(best.sum())
        count += len(targets)
    accuracy = right / count
    return {"accuracy": accuracy, "error": 1 - accuracy, "top5_accuracy": right5 / count}


def _loader(images: Dataset, config: ClassificationExperiment, accelerator: Accelerator, *, train: bool) -> DataLoader:
    """Return batches of `train.batch_size` over all processes; training drops the last one unless it is alone."""
    size = max(config.train.batch_size // accelerator.num_processes, 1)
    return DataLoader(
        images,
        batch_size=size,
        shuffle=train,
        drop_last=train and len(images) >= config.train.batch_size,  # type: ignore[arg-type]
        num_workers=config.data.workers,
        persistent_workers=False,
        pin_memory=accelerator.device.type == "cuda",
    )


def _read_weights(path: Any) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except Exception as error:
        raise RelossError(f"cannot read the weights {path} ({error}); train the run again") from error


@contextmanager
def _accelerator(precision: str) -> Iterator[Accelerator]:
    """Yield an Accelerator and clear its process-wide state after, so that the next run may be of another precision."""
    try:
        # Without cpu=True, accelerate takes processes that torchrun starts on a machine without GPU for single ones.
        accelerator = Accelerator(mixed_precision=precision, cpu=not torch.cuda.is_available())
    except ValueError as error:  # fp16 without a GPU
        raise UsageError(f"train.precision={precision} does not work here: {error}; choose bf16 or no") from error
    try:
        yield accelerator
    finally:
        accelerator.free_memory()
        AcceleratorState._reset_state()
