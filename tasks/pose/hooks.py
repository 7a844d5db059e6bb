"""The connection between an mmengine runner and our record: one hook.

mmengine's runner owns the training loop and calls hooks at fixed points. `RecordHook` uses them to fill the bank, to
log metrics and predictions, to stop when the loss is not finite, and to make an interrupted run continue exactly: it
seeds every epoch, and drops what was recorded after the checkpoint.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.runner.utils import set_random_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader

from reloss.experiment.metrics_log import read_metrics
from reloss.experiment.seeds import own_seed
from reloss.experiment.task import Run
from reloss.runtime import distributed
from reloss.runtime.errors import RelossError
from reloss.runtime.progress import progress, say
from reloss_tasks.pose.config import PoseExperiment
from reloss_tasks.pose.scoring import record_names

VALIDATION = "validation_"
LOSS = "head.loss_module."  # beginning of the names of a loss's weights in a model


class RecordHook(Hook):
    """Fills the bank while the model trains, and writes metrics and validation predictions into the record.

    The randomness of an epoch depends only on (seed, epoch) if images are loaded in this process (data.workers=0).

    Args:
        run: the run.
        loader: persons, with target heatmaps, whose predictions are recorded at every validation.
        initial_weights: weights to fine-tune. mmengine initialises a model after it is built, so they are loaded here.
    """

    priority = "VERY_HIGH"  # before the checkpoint is written

    def __init__(
        self, run: Run[PoseExperiment], loader: DataLoader, initial_weights: dict[str, Tensor] | None = None
    ) -> None:
        self.run = run
        self.initial_weights = initial_weights
        self.loader = loader
        self._outputs: list[dict[str, Tensor]] = []
        self._start = 0.0
        self._bar = ExitStack()

    def close(self) -> None:
        """Remove the progress bar."""
        self._bar.close()

    def before_train(self, runner: Runner) -> None:
        """Prepare record, bank and weights; record the inputs of the loss if this run fills the bank."""
        model = plain_model(runner)
        if runner.iter == 0:
            self._rewind(epoch=0, step=0)
            if self.initial_weights is not None:
                model.load_state_dict({**model.state_dict(), **self.initial_weights})
        elif runner.epoch % runner.val_interval == 0 and not self._validated(runner.epoch):
            runner.val_loop.run()  # the run was killed between the checkpoint and its validation
        if self.run.bank is not None:
            model.head.loss_module.register_forward_hook(lambda *call: self._append(runner.iter, *call))

    def _validated(self, epoch: int) -> bool:
        entries = read_metrics(self.run.record.metrics.path)
        names = {name for entry in entries if entry["epoch"] == epoch for name in entry}
        return any(name.startswith(VALIDATION) for name in names)

    def _append(self, step: int, module: nn.Module, inputs: tuple[Tensor, ...], loss: Tensor) -> None:
        outputs, targets, weights = inputs
        assert self.run.bank is not None
        self.run.bank.append(outputs.float(), targets * (weights > 0)[..., None, None], step)

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed the global generators, and start clock and progress bar."""
        set_random_seed(own_seed(self.run.seed, "epoch", runner.epoch) % 2**32)
        self._outputs, self._start = [], time.monotonic()
        bar = progress(len(runner.train_dataloader), f"epoch {runner.epoch + 1}/{runner.max_epochs}")
        self._advance = self._bar.enter_context(bar)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Store the loss and the other measurements of mmpose for a batch."""
        self._outputs.append({name: torch.as_tensor(value).detach() for name, value in outputs.items()})
        if runner.iter % 50 == 0:  # not at every step, because the check waits for the GPU
            self._check_finite(runner)
        self._advance()

    def after_train_epoch(self, runner: Runner) -> None:
        """Log the epoch.

        Raises:
            RelossError: the loss is not finite.
        """
        self._bar.close()
        self._check_finite(runner)
        self.run.flush_bank()
        means = {name: torch.stack([outputs[name] for outputs in self._outputs]).mean() for name in self._outputs[0]}
        for mean in means.values():
            all_reduce(mean, "mean")  # over the processes
        loss = float(means["loss"])
        rate = runner.optim_wrapper.get_lr()["lr"][0]
        seconds = round(time.monotonic() - self._start, 2)
        metrics = {f"train_{name}": float(mean) for name, mean in means.items()}
        if (uncertainty := getattr(plain_model(runner).head.loss_module, "uncertainty", None)) is not None:
            metrics |= uncertainty.summary()
        self.run.record.log(runner.iter, epoch=runner.epoch + 1, **metrics, lr=rate, seconds=seconds)
        say(f"epoch {runner.epoch + 1}/{runner.max_epochs}: loss {loss:.6f}, {seconds:.0f} s")

    def _check_finite(self, runner: Runner) -> None:
        finite = torch.stack([outputs["loss"] for outputs in self._outputs]).isfinite()
        if not finite.all():
            step = runner.epoch * len(runner.train_dataloader) + int(finite.int().argmin())
            raise RelossError(
                f"the loss of step {step} is not finite: training diverged; the last checkpoint is kept. Try a smaller "
                "train.lr"
            )

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Log the scores on validation persons, and record some of their heatmaps.

        The row repeats the epoch's loss, since a dashboard draws one column against another only within a row.
        """
        scores = {f"{VALIDATION}{name}": value for name, value in record_names(metrics or {}).items()}
        entries = read_metrics(self.run.record.metrics.path) if distributed.is_main() else []
        losses = {entry["epoch"]: entry["train_loss"] for entry in entries if "train_loss" in entry}
        loss = {"train_loss": losses[runner.epoch]} if runner.epoch in losses else {}
        self.run.record.log(runner.iter, epoch=runner.epoch, **scores, **loss)
        if distributed.is_main():
            self.run.record.save_predictions(runner.epoch, *predict(plain_model(runner), self.loader))
        say(f"epoch {runner.epoch}: " + " ".join(f"{name} {value:.4f}" for name, value in scores.items()))

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Remove the objects for mmengine's own log, which a safe loader refuses."""
        checkpoint["message_hub"] = {name: {} for name in ("log_scalars", "runtime_info", "resumed_keys")}
        checkpoint["meta"].pop("dataset_meta", None)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Drop what was recorded after the checkpoint: training will record it again."""
        checkpoint["meta"]["dataset_meta"] = runner.train_dataloader.dataset.metainfo  # removed before saving
        self._rewind(checkpoint["meta"]["epoch"], checkpoint["meta"]["iter"])
        say(f"resuming from epoch {checkpoint['meta']['epoch']}/{runner.max_epochs}")

    def _rewind(self, epoch: int, step: int) -> None:
        self.run.record.rewind_to_epoch(epoch)
        if self.run.bank is not None:
            self.run.bank.resume(step)


def plain_model(runner: Runner) -> Any:
    """Return the model without the wrapper for several processes."""
    return getattr(runner.model, "module", runner.model)


def network_weights(model: Any) -> dict[str, Tensor]:
    """Return the weights of the network, without those of a loss."""
    return {name: value for name, value in model.state_dict().items() if not name.startswith(LOSS)}


@torch.inference_mode()
def predict(model: Any, loader: DataLoader) -> tuple[Tensor, Tensor]:
    """Return heatmaps and targets [E, K, H, W] of the persons in `loader`, on the CPU; 0 as target of hidden joints."""
    training = model.training
    model.eval()
    outputs, targets = [], []
    for batch in loader:
        data = model.data_preprocessor(batch, False)
        outputs.append(model.head(model.extract_feat(data["inputs"])).float().cpu())
        heatmaps = torch.stack([sample.gt_fields.heatmaps for sample in data["data_samples"]])
        weights = torch.cat([sample.gt_instance_labels.keypoint_weights for sample in data["data_samples"]])
        targets.append((heatmaps * (weights > 0)[..., None, None]).cpu())
    model.train(training)
    return torch.cat(outputs).contiguous(), torch.cat(targets)
