"""Training and evaluation of the toy task in plain PyTorch.

Everything a run must do for the core is here: resume, log, record predictions, write checkpoints and weights.
"""

import torch
from torch import nn

from reloss.experiment.record import read_weights
from reloss.experiment.seeds import derive_seed
from reloss.experiment.task import Run
from reloss_toy import data
from reloss_toy.config import ToyExperiment
from reloss_toy.losses import make_loss
from reloss_toy.scoring import scores


def train(run: Run[ToyExperiment]) -> None:
    """Train `run` to its last epoch, from its last checkpoint if there is one, and write the final weights."""
    config, recipe = run.config, run.config.train
    inputs, targets = data.load(config.data, config.model.classes, "train")
    torch.manual_seed(derive_seed(run.seed, "initialisation"))
    model = nn.Linear(2, config.model.classes)
    if run.initial_weights is not None:  # train.init=baseline
        model.load_state_dict(read_weights(run.initial_weights))
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.lr)
    loss_function = make_loss(run)
    epoch, step = _resume(run, model, optimizer)
    while epoch < recipe.epochs:
        order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(derive_seed(run.seed, epoch)))
        for batch in order.split(recipe.batch_size):
            outputs = model(inputs[batch])
            loss = loss_function(outputs, targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if run.bank is not None:  # only the recorded baseline has one
                run.bank.append(outputs, targets[batch], step)
            step += 1
        epoch += 1
        _end_epoch(run, model, optimizer, epoch, step)
    run.record.save_weights(model.state_dict())


def evaluate(run: Run[ToyExperiment]) -> dict[str, float]:
    """Return the scores of the final weights on the test points."""
    model = nn.Linear(2, run.config.model.classes)
    model.load_state_dict(read_weights(run.record.weights))
    return _score(run, model, "test")


def _resume(run: Run[ToyExperiment], model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, int]:
    """Load the last checkpoint if there is one. Returns the epoch and the step to continue with."""
    checkpoint = run.record.load_checkpoint()
    if checkpoint is not None:
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
    epoch, step = (checkpoint["epoch"], checkpoint["step"]) if checkpoint is not None else (0, 0)
    if run.bank is not None:
        run.bank.resume(step)  # drops what was recorded after the checkpoint
    return epoch, step


def _end_epoch(
    run: Run[ToyExperiment], model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int, step: int
) -> None:
    """Log the validation score, keep predictions for the diagnostics, and write a checkpoint."""
    points = data.load(run.config.data, run.config.model.classes, "validation")
    with torch.inference_mode():
        outputs = model(points.inputs)
    kept = run.config.recording.examples
    run.record.save_predictions(epoch, outputs[:kept], points.targets[:kept])
    run.record.log(step, epoch=epoch, validation_accuracy=scores(outputs, points.targets)["accuracy"])
    run.flush_bank()
    state = {"epoch": epoch, "step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    run.record.save_checkpoint(state)


@torch.inference_mode()
def _score(run: Run[ToyExperiment], model: nn.Module, split: str) -> dict[str, float]:
    points = data.load(run.config.data, run.config.model.classes, split)
    return scores(model(points.inputs), points.targets)
