"""Time of losses, forward + backward, next to cross-entropy and to another way of computing them: `make bench-losses`.

- `SetReLoss` and `ClassificationReLoss` next to cross-entropy, for 256 examples with 1,000 classes.
- Learned losses over expected parts of a metric, for each kind of predictions, next to torch's ordinary loss; and a
  step of ResNet-20 on 256 images of CIFAR-10, for scale.
- The bag of 2-grams of `bon_nat`, for 32 sentences of 24 tokens with 10,000 subwords, next to the same loss that takes
  the probabilities of the whole vocabulary before it picks those of the reference tokens. Needs fairseq.

The losses of a group take turns, so that a slow moment of the machine affects all of them. Times are medians of warm
runs with the device synchronised.

Writes losses.{csv,md} into --out.
"""

from __future__ import annotations

import argparse
import platform
import statistics
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import results_folder
from benchmarks.ranking import seconds
from reloss import ClassificationReLoss, MetricLoss, SetReLoss, build
from reloss.experiment import environment
from reloss.metric_loss.kinds import KINDS, surrogate_of
from reloss.report.table import Table

EXAMPLES, CLASSES = 256, 1000
SENTENCES, TOKENS, SUBWORDS = 32, 24, 10_000
FIELDS = ("inputs", "loss", "ms", "ratio to the first")
Loss = Callable[[Tensor, Tensor], Tensor]


def class_losses(device: str) -> Mapping[str, Loss]:
    """Return the losses of class logits; the first one is what the others are compared with."""
    return {
        "cross-entropy": F.cross_entropy,
        "ClassificationReLoss": ClassificationReLoss().freeze().to(device),
        "SetReLoss": SetReLoss().freeze().to(device),
    }


def kinds(device: str) -> Iterator[tuple[str, Mapping[str, Loss], Tensor, Tensor]]:
    """Yield inputs, losses, outputs and targets for each kind of predictions."""
    generator = torch.Generator().manual_seed(0)

    def draw(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=generator).to(device)

    def list_net(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets / targets.sum(1, keepdim=True))

    bce = F.binary_cross_entropy_with_logits
    cases: list[tuple[str, tuple[int, ...], Loss, Tensor]] = [
        ("binary", (256,), bce, (draw(10, 256) == 0).float()),
        ("classes", (256, 2), F.cross_entropy, draw(2, 256)),
        ("classes", (256, 1000), F.cross_entropy, draw(1000, 256)),
        ("labels", (256, 20), bce, (draw(10, 256, 20) == 0).float()),
        ("masks", (32, 1, 128, 128), bce, (draw(5, 32, 1, 128, 128) == 0).float()),
        ("regression", (256,), F.mse_loss, torch.randn(256, generator=generator).to(device)),
        ("lists", (32, 100), list_net, draw(4, 32, 100).float()),
    ]
    for name, shape, ordinary, targets in cases:
        kind = KINDS[name]
        surrogate = build(surrogate_of(kind, shape[1:]), shape[1:], features="expected").freeze().to(device)
        losses: dict[str, Loss] = {kind.ordinary: ordinary, "learned": MetricLoss(surrogate, kind)}
        yield f"{name} {list(shape)}", losses, torch.randn(shape, generator=generator).to(device), targets


def resnet20(device: str) -> Mapping[str, Loss]:
    """Return one loss of images [256, 3, 32, 32] and classes: a step of ResNet-20 without the optimiser."""
    from reloss_tasks.classification import models

    model = models.build("resnet20", classes=10).to(device)
    return {"ResNet-20 and cross-entropy": lambda images, classes: F.cross_entropy(model(images), classes)}


def bags() -> Mapping[str, Loss]:
    """Return two computations of the same loss: ours, and one that takes all probabilities."""
    from reloss.surrogates.expected.translation import gold_matrix
    from reloss_tasks.nmt.losses import bag_of_ngrams_l1

    def ours(log_probs: Tensor, targets: Tensor) -> Tensor:
        return bag_of_ngrams_l1(log_probs, targets, torch.ones_like(targets, dtype=torch.bool))

    def of_all_probabilities(log_probs: Tensor, targets: Tensor) -> Tensor:
        probs = gold_matrix(log_probs.exp(), targets)
        expected = (probs[:, :-1, :-1] * probs[:, 1:, 1:]).sum(1)  # of each 2-gram of the reference
        grams = targets.unfold(1, 2, 1)
        counts = (grams[:, :, None] == grams[:, None]).all(-1).sum(-1)
        return 1 - (torch.minimum(expected, counts) / counts).mean()

    return {"bag of 2-grams": ours, "bag of 2-grams, all probabilities first": of_all_probabilities}


def measure(inputs: str, losses: Mapping[str, Loss], outputs: Tensor, targets: Tensor, runs: int) -> list[list[Any]]:
    """Return a row of FIELDS for each loss; outputs are where the gradient ends."""
    device = outputs.device.type
    times: dict[str, list[float]] = {name: [] for name in losses}
    for run in range(runs + 1):  # the first one warms up
        for name, loss in losses.items():
            leaf = outputs.clone().requires_grad_()

            def step(loss: Loss = loss, leaf: Tensor = leaf) -> None:
                loss(leaf, targets).backward()

            duration = seconds(step, device)
            if run:
                times[name].append(1e3 * duration)
    medians = {name: statistics.median(values) for name, values in times.items()}
    first = next(iter(medians.values()))
    return [[inputs, name, median, median / first] for name, median in medians.items()]


def measure_all(device: str, runs: int) -> Table:
    """Return the table of all losses."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(EXAMPLES, CLASSES, generator=generator).to(device)
    classes = torch.randint(CLASSES, (EXAMPLES,), generator=generator).to(device)
    log_probs = torch.randn(SENTENCES, TOKENS, SUBWORDS, generator=generator).log_softmax(-1).to(device)
    tokens = torch.randint(SUBWORDS, (SENTENCES, TOKENS), generator=generator).to(device)
    rows = measure(f"logits [{EXAMPLES}, {CLASSES}]", class_losses(device), logits, classes, runs)
    for inputs, losses, outputs, targets in kinds(device):
        rows += measure(inputs, losses, outputs, targets, runs)
    images = torch.randn(EXAMPLES, 3, 32, 32, generator=generator).to(device)
    rows += measure(f"images {list(images.shape)}", resnet20(device), images, classes % 10, max(runs // 5, 1))
    try:
        rows += measure(f"log-probabilities {list(log_probs.shape)}", bags(), log_probs, tokens, runs)
    except ImportError as error:
        print(f"bag of 2-grams skipped: {error}")
    return Table(FIELDS, rows, digits=1)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=results_folder(), help="output folder (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=20, help="number of warm runs (default: %(default)s)")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    table = measure_all(device, arguments.runs)
    print(table.plain())
    commit = environment.commit()  # before the tables change the working tree
    name = torch.cuda.get_device_name() if device == "cuda" else environment.devices()["cpu"]
    machine = (
        f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}"
    )
    lines = [
        "# Losses, forward + backward",
        f"{machine}, commit {commit}, {date.today()}. Command: `make bench-losses`.",
        table.markdown(),
    ]
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "losses.csv").write_text(table.csv() + "\n")
    (arguments.out / "losses.md").write_text("\n\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
