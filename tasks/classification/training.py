"""Training and evaluation with accelerate, in one or several processes."""

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
from reloss.runtime import distributed
from reloss.runtime.progress import progress, say
from reloss_tasks.accelerated import FiniteLoss, learned_weights, load_state, open_accelerator, save_state
from reloss_tasks.classification import data, models
from reloss_tasks.classification.config import ClassificationExperiment, Train
from reloss_tasks.classification.losses import make_loss
from reloss_tasks.classification.scoring import score_predictions, score_with_tuned_threshold


def train(run: Run[ClassificationExperiment]) -> None:
    """Train `run` to its last epoch, from its last checkpoint if there is one, and write the final weights.

    The randomness of an epoch depends only on (seed, epoch), so on a CPU an interrupted run ends with the same weights.

    Raises:
        RelossError: data are missing, a checkpoint does not fit, or the loss is not finite.
    """
    _Training(run).fit()


def evaluate(run: Run[ClassificationExperiment]) -> dict[str, float]:
    """Return the scores on the test examples and, named `validation_*`, the scores on held-out examples.

    With a positive class, held-out examples also tune a threshold: `tuned_f1` and `tuned_mcc`.
    """
    config = run.config
    splits = data.load(config.data, run.data, run.seed)
    with open_accelerator(config.train.precision) as accelerator:
        model = models.build(config.model.name, splits.classes, splits.shape)
        model.load_state_dict(read_weights(run.record.weights))
        model = accelerator.prepare(model)

        def predict(images: Dataset) -> tuple[Tensor, Tensor]:
            return _predict(accelerator, model, accelerator.prepare(_loader(images, config, accelerator, train=False)))

        test = predict(splits.test)
        scores = score_predictions(*test)
        if splits.validation is not splits.test:
            validation = predict(splits.validation)
            held_out = score_predictions(*validation)
            if splits.classes == 1:
                scores |= score_with_tuned_threshold(*test, *validation)
                held_out |= score_with_tuned_threshold(*validation, *validation)
            scores |= {f"validation_{name}": value for name, value in held_out.items()}
        return scores


class _Training:
    """The training of one run."""

    def __init__(self, run: Run[ClassificationExperiment]) -> None:
        self.run = run
        self.config = run.config
        self.splits = data.load(self.config.data, run.data, run.seed)

    def fit(self) -> None:
        with open_accelerator(self.config.train.precision) as accelerator:
            self.accelerator = accelerator
            self._prepare()
            for epoch in range(self._resume(), self.config.train.epochs):
                self._run_epoch(epoch)
            self.run.record.save_weights(accelerator.unwrap_model(self.model).state_dict())
            accelerator.wait_for_everyone()  # every process evaluates the weights that the main process writes

    def _prepare(self) -> None:
        recipe, accelerator = self.config.train, self.accelerator
        set_seed(derive_seed(self.run.seed, "initialisation") % 2**32)
        model = models.build(self.config.model.name, self.splits.classes, self.splits.shape)
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
        self.loss = make_loss(self.run, accelerator.device, self._negatives_per_positive())
        self.steps_per_epoch = len(self.train_loader)

    def _negatives_per_positive(self) -> float | None:
        images = self.splits.train
        if not isinstance(images, data.OneAgainstRest):
            return None
        return len(images) / images.positives - 1

    def _resume(self) -> int:
        """Load the last checkpoint, if there is one, and return the number of finished epochs."""
        state = load_state(self.run, self.accelerator, self.model, self.optimizer, self.loss)
        if state is None:
            return 0
        say(f"resuming from epoch {state['epoch']}/{self.config.train.epochs}")
        return int(state["epoch"])

    def _run_epoch(self, epoch: int) -> None:
        """Train one epoch, validate, and write a checkpoint."""
        start = time.monotonic()
        loss, train_accuracy = self._train_epoch(epoch)
        outputs, targets = _predict(self.accelerator, self.model, self.validation_loader)
        if self.accelerator.is_main_process:
            seconds = time.monotonic() - start
            self._record_epoch(epoch, loss, train_accuracy, outputs, targets, seconds)

    def _train_epoch(self, epoch: int) -> tuple[float, float]:
        """Train one epoch and return the mean loss and the accuracy on the training images."""
        recipe = self.config.train
        set_seed(own_seed(self.run.seed, "epoch", epoch) % 2**32)
        if (order := self.train_loader.synchronized_generator) is not None:  # accelerate's, with several processes
            order.manual_seed(derive_seed(self.run.seed, "order", epoch))
        self.train_loader.set_epoch(epoch)
        totals = torch.zeros(3, device=self.accelerator.device)  # loss, correct predictions, examples
        finite = FiniteLoss(self.accelerator.device)
        self.model.train()
        with progress(self.steps_per_epoch, f"epoch {epoch + 1}/{recipe.epochs}") as advance:
            for number, (images, targets) in enumerate(self.train_loader):
                step = epoch * self.steps_per_epoch + number
                for group in self.optimizer.param_groups:
                    group["lr"] = learning_rate(recipe, step / self.steps_per_epoch)
                totals += self._take_step(images, targets, step)
                finite.update(totals[0], step)
                advance()
        finite.check()
        self.run.flush_bank()
        loss, correct, examples = self.accelerator.reduce(totals, reduction="sum").tolist()
        return loss / examples, correct / examples

    def _take_step(self, images: Tensor, targets: Tensor, step: int) -> Tensor:
        """Take one training step; return the sum of the losses, the correct predictions, and the examples, [3]."""
        outputs = self.model(images)
        loss = self.loss(outputs, targets)
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        if self.config.train.clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.train.clip_norm)
        self.optimizer.step()
        if self.run.bank is not None:
            self.run.bank.append(outputs, targets, step)
        correct = ((outputs.argmax(-1) if outputs.dim() == 2 else outputs > 0) == targets).sum()
        return torch.stack([loss.detach() * len(targets), correct, torch.tensor(len(targets), device=loss.device)])

    def _record_epoch(
        self, epoch: int, loss: float, train_accuracy: float, outputs: Tensor, targets: Tensor, seconds: float
    ) -> None:
        """Log an epoch, record some validation predictions, and write a checkpoint."""
        recipe, name = self.config.train, self.config.score
        next_step = (epoch + 1) * self.steps_per_epoch
        score = score_predictions(outputs, targets, f" after step {next_step - 1}")[name]
        self.run.record.log(
            next_step,
            epoch=epoch + 1,
            train_loss=loss,
            train_accuracy=train_accuracy,
            lr=learning_rate(recipe, epoch),
            seconds=round(seconds, 2),
            **{f"validation_{name}": score},
            **learned_weights(self.loss),
        )
        count = self.config.recording.examples
        self.run.record.save_predictions(epoch + 1, outputs[:count], targets[:count])
        say(
            f"epoch {epoch + 1}/{recipe.epochs}: loss {loss:.4f}, accuracy {train_accuracy:.4f} training, "
            f"{name} {score:.4f} validation, {seconds:.0f} s"
        )
        save_state(self.run, self.accelerator, self.model, self.optimizer, self.loss, next_step, epoch=epoch + 1)


def learning_rate(recipe: Train, epoch: float) -> float:
    """Return the learning rate at a (fractional) epoch: linear warm-up, then a cosine down to 0, or steps."""
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
    """Return batches of `train.batch_size` over all processes. Training drops an incomplete one if it has others."""
    return DataLoader(
        images,
        batch_size=distributed.local_batch_size(config.train.batch_size),
        shuffle=train,
        drop_last=train and len(images) >= config.train.batch_size,  # type: ignore[arg-type]
        num_workers=config.data.workers,
        persistent_workers=False,
        pin_memory=accelerator.device.type == "cuda",
    )
