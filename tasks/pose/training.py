"""Training and evaluation by mmengine's runner."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager, redirect_stdout
from math import inf
from pathlib import Path
from urllib.error import URLError

from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner
from mmpose.registry import DATASETS
from torch.utils.data import DataLoader

from reloss.experiment.record import read_weights
from reloss.experiment.task import Run
from reloss.runtime import distributed
from reloss.runtime.checkpoint import latest_intact, no_intact_checkpoint
from reloss.runtime.errors import Unavailable
from reloss.runtime.files import write_text
from reloss_tasks.pose import data
from reloss_tasks.pose.config import Model, PoseExperiment
from reloss_tasks.pose.hooks import RecordHook, network_weights, plain_model
from reloss_tasks.pose.losses import make_loss
from reloss_tasks.pose.mean_pose import score_mean_pose
from reloss_tasks.pose.pictures import draw_persons
from reloss_tasks.pose.precision import train_in_bfloat16
from reloss_tasks.pose.runner import make_runner
from reloss_tasks.pose.scoring import record_names


@contextmanager
def _on_standard_error() -> Iterator[None]:
    """Send what libraries print, such as COCO's evaluation, to standard error. Standard output is for the command."""
    with redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*pkg_resources is deprecated.*")
        warnings.filterwarnings("ignore", ".*should not accept any other arguments")
        warnings.filterwarnings("ignore", ".*MultiScaleDeformableAttention.*")
        yield


@_on_standard_error()
def train(run: Run[PoseExperiment]) -> None:
    """Train `run` to its last epoch, from its last checkpoint if there is one, and write the final weights.

    Raises:
        RelossError: data or pretrained weights are missing, a checkpoint does not fit, or the loss is not finite.
    """
    data.check(run.config.data, run.data)
    runner = make_runner(run, resume=_has_checkpoint(run.record.path, run.record.epochs()))
    model = plain_model(runner)
    model.head.loss_module = make_loss(run)
    if run.config.train.precision == "bf16":
        train_in_bfloat16(model)
    initial_weights = None if run.initial_weights is None else read_weights(run.initial_weights)
    hook = RecordHook(run, _recorded_loader(runner, run.config), initial_weights)
    runner.register_hook(hook)
    with closing(hook), _naming_missing_weights(run.config.model):
        runner.train()
    run.record.save_weights(network_weights(model))
    distributed.barrier()  # every process evaluates the weights that the main process writes


@contextmanager
def _naming_missing_weights(model: Model) -> Iterator[None]:
    """Raise Unavailable if mmengine cannot download the pretrained weights that the config names."""
    try:
        yield
    except URLError as error:
        raise Unavailable(
            f"the pretrained weights of {model.config} cannot be downloaded ({error.reason}): connect to the network "
            "once, or set model.pretrained=false"
        ) from error


@_on_standard_error()
def evaluate(run: Run[PoseExperiment]) -> dict[str, float]:
    """Return the test scores of the weights in the record and, named `validation_*`, the scores on held-out persons.

    With PCK, `mean_pose_PCK` is the score of predicting the mean pose for everybody. With `data.test_dev`, the record
    also receives `test-dev.keypoints.json` for COCO's server.
    """
    runner = _runner_with_weights(run)
    scores = record_names(runner.test())
    test_persons = runner.test_dataloader.dataset
    draw_persons(run, _recorded_loader(runner, run.config), test_persons.metainfo)
    if run.config.score == "PCK":
        train_persons = DATASETS.build(copy.deepcopy(runner.cfg.train_dataloader.dataset))
        scores |= _prefixed("mean_pose", score_mean_pose(train_persons, test_persons, runner.test_evaluator))
    if run.config.data.held_out:
        scores |= _prefixed("validation", runner.val())
    if run.config.data.test_dev:
        _runner_with_weights(run, test_dev=True).test()
    return scores


def _runner_with_weights(run: Run[PoseExperiment], test_dev: bool = False) -> Runner:
    """Return a runner with the final weights; for `test_dev` see `make_runner`."""
    runner = make_runner(run, resume=False, test_dev=test_dev)
    plain_model(runner).load_state_dict(read_weights(run.record.weights))
    return runner


def _prefixed(prefix: str, metrics: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}_{name}": value for name, value in record_names(metrics).items()}


def _has_checkpoint(record: Path, epochs: float = inf) -> bool:
    """Return whether the record has an intact checkpoint of mmengine, and make mmengine resume from the last one.

    Checkpoints of more than `epochs` epochs are skipped, unless there are no others.

    Raises:
        RelossError: there are checkpoints, but all are damaged or unreadable.
    """
    pointer = record / "mmengine" / "last_checkpoint"  # mmengine resumes from the path in this file
    path = Path(pointer.read_text()) if pointer.exists() else None
    if path is None or not path.exists():
        return False
    older = [other for other in path.parent.glob("epoch_*.pth") if _epoch(other) < _epoch(path)]
    newest_first = [path, *sorted(older, key=_epoch, reverse=True)]
    intact = latest_intact([other for other in newest_first if _epoch(other) <= epochs] or newest_first)
    if intact is None:
        raise no_intact_checkpoint(newest_first, f"remove {pointer} to train this run from scratch")
    if intact != path:
        write_text(pointer, str(intact))
    return True


def _epoch(checkpoint: Path) -> int:
    return int(checkpoint.stem.removeprefix("epoch_"))


def _recorded_loader(runner: Runner, config: PoseExperiment) -> DataLoader:
    """Return the first validation persons with target heatmaps: the training pipeline without its randomness."""
    mm_config = copy.deepcopy(runner.cfg)
    loader = mm_config.val_dataloader
    pipeline = [step for step in mm_config.train_dataloader.dataset.pipeline if not step["type"].startswith("Random")]
    count = config.recording.examples
    indices = loader.dataset.get("indices")
    indices = indices[:count] if isinstance(indices, list) else count
    loader.dataset.update(pipeline=pipeline, bbox_file=None, test_mode=True, indices=indices)
    persons = DATASETS.build(loader.dataset)
    persons.full_init()
    return DataLoader(persons, loader.batch_size, collate_fn=pseudo_collate)  # every process loads all of them
