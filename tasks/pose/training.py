"""Training and evaluation by mmengine's runner."""

from __future__ import annotations

import copy
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager, redirect_stdout
from math import inf
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner
from mmpose.models.losses import KeypointMSELoss, KeypointOHKMMSELoss
from mmpose.registry import DATASETS
from mmpose.utils import register_all_modules
from torch import nn
from torch.utils.data import DataLoader

from reloss.experiment.record import read_weights
from reloss.experiment.seeds import derive_seed
from reloss.experiment.task import Run
from reloss.runtime import distributed
from reloss.runtime.checkpoint import latest_intact, no_intact_checkpoint
from reloss.runtime.errors import UsageError
from reloss.runtime.files import read_json, write_text
from reloss_tasks.pose import data
from reloss_tasks.pose.config import PoseExperiment
from reloss_tasks.pose.hooks import RecordHook, plain_model, scores
from reloss_tasks.pose.losses import KeypointReLoss
from reloss_tasks.pose.mean_pose import score_mean_pose
from reloss_tasks.pose.pictures import draw_persons
from reloss_tasks.pose.precision import train_in_bfloat16

CONFIGS = Path(__file__).parent / "configs"
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


@contextmanager
def _on_standard_error() -> Iterator[None]:
    """Let what libraries print, such as COCO's evaluation, not mix with what the command prints."""
    with redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*pkg_resources is deprecated.*")
        warnings.filterwarnings("ignore", ".*should not accept any other arguments")
        warnings.filterwarnings("ignore", ".*MultiScaleDeformableAttention.*")
        yield


@_on_standard_error()
def train(run: Run) -> None:
    """Train `run` to its last epoch, from its last checkpoint if there is one, and write the final weights.

    Raises:
        RelossError: data are missing, a checkpoint does not fit, or the loss is not finite.
    """
    data.check(run.config.data, run.data)
    runner = make_runner(run, resume=_has_checkpoint(run.record.path, run.record.epochs()))
    model = plain_model(runner)
    model.head.loss_module = make_loss(run)
    if run.config.train.precision == "bf16":
        train_in_bfloat16(model)
    start = None if run.initial_weights is None else read_weights(run.initial_weights)
    hook = RecordHook(run, _recorded_loader(runner, run.config), start)
    runner.register_hook(hook)
    with closing(hook):
        runner.train()
    run.record.save_weights(model.state_dict())
    distributed.barrier()  # all evaluate what the main process has written


@_on_standard_error()
def evaluate(run: Run) -> dict[str, float]:
    """Return the test scores of the weights in the record and, named `validation_*`, those on held-out persons.

    Beside PCK stands `mean_pose_PCK`, that of predicting the mean pose for everybody.
    """
    runner = make_runner(run, resume=False)
    plain_model(runner).load_state_dict(read_weights(run.record.weights))
    found = scores(runner.test())
    draw_persons(run, _recorded_loader(runner, run.config), runner.test_dataloader.dataset.metainfo)
    if run.config.score == "PCK":
        persons = DATASETS.build(copy.deepcopy(runner.cfg.train_dataloader.dataset))
        found |= _named("mean_pose", score_mean_pose(persons, runner.test_dataloader.dataset, runner.test_evaluator))
    if run.config.data.held_out:
        found |= _named("validation", runner.val())
    if run.config.data.test_dev:
        _predict_test_dev(run)
    return found


def _predict_test_dev(run: Run) -> None:
    """Write what COCO's server takes, its test-dev persons' joints: `test-dev.keypoints.json` in the record."""
    runner = make_runner(run, resume=False, test_dev=True)
    plain_model(runner).load_state_dict(read_weights(run.record.weights))
    runner.test()


def _named(prefix: str, metrics: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}_{name}": value for name, value in scores(metrics).items()}


def make_loss(run: Run) -> nn.Module:
    """Return the keypoint loss of the run."""
    if run.loss == "mse":
        return KeypointMSELoss(use_target_weight=True)
    if run.loss == "ohkm":
        return KeypointOHKMMSELoss(use_target_weight=True)
    assert run.surrogate is not None
    return KeypointReLoss(run.surrogate, ordinary_weight=run.config.train.ordinary_weight)


def make_config(config: PoseExperiment, folder: Path) -> Config:
    """Return mmpose's config with what the experiment says in it.

    Args:
        config: the experiment.
        folder: of the data sets.

    Raises:
        UsageError: there is no such mmpose config.
    """
    register_all_modules(init_default_scope=True)
    made = _read_config(config.model.config)
    root = str(folder / config.data.name) + os.sep
    for name in LOADERS:
        loader = made[name]
        loader.update(num_workers=config.data.workers, persistent_workers=config.data.workers > 0)
        loader.dataset.data_root = root
    made.train_dataloader.batch_size = distributed.local_batch_size(config.train.batch_size)
    for name in LOADERS[1:]:
        made[name].dataset.bbox_file = root + data.BOXES if config.data.boxes == "detector" else None
    for name in ("val_evaluator", "test_evaluator"):
        if "ann_file" in made[name]:
            made[name].ann_file = root + made.test_dataloader.dataset.ann_file
    if config.data.held_out:
        _hold_out(made, config.data.held_out)
    if not config.model.pretrained:
        made.model.backbone.init_cfg = None
    _set_recipe(made, config)
    return made


def heatmap_size(config: PoseExperiment) -> tuple[int, int]:
    """Return the height and the width of the heatmaps."""
    width, height = _read_config(config.model.config).codec.heatmap_size
    return height, width


def _read_config(name: str) -> Config:
    path = name if name.startswith("mmpose::") else str(CONFIGS / name)
    try:
        if path.startswith("mmpose::"):
            from mmengine.hub import get_config

            return get_config(path)
        return Config.fromfile(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"no mmpose config {name}: {error}") from error


def _hold_out(made: Config, count: int) -> None:
    """Validate on the last `count` training persons, which are then not trained on."""
    trained, validated = made.train_dataloader.dataset, made.val_dataloader.dataset
    validated.update(ann_file=trained.ann_file, data_prefix=trained.data_prefix)
    persons = len(read_json(Path(trained.data_root) / trained.ann_file)["annotations"])
    if persons <= count:
        raise UsageError(f"data.held_out={count} leaves none of {persons} persons to train on")
    trained.indices = list(range(persons - count))
    validated.indices = list(range(persons - count, persons))


def _set_recipe(made: Config, config: PoseExperiment) -> None:
    recipe = config.train
    share = recipe.epochs / made.train_cfg.max_epochs
    made.train_cfg.update(max_epochs=recipe.epochs, val_interval=recipe.validate_every)
    for scheduler in made.param_scheduler:
        if scheduler.get("by_epoch", True):
            scheduler.end = recipe.epochs
            scheduler.milestones = [max(round(milestone * share), 1) for milestone in scheduler.milestones]
    made.optim_wrapper.optimizer.lr = recipe.lr
    if recipe.precision == "fp16" and not torch.cuda.is_available():
        raise UsageError("train.precision=fp16 needs a GPU; choose bf16 or no")
    if recipe.precision == "fp16":
        made.optim_wrapper.type = "AmpOptimWrapper"


def make_runner(run: Run, resume: bool, test_dev: bool = False) -> Runner:
    """Return mmengine's runner for the run.

    Args:
        run: the run.
        resume: go on from the last checkpoint in the record.
        test_dev: its test is to write the joints of COCO's test-dev persons into the record.
    """
    made = make_config(run.config, run.data)
    folder = run.record.path
    if test_dev:
        labels, images = data.TEST_DEV
        root = made.test_dataloader.dataset.data_root
        made.test_dataloader.dataset.update(
            ann_file=labels, data_prefix={"img": f"{images}/"}, bbox_file=root + data.TEST_DEV_BOXES
        )
        prefix = str(folder / "test-dev")
        made.test_evaluator.update(ann_file=root + labels, format_only=True, outfile_prefix=prefix)
    made.work_dir = str(folder / "mmengine")
    made.experiment_name = f"{run.config.name}-{run.loss}-{run.seed}-{time.time_ns()}"
    if distributed.processes() > 1:
        made.launcher = "pytorch"
        if not torch.cuda.is_available():  # mmengine's own wrapper asks for a GPU of each process
            made.model_wrapper_cfg = {"type": "MMDistributedDataParallel", "device_ids": None}
    made.randomness = {"seed": derive_seed(run.seed, "initialisation") % 2**32}
    made.default_hooks.checkpoint = {
        "type": "CheckpointHook",
        "interval": run.config.train.validate_every,
        "max_keep_ckpts": 2,  # the last one stays whole while the next is written
        "out_dir": str(folder / "checkpoint"),
    }
    made.resume = resume
    made.log_level = logging.WARNING
    # Without the formatter, which takes minutes for what mmengine writes down of its config.
    return Runner.from_cfg(Config(made.to_dict(), format_python_code=False))


def _has_checkpoint(record: Path, epochs: float = inf) -> bool:
    """Return whether mmengine left a checkpoint in the record.

    Where the last one is damaged, or of more than so many `epochs`, the one before is gone on from, if there is one.

    Raises:
        RelossError: all are damaged or cannot be read.
    """
    pointer = record / "mmengine" / "last_checkpoint"  # mmengine's own note
    path = Path(pointer.read_text()) if pointer.exists() else None
    if path is None or not path.exists():
        return False
    older = [each for each in path.parent.glob("epoch_*.pth") if _epoch(each) < _epoch(path)]
    found = [path, *sorted(older, key=_epoch, reverse=True)]
    whole = latest_intact([each for each in found if _epoch(each) <= epochs] or found)
    if whole is None:
        raise no_intact_checkpoint(found, f"remove {pointer} to train this run anew")
    if whole != path:
        write_text(pointer, str(whole))
    return True


def _epoch(checkpoint: Path) -> int:
    return int(checkpoint.stem.removeprefix("epoch_"))


def _recorded_loader(runner: Runner, config: PoseExperiment) -> DataLoader:
    """Return the first validation persons with target heatmaps: the training pipeline without its randomness."""
    made = copy.deepcopy(runner.cfg)
    loader = made.val_dataloader
    plain = [step for step in made.train_dataloader.dataset.pipeline if not step["type"].startswith("Random")]
    first = config.recording.examples
    indices = loader.dataset.get("indices")
    kept = indices[:first] if isinstance(indices, list) else first
    loader.dataset.update(pipeline=plain, bbox_file=None, test_mode=True, indices=kept)
    persons = DATASETS.build(loader.dataset)
    persons.full_init()
    return DataLoader(persons, loader.batch_size, collate_fn=pseudo_collate)  # all of them, in each process
