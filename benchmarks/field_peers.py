"""Losses of other libraries for `benchmarks.field`, with the optimisers and samplers that the libraries recommend.

- LibAUC 2.0.1: AUCMLoss (version v2) with PESG, APLoss with SOAP, pAUCLoss (one-way) with SOPAs; batches from
  DualSampler, in which positives are somewhat more frequent than in the data; margins and decays as in its examples;
  the rate falls to a tenth after half and after three quarters of the epochs.
- imbalanced-losses 0.6: SmoothAPLoss and PAUCAtBudgetLoss with a budget of 10 %, after a warm-up with cross-entropy
  (LossWarmupWrapper); SGD as in the rest of the comparison.

Both are imported only when they are used, and are no part of the installation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tools.tabular_runs import BATCH, EPOCHS, MOMENTUM, RATES, WEIGHT_DECAY, Folds, Networks

SHARE = 0.2  # of positives in a batch, at least; DualSampler's documentation recommends a little more than in the data
Step = Callable[[Tensor, Tensor, Tensor], None]
"""Features [B, F], targets [B] and the numbers of the rows among the training rows [B]; takes one step."""

Training = tuple[Step, Callable[[int], None]]
"""How to take a step, and what to call after each epoch with the number of epochs."""

Prepare = Callable[[nn.Module, int, float, int], Training]
"""Model, number of training rows, learning rate and number of steps -> how to train."""


@dataclass(frozen=True)
class Peer:
    """A way to train: a function that returns how to take a step, and the learning rates to try.

    Attributes:
        prepare: how to train.
        rates: learning rates.
        balanced: whether batches come from LibAUC's DualSampler.
    """

    prepare: Prepare
    rates: tuple[float, ...]
    balanced: bool


def _libauc(loss: Any, optimizer: Any, model: nn.Module, indexed: bool) -> Training:
    def step(features: Tensor, targets: Tensor, index: Tensor) -> None:
        scores = model(features).sigmoid()
        value = loss(scores, targets[:, None], index) if indexed else loss(scores, targets[:, None])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    def after(epoch: int) -> None:
        if epoch in (EPOCHS // 2, EPOCHS * 3 // 4):
            update = getattr(optimizer, "update_regularizer", None) if not indexed else None
            (update or optimizer.update_lr)(decay_factor=10)

    return step, after


def aucm(model: nn.Module, rows: int, rate: float, steps: int) -> Training:
    """Return the step of LibAUC's AUC margin loss."""
    from libauc.losses import AUCMLoss
    from libauc.optimizers import PESG

    loss = AUCMLoss(version="v2", device="cpu")
    options = {"momentum": 0.9, "epoch_decay": 2e-3, "weight_decay": 1e-4, "device": "cpu", "verbose": False}
    optimizer = PESG(model.parameters(), loss_fn=loss, lr=rate, **options)
    return _libauc(loss, optimizer, model, indexed=False)


def libauc_ap(model: nn.Module, rows: int, rate: float, steps: int) -> Training:
    """Return the step of LibAUC's average precision loss."""
    from libauc.losses import APLoss
    from libauc.optimizers import SOAP

    optimizer = SOAP(model.parameters(), lr=rate, mode="adam", weight_decay=1e-4, device="cpu", verbose=False)
    return _libauc(APLoss(data_len=rows, margin=1.0, gamma=0.9, device="cpu"), optimizer, model, indexed=True)


def libauc_pauc(model: nn.Module, rows: int, rate: float, steps: int) -> Training:
    """Return the step of LibAUC's one-way partial AUC loss."""
    from libauc.losses import pAUCLoss
    from libauc.optimizers import SOPAs

    optimizer = SOPAs(model.parameters(), lr=rate, mode="adam", weight_decay=1e-4, device="cpu", verbose=False)
    return _libauc(pAUCLoss("1w", data_len=rows, margin=1.0, gamma=0.9, device="cpu"), optimizer, model, indexed=True)


def _imbalanced(name: str, options: dict[str, Any]) -> Prepare:
    def prepare(model: nn.Module, rows: int, rate: float, steps: int) -> Training:
        import imbalanced_losses

        main = getattr(imbalanced_losses, name)(num_classes=1, queue_size=1024, **options)
        bce = nn.BCEWithLogitsLoss()
        loss = imbalanced_losses.LossWarmupWrapper(
            warmup_loss=lambda scores, targets: bce(scores[:, 0], targets.float()),
            main_loss=main,
            warmup_epochs=EPOCHS // 4,
            blend_epochs=2,
            temp_start=0.5,
            temp_end=0.01 if name == "SmoothAPLoss" else 0.1,
            temp_decay_steps=steps,
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        taken = [0]
        loss.on_train_epoch_start(0)

        def step(features: Tensor, targets: Tensor, index: Tensor) -> None:
            loss.on_train_batch_start(taken[0])
            optimizer.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * taken[0] / steps))
            taken[0] += 1
            value = loss(model(features), targets)
            optimizer.zero_grad()
            if value.requires_grad:
                value.backward()
                optimizer.step()

        return step, loss.on_train_epoch_start

    return prepare


ADAM_RATES = (1e-3, 1e-2, 3e-2)
PEERS = {
    "LibAUC AUCM": Peer(aucm, (0.03, 0.1, 0.5), balanced=True),
    "LibAUC AP": Peer(libauc_ap, ADAM_RATES, balanced=True),
    "LibAUC partial AUC": Peer(libauc_pauc, ADAM_RATES, balanced=True),
    "imbalanced-losses AP": Peer(_imbalanced("SmoothAPLoss", {}), RATES, balanced=False),
    "imbalanced-losses partial AUC": Peer(
        _imbalanced("PAUCAtBudgetLoss", {"alpha": 0.0, "beta": 0.1, "surrogate": "pairwise"}), RATES, balanced=False
    ),
}


def train(folds: Folds, peer: Peer, seed: int) -> Tensor:
    """Return the scores of all rows [K, L, E] of a network trained for each split and rate."""
    splits, rates = range(len(folds.training)), peer.rates
    return torch.stack(
        [torch.stack([_train_one(folds, split, peer, rate, seed)[0] for rate in rates]) for split in splits]
    )


def steps(peer: Peer, folds: Folds, seed: int) -> int:
    """Train one network and return the number of steps."""
    return _train_one(folds, 0, peer, peer.rates[1], seed)[1]


def _train_one(folds: Folds, split: int, peer: Peer, rate: float, seed: int) -> tuple[Tensor, int]:
    """Return the scores of all rows [E], and the number of steps."""
    features, rows = folds.features[split], folds.training[split]
    torch.manual_seed(seed)
    model = _network(features.shape[1], len(folds.training), split, seed)
    targets = folds.targets[rows]
    per_epoch = len(rows) // BATCH
    step, after = peer.prepare(model, len(rows), rate, EPOCHS * per_epoch)
    taken = 0
    for epoch in range(EPOCHS):
        for index in _batches(targets, peer.balanced, seed + epoch, per_epoch):
            step(features[rows[index]], targets[index], index)
            taken += 1
        after(epoch + 1)
    with torch.no_grad():
        return model(features)[:, 0], taken


def _batches(targets: Tensor, balanced: bool, seed: int, count: int) -> Iterable[Tensor]:
    """Return the numbers of the rows of each batch of an epoch, the same number of batches for every peer."""
    if not balanced:
        order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))
        return order[: count * BATCH].split(BATCH)
    from libauc.sampler import DualSampler

    share = max(SHARE, min(1.5 * float(targets.float().mean()), 0.5))
    sampler = DualSampler(None, BATCH, labels=targets.numpy(), sampling_rate=share, random_seed=seed)
    return torch.from_numpy(np.array(list(sampler))).split(BATCH)


def _network(columns: int, splits: int, split: int, seed: int) -> nn.Module:
    """Return the network of a split, with the same initial weights as in the rest of the comparison."""
    stack = Networks(columns, splits, RATES[:1], seed).weights
    layers: list[nn.Module] = []
    for weight, bias in zip(stack[::2], stack[1::2], strict=True):
        layer = nn.Linear(weight.shape[1], weight.shape[2])
        with torch.no_grad():
            layer.weight.copy_(weight[split].T)
            layer.bias.copy_(bias[split, 0])
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])
