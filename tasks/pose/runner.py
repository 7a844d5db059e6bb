"""From an experiment to mmengine's config and runner.

An mmpose config file describes network, codec, augmentation and schedule. This module changes in it only what the
experiment's config states, such as paths, batch size and number of epochs.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmpose.utils import register_all_modules

from reloss.experiment.seeds import derive_seed
from reloss.experiment.task import Run
from reloss.runtime import distributed
from reloss.runtime.errors import UsageError
from reloss.runtime.files import read_data
from reloss_tasks.pose import data
from reloss_tasks.pose.config import PoseExperiment
from reloss_tasks.pose.mmpose_configs import heatmap_size, read_mmpose_config

LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


def make_config(config: PoseExperiment, folder: Path) -> Config:
    """Return mmpose's config with the values of the experiment.

    Args:
        config: the experiment.
        folder: the data folder.

    Raises:
        UsageError: there is no such mmpose config, or it has no heatmaps; fp16 needs a GPU; or no person remains for
            training.
    """
    register_all_modules(init_default_scope=True)
    heatmap_size(config.model.config)  # refuses a config without heatmaps
    mm_config = read_mmpose_config(config.model.config)
    _set_data(mm_config, config, folder)
    if not config.model.pretrained:
        mm_config.model.backbone.init_cfg = None
    _set_recipe(mm_config, config)
    return mm_config


def _set_data(mm_config: Config, config: PoseExperiment, folder: Path) -> None:
    root = str(folder / config.data.name) + os.sep
    for name in LOADERS:
        loader = mm_config[name]
        loader.update(num_workers=config.data.workers, persistent_workers=config.data.workers > 0)
        loader.dataset.data_root = root
    mm_config.train_dataloader.batch_size = distributed.local_batch_size(config.train.batch_size)
    for name in LOADERS[1:]:
        mm_config[name].dataset.bbox_file = root + data.BOXES if config.data.boxes == "detector" else None
    for name in ("val_evaluator", "test_evaluator"):
        if "ann_file" in mm_config[name]:
            mm_config[name].ann_file = root + mm_config.test_dataloader.dataset.ann_file
    if config.data.held_out:
        _hold_out(mm_config, config.data.held_out)


def _hold_out(mm_config: Config, count: int) -> None:
    """Use the last `count` training persons for validation instead of training."""
    train, validation = mm_config.train_dataloader.dataset, mm_config.val_dataloader.dataset
    validation.update(ann_file=train.ann_file, data_prefix=train.data_prefix)
    persons = len(read_data(Path(train.data_root) / train.ann_file)["annotations"])
    if persons <= count:
        raise UsageError(f"data.held_out={count} leaves none of {persons} persons for training; lower it")
    train.indices = list(range(persons - count))
    validation.indices = list(range(persons - count, persons))


def _set_recipe(mm_config: Config, config: PoseExperiment) -> None:
    recipe = config.train
    share = recipe.epochs / mm_config.train_cfg.max_epochs
    mm_config.train_cfg.update(max_epochs=recipe.epochs, val_interval=recipe.validate_every)
    for scheduler in mm_config.param_scheduler:
        if scheduler.get("by_epoch", True):
            scheduler.end = recipe.epochs
            scheduler.milestones = [max(round(milestone * share), 1) for milestone in scheduler.milestones]
    mm_config.optim_wrapper.optimizer.lr = recipe.lr
    if recipe.precision == "fp16":
        if not torch.cuda.is_available():
            raise UsageError("train.precision=fp16 needs a GPU; set it to bf16 or no")
        mm_config.optim_wrapper.type = "AmpOptimWrapper"


def make_runner(run: Run[PoseExperiment], resume: bool, test_dev: bool = False) -> Runner:
    """Return mmengine's runner for the run.

    Args:
        run: the run.
        resume: whether to resume from the last checkpoint in the record.
        test_dev: whether its test writes the joints of COCO's test-dev persons into the record.
    """
    mm_config = make_config(run.config, run.data)
    folder = run.record.path
    if test_dev:
        _test_on_test_dev(mm_config, folder)
    mm_config.work_dir = str(folder / "mmengine")
    mm_config.experiment_name = f"{run.config.name}-{run.loss}-{run.seed}-{time.time_ns()}"
    if distributed.processes() > 1:
        mm_config.launcher = "pytorch"
        if not torch.cuda.is_available():  # mmengine's own wrapper needs a GPU for each process
            mm_config.model_wrapper_cfg = {"type": "MMDistributedDataParallel", "device_ids": None}
    mm_config.randomness = {"seed": derive_seed(run.seed, "initialisation") % 2**32}
    mm_config.default_hooks.checkpoint = {
        "type": "CheckpointHook",
        "interval": run.config.train.validate_every,
        "max_keep_ckpts": 2,  # one stays intact while the next is written
        "out_dir": str(folder / "checkpoint"),
    }
    mm_config.resume = resume
    mm_config.log_level = logging.WARNING
    # mmengine writes its config to a file; formatting it as Python code would take minutes.
    return Runner.from_cfg(Config(mm_config.to_dict(), format_python_code=False))


def _test_on_test_dev(mm_config: Config, folder: Path) -> None:
    """Make the test write `test-dev.keypoints.json`, the format of COCO's server, into `folder`."""
    labels, images = data.TEST_DEV
    dataset = mm_config.test_dataloader.dataset
    root = dataset.data_root
    dataset.update(ann_file=labels, data_prefix={"img": f"{images}/"}, bbox_file=root + data.TEST_DEV_BOXES)
    mm_config.test_evaluator.update(ann_file=root + labels, format_only=True, outfile_prefix=str(folder / "test-dev"))
