"""Fit the losses of the zoo that are not for two classes: `python -m tools.fit_zoo_kinds --data DATA`.

The same plan as `tools.fit_zoo`: record small networks that learn with the ordinary loss, fit on each half of the sets
and on all, measure what was fitted on one half on the other, and train on unseen sets: with the ordinary loss, with the
zoo's, with both, and with the expected metric added. Each learning rate is chosen on validation rows. The sets are in
`tools.zoo_sets`. A loss that transfers is written into the package; the figures of all go to the committed records.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from reloss.learning import PredictionBank, fit_surrogate
from reloss.learning.fit import calibration
from reloss.learning.items import Items
from reloss.metric_loss import zoo
from reloss.metric_loss.kinds import KINDS
from reloss.metrics import MASKED, get_metric
from reloss.ranking import spearman
from reloss.runtime.files import write_json
from reloss.runtime.progress import say
from reloss.surrogates import SurrogateLoss, build
from reloss.surrogates.expected.base import ExpectedLoss
from reloss.surrogates.registry import EXPECTED_KINDS
from tools.field_records import KIND_CORRELATIONS, KindResults
from tools.fit_zoo import advice, rounded, transfers
from tools.zoo_sets import HALVES, ZooSet, load, sklearn_set, split

RATES, STEPS = (0.003, 0.01, 0.03), 200
SEEDS = {"classes": 2, "regression": 2, "lists": 2, "masks": 1}  # random splits of each set
SNAPSHOTS, ITEMS = 12, 8  # of each recorded training, and items of a snapshot
WIDTH, CHANNELS, MOST_CLASSES = 32, 8, 8
BATCHES = {"classes": 64, "regression": 64, "lists": 16, "masks": 8}  # also the examples of an item
MIXTURES = {"classes": {"recorded": 1, "noisy": 1, "tempered": 1}}  # moving a threshold would use padded classes
FIT: dict[str, Any] = {"steps": 150, "items": 64, "patience": 5}


class Other(NamedTuple):
    """A loss of the zoo for another kind than two classes.

    Attributes:
        metric: a key of `reloss.metrics.METRICS`.
        kind: kind of predictions.
        use: when to use it.
        outputs: classes of masks; 1 for a foreground. Tables have their own number of classes.
    """

    metric: str
    kind: str
    use: str
    outputs: int = 1

    @property
    def surrogate(self) -> type[ExpectedLoss]:
        """The class of the loss."""
        return EXPECTED_KINDS[KINDS[self.kind].surrogate]

    @property
    def sets(self) -> list[str]:
        """The names of all sets."""
        return [name for half in HALVES[self.kind] for name in half]


OTHERS: Mapping[str, Other] = {
    "macro_f1": Other("macro_f1", "classes", "several classes, rare ones as important as frequent ones"),
    "dice": Other("dice", "masks", "a foreground, small objects as important as large ones"),
    "mean_iou": Other("mean_iou", "masks", "pixels of several classes, rare ones as important as frequent ones", 4),
    "ndcg_at_10": Other("list_ndcg10", "lists", "ranked lists, if people see the first ten places only"),
    "concordance": Other("concordance", "regression", "numbers that must agree; standardise the targets"),
}
Batches = tuple[Tensor, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
"""Outputs [B, ...] and targets [B, ...] of a batch -> a scalar."""


def network(kind: str, data: ZooSet, seed: int) -> nn.Module:
    """Return a small network: convolutions for images, else two hidden layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "masks":
            first, second = (
                nn.Conv2d(1, CHANNELS, 3, padding=1),
                nn.Conv2d(CHANNELS, CHANNELS, 3, padding=2, dilation=2),
            )
            return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Conv2d(CHANNELS, data.outputs, 3, padding=1))
        sizes = (data.inputs.shape[-1], WIDTH, WIDTH)
        layers = [part for f, g in pairwise(sizes) for part in (nn.Linear(f, g), nn.ReLU())]
        last = [] if kind == "classes" else [nn.Flatten(-2)]
        return nn.Sequential(*layers, nn.Linear(WIDTH, data.outputs), *last)


def train(
    kind: str,
    data: ZooSet,
    rows: Tensor,
    loss: Loss,
    rate: float,
    seed: int,
    observe: Callable[[int, nn.Module], None] = lambda number, model: None,
) -> nn.Module:
    """Return a network trained on some rows with Adam, whose rate falls to 0 along a cosine.

    `observe` is called before each step with its number and the network.
    """
    model = network(kind, data, seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    generator = torch.Generator().manual_seed(seed)
    for number in range(STEPS):
        observe(number, model)
        chosen = rows[torch.randint(len(rows), (BATCHES[kind],), generator=generator)]
        optimizer.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * number / STEPS))
        optimizer.zero_grad()
        loss(model(data.inputs[chosen]), data.targets[chosen]).backward()
        optimizer.step()
    return model


def of_batch(surrogate: SurrogateLoss) -> Loss:
    """Return a loss of items as the loss of one batch."""
    return lambda outputs, targets: surrogate.per_item(outputs[None], targets[None])[0]


def ordinary(other: Other) -> Loss:
    """Return the ordinary loss of a batch."""
    return lambda outputs, targets: other.surrogate.ordinary_loss(outputs[None], targets[None])[0]


class Recording(NamedTuple):
    """Items from early to late: outputs [M, N, B, ...], targets [M, N, B, ...] and times [M], between 0 and 1."""

    outputs: Tensor
    targets: Tensor
    times: Tensor

    def items(self) -> Batches:
        """Return all items: [M * N, B, ...]."""
        return self.outputs.flatten(0, 1), self.targets.flatten(0, 1)


def record(other: Other, data: ZooSet, rates: Sequence[float] = RATES, seed: int = 0) -> Recording:
    """Train with the ordinary loss and return outputs of random rows, also of some that were not trained on."""
    generator = torch.Generator().manual_seed(seed)
    rows = split(data, seed)
    pool = torch.cat(rows[:2])
    size = BATCHES[other.kind]
    snapshots: list[tuple[float, Tensor, Tensor]] = []
    for rate in rates:
        moments = (torch.rand(SNAPSHOTS, generator=generator) * STEPS).long().tolist()

        def observe(number: int, model: nn.Module, moments: Sequence[int] = moments) -> None:
            for _ in range(moments.count(number)):
                chosen = pool[torch.randint(len(pool), (ITEMS * size,), generator=generator)]
                with torch.no_grad():
                    outputs = model(data.inputs[chosen]).unflatten(0, (ITEMS, size))
                snapshots.append((number / STEPS, outputs, data.targets[chosen].unflatten(0, (ITEMS, size))))

        train(other.kind, data, rows.training, ordinary(other), rate, seed, observe)
    times, outputs, targets = zip(*sorted(snapshots, key=lambda part: part[0]), strict=True)
    return Recording(torch.stack(outputs), torch.stack(targets), torch.tensor(times))


def fit(name: str, recordings: Sequence[Recording], seed: int = 0) -> ExpectedLoss:
    """Return a loss fitted on the recordings of some sets, in the order of time."""
    other = OTHERS[name]
    moments = [
        (float(time), which, row) for which, part in enumerate(recordings) for row, time in enumerate(part.times)
    ]
    with tempfile.TemporaryDirectory(prefix="reloss-zoo-") as folder, torch.random.fork_rng(devices=[]):
        full = KINDS[other.kind].full_precision
        bank = PredictionBank.create(
            Path(folder) / "bank", item_size=BATCHES[other.kind], seed=seed, full_precision=full
        )
        for time, which, row in sorted(moments):
            outputs, targets = (part[row].flatten(0, 1) for part in recordings[which][:2])
            if other.kind == "classes":
                outputs = nn.functional.pad(outputs, (0, MOST_CLASSES - outputs.shape[1]), value=MASKED)
            bank.append(outputs, targets, int(1e6 * time))
        bank.finish()
        torch.manual_seed(seed)
        surrogate = build(KINDS[other.kind].surrogate, recordings[0].outputs.shape[3:], features="expected")
        mixture = MIXTURES.get(other.kind, dict(KINDS[other.kind].mixture))
        result = fit_surrogate(surrogate, bank, other.metric, quiet=True, seed=seed, mixture=mixture, **FIT)
    assert isinstance(result.surrogate, ExpectedLoss)
    say(f"fitted {name}: Spearman {result.spearman:.3f}, ordinary {result.spearman_ordinary:.3f}")
    return result.surrogate


def formula(name: str, recording: Recording) -> ExpectedLoss:
    """Return the expected metric, with the ordinary loss's size of the gradient on a recording."""
    surrogate = OTHERS[name].surrogate(metric=OTHERS[name].metric)
    surrogate.scale *= calibration(surrogate, Items(*recording.items()))
    return surrogate


@torch.no_grad()
def correlation(name: str, loss: Callable[[Tensor, Tensor], Tensor], recording: Recording) -> float:
    """Return Spearman's correlation of minus the losses of items with the metric; 0 if the metric is constant."""
    outputs, targets = recording.items()
    metric = get_metric(OTHERS[name].metric)(outputs, targets)
    return 0.0 if (metric == metric[0]).all() else float(spearman(-loss(outputs, targets), metric))


class Study:
    """A loss with its sets: what was recorded, and what was fitted on each half and on all.

    Args:
        name: a key of OTHERS.
        data: data folder.
    """

    def __init__(self, name: str, data: Path) -> None:
        self.name, self.other = name, OTHERS[name]
        self.sets = {which: load(self.other.kind, which, self.other.outputs, data) for which in self.other.sets}
        self.recordings = {which: record(self.other, part) for which, part in self.sets.items()}
        halves = HALVES[self.other.kind]
        fitted = [fit(name, [self.recordings[which] for which in half]) for half in halves]
        self.unseen = {which: fitted[1 - number] for number, half in enumerate(halves) for which in half}
        self.published = fit(name, list(self.recordings.values()))

    def ranks(self) -> dict[str, Any]:
        """Return how the losses rank unseen sets: the zoo's, the ordinary one and the expected metric."""

        def by_set(losses: Mapping[str, Callable[[Tensor, Tensor], Tensor]]) -> dict[str, float]:
            return {which: correlation(self.name, losses[which], part) for which, part in self.recordings.items()}

        ours = by_set({which: loss.per_item for which, loss in self.unseen.items()})
        expected = by_set({which: formula(self.name, part).per_item for which, part in self.recordings.items()})
        usual = by_set(dict.fromkeys(self.sets, self.other.surrogate.ordinary_loss))
        means = {"unseen": ours, "ordinary": usual, "expected": expected}
        return {key: float(np.mean(list(values.values()))) for key, values in means.items()} | {"sets": ours}

    def methods(self, which: str) -> Iterator[tuple[str, Loss]]:
        """Yield the losses that are compared on an unseen set, by the names of `tools.field_records`."""
        usual, ready = ordinary(self.other), of_batch(self.unseen[which])
        expected = of_batch(formula(self.name, self.recordings[which]))
        label = KINDS[self.other.kind].ordinary
        yield label, usual
        yield "zoo", ready
        yield f"zoo + {label}", lambda outputs, targets: usual(outputs, targets) + ready(outputs, targets)
        yield f"expected + {label}", lambda outputs, targets: usual(outputs, targets) + expected(outputs, targets)

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield the results of training: a line for each set and method."""
        for which, data in self.sets.items():
            for method, loss in self.methods(which):
                yield {"loss": self.name, "set": which, "method": method, **self.scores(data, loss)}
            say(f"{self.name}: trained on {which}")

    def scores(self, data: ZooSet, loss: Loss) -> dict[str, Any]:
        """Return the rate with the best mean on validation rows, and its score on the test rows of each seed."""
        metric = get_metric(self.other.metric)
        shape = (len(RATES), SEEDS[self.other.kind])
        validation, test = np.zeros(shape), np.zeros(shape)
        for seed in range(SEEDS[self.other.kind]):
            rows = split(data, seed)
            for number, rate in enumerate(RATES):
                model = train(self.other.kind, data, rows.training, loss, rate, seed)
                for table, part in ((validation, rows.validation), (test, rows.test)):
                    with torch.no_grad():
                        table[number, seed] = metric(model(data.inputs[part])[None], data.targets[part][None])
        best = int(validation.mean(1).argmax())
        return {"rate": RATES[best], "test": [round(float(score), 4) for score in test[best]]}


TERMS = (
    "The KEEL repository publishes the tables; they come from the UCI Machine Learning Repository, whose page of each "
    "set states its terms. All other sets are made. The loss holds no data, only the weights of a network."
)
TERMS_OF_MASKS = "All sets are made: images of one shape each, in noise. The loss holds only the weights of a network."


def checked(name: str, loss: ExpectedLoss) -> dict[str, Any]:
    """Return how a loss ranks the set of scikit-learn of its kind, which no loss is fitted on."""
    other = OTHERS[name]
    recording = record(other, sklearn_set(other.kind, other.outputs), RATES[1:2])
    figures = {"spearman": loss.per_item, "ordinary": other.surrogate.ordinary_loss}
    label = {"classes": "digits", "masks": "strokes_of_digits", "regression": "diabetes", "lists": "diabetes_lists"}
    return {label[other.kind]: {key: correlation(name, part, recording) for key, part in figures.items()}}


def card_of(name: str, ranks: Mapping[str, Any], training: Mapping[str, Any], loss: ExpectedLoss) -> dict[str, Any]:
    """Return the card of a loss, without its options."""
    other = OTHERS[name]
    return rounded(
        {
            "name": name,
            "metric": other.metric,
            "kind": other.kind,
            "surrogate": KINDS[other.kind].surrogate,
            "ordinary": KINDS[other.kind].ordinary,
            "use": other.use,
            "sets": other.sets,
            "terms": TERMS_OF_MASKS if other.kind == "masks" else TERMS,
            "spearman": {**ranks, "sizes": {str(BATCHES[other.kind]): ranks["unseen"]}},
            "training": dict(training),
            "checked": checked(name, loss),
            "fit_your_own": advice(training, str(BATCHES[other.kind])),
        }
    )


def main() -> None:
    """Fit, measure and publish the losses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(OTHERS), help="losses to fit (default: all)")
    parser.add_argument("--data", type=Path, default=Path("data"), help="data folder (default: %(default)s)")
    parser.add_argument("--ranks-only", action="store_true", help="only measure how losses rank, without training")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    figures = json.loads(KIND_CORRELATIONS.read_text(encoding="utf-8")) if KIND_CORRELATIONS.exists() else {}
    for name in arguments.names:
        study = Study(name, arguments.data)
        figures[name] = study.ranks()
        say(f"{name}: unseen sets {figures[name]}")
        if arguments.ranks_only:
            write_json(KIND_CORRELATIONS, rounded(figures))
            continue
        results = KindResults()
        results.replace(name, study.lines())
        training = results.facts(name, KINDS[study.other.kind].ordinary)
        write_json(KIND_CORRELATIONS, rounded(figures))
        path = zoo.FOLDER / f"{name}{zoo.SUFFIX}"
        if not transfers(figures[name], training, KINDS[study.other.kind].ordinary):
            say(f"{name} does not transfer: not published")
            path.unlink(missing_ok=True)
            continue
        zoo.write_file(path, study.published, card_of(name, figures[name], training, study.published))
        say(f"{name}: {path}")


if __name__ == "__main__":
    main()
