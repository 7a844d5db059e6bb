import math

import pytest
import torch
from accelerate.utils import set_seed
from safetensors.torch import load_file
from small import merged, run_small

from reloss.experiment.metrics_log import read_metrics
from reloss.experiment.records import read_runs
from reloss.experiment.seeds import derive_seed
from reloss.experiment.task import tasks
from reloss_tasks.classification import models

TASK = tasks()["classification"]
ONE_STEP = (
    *("train.epochs=1", "train.batch_size=4", "train.lr=0.01", "train.precision=no"),
    *("data.workers=0", "data.per_class=1"),
)
FOLDER = ("data.format=folder", "data.image_size=32")
RARE = ("data.negatives_per_positive=5", "data.per_class=5", "data.validation_fraction=0")
STEPS = {  # by (digits, rare): steps of 8 and 6 training images in batches of 4, the last dropped; and of 50 and 30
    **{(True, False): 2, (False, False): 1},
    **{(True, True): 12, (False, True): 7},
}
STEPS_OF_TABLE = 12  # of 48 training rows


@pytest.mark.parametrize("name", TASK.experiments)
def test_losses_fit_the_targets(name):
    config = TASK.experiments[name]()
    by_score = {
        "accuracy": {"label_smoothing", "approx", "expected"},
        "average_precision": {"weighted_ce", "focal", "smooth_ap", "approx", "expected"},
        "binary_f1": {"weighted_ce", "soft_f1", "approx", "expected"},
    }
    assert {"ce", "reloss"} | by_score[config.score] == set(config.losses)
    assert (config.score == "accuracy") == (config.data.positive_class is None)


def initial(name, classes, shape):
    set_seed(derive_seed(0, "initialisation") % 2**32)
    return dict(models.build(name, classes, shape).named_parameters())


@pytest.mark.parametrize("name", TASK.experiments)
def test_one_real_training_step(images, tables, tmp_path, name):
    config = TASK.experiments[name]()
    own, table = config.data.format == "sklearn", config.data.format == "tabular"
    rare = config.data.positive_class is not None
    settings = ONE_STEP[:-1] if table else merged(ONE_STEP, () if own else FOLDER, RARE if rare else ())
    record = run_small(name, "ce", settings, data=tables if table else images, runs=tmp_path)
    (summary,) = read_runs(tmp_path)
    assert summary.status == "finished"
    assert all(math.isfinite(value) for value in summary.scores.values())
    (metrics,) = read_metrics(record / "metrics.jsonl")
    assert metrics["step"] == (STEPS_OF_TABLE if table else STEPS[own, rare])
    assert all(math.isfinite(value) for value in metrics.values())
    weights = load_file(record / "checkpoint" / "weights.safetensors")
    assert all(weight.isfinite().all() for weight in weights.values())
    before = initial(config.model.name, 1 if rare else 10 if own else 6, (5,) if table else (1, 8, 8))
    changed = {parameter for parameter, value in before.items() if not torch.equal(weights[parameter], value)}
    matrices = {parameter for parameter, value in before.items() if value.dim() > 1}
    assert matrices <= changed


@pytest.mark.parametrize("loss", ["label_smoothing", "approx", "reloss", "expected"])
def test_every_loss_trains_on_a_folder(images, tmp_path, loss):
    learn = ("learn.steps=2", "learn.items=4", "learn.validation_fraction=0.4", "recording.item_size=2")
    settings = (*ONE_STEP[:-1], *FOLDER, *learn)  # on all 30 images: 14 items in the bank
    name = "classification/cifar10_resnet20"
    record = run_small(name, loss, settings, data=images, runs=tmp_path)
    (metrics,) = read_metrics(record / "metrics.jsonl")
    assert metrics["step"] == 7
    assert all(math.isfinite(value) for value in metrics.values())
