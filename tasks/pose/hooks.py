"""What an mmengine runner tells the record: the bank, the metrics, the predictions, and where it resumes."""

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


class RecordHook(Hook):
    """Fills the bank while the model trains, and writes metrics and validation predictions into the record.

    All randomness of an epoch follows from (seed, epoch) where images are loaded in this process.

    Args:
        run: the run.
        loader: of the persons whose predictions every validation leaves in the record, with their target heatmaps.
        initial_weights: of the model, if it is fine-tuned; mmengine initialises it after it is built.
    """

    priority = "VERY_HIGH"  # before the checkpoint is written

    def __init__(self, run: Run, loader: DataLoader, initial_weights: dict[str, Tensor] | None = None) -> None:
        self.run = run
        self.initial_weights = initial_weights
        self.loader = loader
        self._outputs: list[dict[str, Tensor]] = []
        self._began = 0.0
        self._bar = ExitStack()

    def close(self) -> None:
        """End what is shown of the epoch."""
        self._bar.close()

    def before_train(self, runner: Runner) -> None:
        """Begin anew or go on, and listen to what the loss is given if this run records the bank."""
        model = plain_model(runner)
        if runner.iter == 0:
            self._forget_after(epoch=0, step=0)
            if self.initial_weights is not None:
                model.load_state_dict(self.initial_weights)
        elif runner.epoch % runner.val_interval == 0 and not self._validated(runner.epoch):
            runner.val_loop.run()  # a kill came between the checkpoint and its validation
        if self.run.bank is not None:
            model.head.loss_module.register_forward_hook(lambda *call: self._append(runner.iter, *call))

    def _validated(self, epoch: int) -> bool:
        entries = read_metrics(self.run.record.metrics.path)
        return any(entry["epoch"] == epoch and "train_loss" not in entry for entry in entries)

    def _append(self, step: int, module: nn.Module, inputs: tuple[Tensor, ...], loss: Tensor) -> None:
        outputs, targets, weights = inputs
        assert self.run.bank is not None
        self.run.bank.append(outputs.float(), targets * (weights > 0)[..., None, None], step)

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed what draws from the global generators."""
        set_random_seed(own_seed(self.run.seed, "epoch", runner.epoch) % 2**32)
        self._outputs, self._began = [], time.monotonic()
        shown = progress(len(runner.train_dataloader), f"epoch {runner.epoch + 1}/{runner.max_epochs}")
        self._advance = self._bar.enter_context(shown)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Keep the loss, and what else mmpose measures of a batch."""
        self._outputs.append({name: torch.as_tensor(value).detach() for name, value in outputs.items()})
        if runner.iter % 50 == 0:  # not in each step, for it waits for the GPU
            self._check_finite(runner)
        self._advance()

    def after_train_epoch(self, runner: Runner) -> None:
        """Log the epoch.

        Raises:
            RelossError: its loss is not finite.
        """
        self._bar.close()
        self._check_finite(runner)
        self.run.flush_bank()
        means = {name: torch.stack([each[name] for each in self._outputs]).mean() for name in self._outputs[0]}
        for mean in means.values():
            all_reduce(mean, "mean")  # over the processes
        loss = float(means["loss"])
        rate = runner.optim_wrapper.get_lr()["lr"][0]
        seconds = round(time.monotonic() - self._began, 2)
        measured = {f"train_{name}": float(mean) for name, mean in means.items()}
        self.run.record.log(runner.iter, epoch=runner.epoch + 1, **measured, lr=rate, seconds=seconds)
        say(f"epoch {runner.epoch + 1}/{runner.max_epochs}: loss {loss:.6f}, {seconds:.0f} s")

    def _check_finite(self, runner: Runner) -> None:
        finite = torch.stack([each["loss"] for each in self._outputs]).isfinite()
        if not finite.all():
            step = runner.epoch * len(runner.train_dataloader) + int(finite.int().argmin())
            raise RelossError(
                f"the loss of step {step} is not finite: training diverged; the checkpoint before it is kept. Try a "
                "smaller train.lr"
            )

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Log the scores on validation persons, and keep some of their heatmaps."""
        found = {f"validation_{name}": value for name, value in scores(metrics or {}).items()}
        self.run.record.log(runner.iter, epoch=runner.epoch, **found)
        if distributed.is_main():
            self.run.record.save_predictions(runner.epoch, *predict(plain_model(runner), self.loader))
        say(f"epoch {runner.epoch}: " + " ".join(f"{name} {value:.4f}" for name, value in found.items()))

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Leave out what mmengine keeps for its own log: objects that a safe loader refuses."""
        checkpoint["message_hub"] = {name: {} for name in ("log_scalars", "runtime_info", "resumed_keys")}
        checkpoint["meta"].pop("dataset_meta", None)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Forget what was recorded after the checkpoint: it will come again."""
        checkpoint["meta"]["dataset_meta"] = runner.train_dataloader.dataset.metainfo  # left out when it was saved
        self._forget_after(checkpoint["meta"]["epoch"], checkpoint["meta"]["iter"])
        say(f"going on from epoch {checkpoint['meta']['epoch']}/{runner.max_epochs}")

    def _forget_after(self, epoch: int, step: int) -> None:
        self.run.record.rewind_to_epoch(epoch)
        if self.run.bank is not None:
            self.run.bank.resume(step)


def plain_model(runner: Runner) -> Any:
    """Return the model itself, also where several processes train it."""
    return getattr(runner.model, "module", runner.model)


def scores(metrics: dict[str, float]) -> dict[str, float]:
    """Return mmengine's metrics by the names of records: `coco/AP .5` becomes AP_50, `pck/PCK` PCK."""
    short = {"AP .5": "AP_50", "AP .75": "AP_75", "AR .5": "AR_50", "AR .75": "AR_75"}
    names = {name: name.partition("/")[2] or name for name in metrics}
    return {short.get(names[name], names[name].replace(" ", "_")): float(value) for name, value in metrics.items()}


@torch.inference_mode()
def predict(model: Any, loader: DataLoader) -> tuple[Tensor, Tensor]:
    """Return the heatmaps and the targets [E, K, H, W] of the persons in `loader`, on the CPU; 0 for hidden joints."""
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
    return torch.cat(outputs), torch.cat(targets)
