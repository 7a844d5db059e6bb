"""Training and evaluation with accelerate, from one process to many."""

from __future__ import annotations

import math
import time

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from reloss.experiment.record import read_weights
from reloss.experiment.seeds import derive_seed, own_seed
from reloss.experiment.task import Run
from reloss.metrics import accuracy, auroc, average_precision, binary_f1, top5_accuracy
from reloss.runtime import distributed
from reloss.runtime.progress import progress, say
from reloss_tasks.accelerated import FiniteLoss, check_outputs, load_state, open_accelerator, save_state
from reloss_tasks.classification import data, models
from reloss_tasks.classification.config import ClassificationExperiment, Train
from reloss_tasks.classification.losses import make_criterion


def train(run: Run) -> None:
    """Train `run` to its last epoch, from its last checkpoint if there is one, and write the final weights.

    All randomness of an epoch follows from (seed, epoch), so an interrupted run ends with the same weights on a CPU.

    Raises:
        RelossError: data are missing, a checkpoint does not fit, or the loss is not finite.
    """
    _Training(run).fit()


def evaluate(run: Run) -> dict[str, float]:
    """Return the scores on the test images and, named `validation_*`, on held-out training images if there are any."""
    config: ClassificationExperiment = run.config
    splits = data.load(config.data, run.data)
    with open_accelerator(config.train.precision) as accelerator:
        model = models.build(config.model.name, splits.classes)
        model.load_state_dict(read_weights(run.record.weights))
        model = accelerator.prepare(model)

        def measure(images: Dataset) -> dict[str, float]:
            loader = accelerator.prepare(_loader(images, config, accelerator, train=False))
            return scores(*_predict(accelerator, model, loader))

        found = measure(splits.test)
        if splits.validation is not splits.test:
            found |= {f"validation_{name}": value for name, value in measure(splits.validation).items()}
        return found


def scores(outputs: Tensor, targets: Tensor, when: str = "") -> dict[str, float]:
    """Return all scores of the predictions for one set of images: logits [E, C], or [E] of a positive class.

    Raises:
        RelossError: the logits are not finite; `when` goes into the message.
    """
    check_outputs(outputs, when)
    chosen = (accuracy, top5_accuracy) if outputs.dim() == 2 else (average_precision, binary_f1, auroc)
    found = {metric.__name__: float(metric(outputs[None], targets[None])) for metric in chosen}
    if outputs.dim() == 1:
        found["accuracy"] = float(((outputs > 0) == targets).float().mean())
    return {**found, "error": 1 - found["accuracy"]}


class _Training:
    def __init__(self, run: Run) -> None:
        self.run = run
        self.config: ClassificationExperiment = run.config
        self.splits = data.load(self.config.data, run.data)
        self.seconds = 0.0

    def fit(self) -> None:
        with open_accelerator(self.config.train.precision) as accelerator:
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
            model.load_state_dict(read_weights(self.run.initial_weights))
        optimizer = torch.optim.SGD(
            model.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
        train_loader = _loader(self.splits.train, self.config, accelerator, train=True)
        validation_loader = _loader(self.splits.validation, self.config, accelerator, train=False)
        self.model, self.optimizer, self.train_loader, self.validation_loader = accelerator.prepare(
            model, optimizer, train_loader, validation_loader
        )
        self.criterion = make_criterion(self.run, accelerator.device, self._negatives_per_positive())
        self.steps_per_epoch = len(self.train_loader)

    def _negatives_per_positive(self) -> float | None:
        images = self.splits.train
        if not isinstance(images, data.OneAgainstRest):
            return None
        return len(images) / images.positives - 1

    def _resume(self) -> int:
        """Load the last checkpoint, if there is one; returns the epoch to begin with."""
        state = load_state(self.run, self.accelerator, self.model, self.optimizer)
        if state is None:
            return 0
        say(f"going on from epoch {state['epoch']}/{self.config.train.epochs}")
        return int(state["epoch"])

    def _epoch(self, epoch: int) -> None:
        began = time.monotonic()
        set_seed(own_seed(self.run.seed, "epoch", epoch) % 2**32)
        if (order := self.train_loader.synchronized_generator) is not None:  # accelerate's, in several processes
            order.manual_seed(derive_seed(self.run.seed, "order", epoch))
        self.train_loader.set_epoch(epoch)
        totals = torch.zeros(3, device=self.accelerator.device)  # loss, right, examples
        finite = FiniteLoss(self.accelerator.device)
        self.model.train()
        recipe = self.config.train
        with progress(self.steps_per_epoch, f"epoch {epoch + 1}/{recipe.epochs}") as advance:
            for number, (images, targets) in enumerate(self.train_loader):
                step = epoch * self.steps_per_epoch + number
                for group in self.optimizer.param_groups:
                    group["lr"] = learning_rate(recipe, step / self.steps_per_epoch)
                totals += self._step(images, targets, step)
                finite.see(totals[0], step)
                advance()
        finite.check()
        self.run.flush_bank()
        loss, right, examples = self.accelerator.reduce(totals, reduction="sum").tolist()
        outputs, predicted = _predict(self.accelerator, self.model, self.validation_loader)
        if self.accelerator.is_main_process:
            score = self.config.score
            seconds = time.monotonic() - began
            next_step = (epoch + 1) * self.steps_per_epoch
            reached = scores(outputs, predicted, f" after step {next_step - 1}")[score]
            self.run.record.log(
                next_step,
                epoch=epoch + 1,
                train_loss=loss / examples,
                train_accuracy=right / examples,
                lr=learning_rate(recipe, epoch),
                seconds=round(seconds, 2),
                **{f"validation_{score}": reached},
            )
            kept = self.config.recording.examples
            self.run.record.save_predictions(epoch + 1, outputs[:kept], predicted[:kept])
            say(
                f"epoch {epoch + 1}/{recipe.epochs}: loss {loss / examples:.4f}, "
                f"accuracy {right / examples:.4f} training, {score} {reached:.4f} validation, {seconds:.0f} s"
            )
            save_state(self.run, self.accelerator, self.model, self.optimizer, next_step, epoch=epoch + 1)

    def _step(self, images: Tensor, targets: Tensor, step: int) -> Tensor:
        """Take one training step; returns the sums of loss and right answers, and the number of examples."""
        outputs = self.model(images)
        loss = self.criterion(outputs, targets)
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        if self.config.train.clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.train.clip_norm)
        self.optimizer.step()
        if self.run.bank is not None:
            self.run.bank.append(outputs, targets, step)
        right = ((outputs.argmax(-1) if outputs.dim() == 2 else outputs > 0) == targets).sum()
        return torch.stack([loss.detach() * len(targets), right, torch.tensor(len(targets), device=loss.device)])


def learning_rate(recipe: Train, epoch: float) -> float:
    """Return the learning rate at a (fractional) epoch: linear warm-up, then cosine to 0 or steps."""
    if epoch < recipe.warmup_epochs:
        return recipe.lr * max(epoch, 0.01) / recipe.warmup_epochs
    if recipe.schedule == "step":
        return recipe.lr * recipe.gamma ** sum(epoch >= milestone for milestone in recipe.milestones)
    share = (epoch - recipe.warmup_epochs) / max(recipe.epochs - recipe.warmup_epochs, 1)
    return recipe.lr * (1 + math.cos(math.pi * share)) / 2


@torch.inference_mode()
def _predict(accelerator: Accelerator, model: nn.Module, loader: DataLoader) -> tuple[Tensor, Tensor]:
    """Return the logits and targets of all images, in float32 on the CPU."""
    model.eval()
    batches = [accelerator.gather_for_metrics((model(images), targets)) for images, targets in loader]
    outputs, targets = (torch.cat([part.cpu() for part in parts]) for parts in zip(*batches, strict=True))
    return outputs.float(), targets


def _loader(images: Dataset, config: ClassificationExperiment, accelerator: Accelerator, *, train: bool) -> DataLoader:
    """Return batches of `train.batch_size` over all processes; training drops the last one unless it is alone."""
    return DataLoader(
        images,
        batch_size=distributed.local_batch_size(config.train.batch_size),
        shuffle=train,
        drop_last=train and len(images) >= config.train.batch_size,  # type: ignore[arg-type]
        num_workers=config.data.workers,
        persistent_workers=False,
        pin_memory=accelerator.device.type == "cuda",
    )
