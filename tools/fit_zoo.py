"""Fit the losses of the zoo: `python -m tools.fit_zoo --data DATA`, some minutes on one core.

1. Record: networks are trained with cross-entropy on each KEEL set, and their scores are recorded, early to late.
2. Fit each loss three times: on each half of the sets, and on all. What was fitted on one half is measured on the
   other, so each set is unseen once. What was fitted on all is published.
3. Write the losses of halves into --work, for `benchmarks.field`, which trains with them on unseen sets.
4. Write the published losses with their cards into the package: those that transfer, by `transfers`.

Everything follows from --seed. Recordings and fits that --work holds already are not repeated.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from reloss.learning import FitResult, PredictionBank, fit_surrogate
from reloss.learning.fit import calibration
from reloss.learning.items import Items
from reloss.metric_loss import zoo
from reloss.metric_loss.kinds import KINDS
from reloss.metrics import Metric, get_metric
from reloss.ranking import spearman
from reloss.runtime.files import write_json
from reloss.runtime.progress import say
from reloss.surrogates import SurrogateLoss, build
from reloss.surrogates.expected.base import ExpectedLoss
from reloss.surrogates.options import kind_for
from reloss.surrogates.registry import EXPECTED_KINDS
from tools.field_records import CORRELATIONS, COST, LINES, ORDINARY, OWN, Results, training_facts
from tools.tabular_runs import GROUPS, RATES, SETS, Folds, Networks, group_of, load_keel, load_sklearn, train

ROWS, SNAPSHOTS, ITEM = 512, 64, 128  # a snapshot holds the scores of ROWS rows, and is divided into items
SIZES = (32, 128, 512)  # items that a loss is measured on
FIT: dict[str, Any] = {"steps": 150, "items": 64, "patience": 5, "mixture": dict(KINDS["binary"].mixture)}
LONGER: dict[str, Any] = {"steps": 600, "patience": None}  # for the cost, whose fit is not done after 150 steps


def ten_misses(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return minus the cost per example if a miss costs ten false alarms: outputs [N, B], targets [N, B] -> [N]."""
    predicted, positive = outputs > 0, targets == 1
    return -(10 * (~predicted & positive).float() + (predicted & ~positive).float()).mean(-1)


LOSSES: dict[str, tuple[str, str]] = {
    "f1": ("binary_f1", "a rare class; precision and recall are equally important, and the threshold stays at 1/2"),
    "f2": ("binary_f2", "a rare class, and a miss is worse than a false alarm"),
    "mcc": ("mcc", "both classes matter, and one of them is rare"),
    "balanced_accuracy": (
        "binary_balanced_accuracy",
        "both classes are equally important, however rare one is",
    ),
    "kappa": ("binary_kappa", "agreement with a human rater, beyond chance"),
    "average_precision": ("average_precision", "the order of scores matters, above all at the top"),
    "auroc": ("auroc", "the order of all scores is important, not only that of the highest"),
    "partial_auroc": ("partial_auroc", "few false alarms are allowed, at most 10 % of the negatives"),
    "precision_at_10": ("precision_at_10", "ten examples of a batch are looked at, and should be positive"),
    "recall_at_10": ("recall_at_10", "ten examples of a batch are looked at, and no positive should be missed"),
}
"""Losses for binary scores: the metric, and when to use it."""


def metric_of(name: str) -> Metric:
    """Return the metric of a loss in LOSSES, or of COST."""
    return ten_misses if name == COST else get_metric(LOSSES[name][0])


def formula(name: str, recording: Snapshots) -> ExpectedLoss | None:
    """Return the expected metric of a loss, without learning; None if it has no formula.

    Its gradient has the mean size of the cross-entropy's on the recording, as the gradient of a fitted loss has.
    """
    metric = "" if name == COST else LOSSES[name][0]
    kind = kind_for("set", metric)
    if metric not in EXPECTED_KINDS[kind].EXPECTED:
        return None
    surrogate = EXPECTED_KINDS[kind](metric=metric)
    surrogate.scale *= calibration(surrogate, Items(*recording.items(ITEM)))
    return surrogate


@dataclass(frozen=True)
class Snapshots:
    """Scores [M, ROWS] of M networks at random steps, early to late, their targets [M, ROWS] and their times [M]."""

    scores: Tensor
    targets: Tensor
    times: Tensor

    def items(self, size: int) -> tuple[Tensor, Tensor]:
        """Return outputs and targets as items [N, size]; examples that do not fill an item are dropped."""
        rows = self.scores.shape[1] // size * size
        return self.scores[:, :rows].reshape(-1, size), self.targets[:, :rows].reshape(-1, size)


def cross_entropy(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the binary cross-entropy of each network: scores [R, B], targets [R, B] -> [R]."""
    return F.binary_cross_entropy_with_logits(scores, targets.float(), reduction="none").mean(-1)


def record(folds: Folds, seed: int, snapshots: int = SNAPSHOTS, rates: Sequence[float] = RATES) -> Snapshots:
    """Train with cross-entropy and return the recorded scores.

    A snapshot is one network's scores of random rows outside the test fold: most of them it learns from, some are held
    out, since a network can learn its rows by heart.
    """
    generator = torch.Generator().manual_seed(seed)
    moments = torch.rand(snapshots, generator=generator).sort().values
    parts = zip(folds.training, folds.validation, strict=True)
    rows = [torch.cat((training, held_out)) for training, held_out in parts]
    size = min(ROWS, min(map(len, rows)))
    scores: list[Tensor] = []
    targets: list[Tensor] = []

    def observe(number: int, steps: int, _scores: Tensor, _targets: Tensor, networks: Networks) -> None:
        while len(scores) < snapshots and moments[len(scores)] * steps <= number:
            network = int(torch.randint(len(networks.rates), (), generator=generator))
            split = network // len(rates)
            chosen = rows[split][torch.randperm(len(rows[split]), generator=generator)[:size]]
            with torch.no_grad():
                scores.append(networks(folds.features[:, chosen])[network])
            targets.append(folds.targets[chosen])

    train(folds, cross_entropy, rates, seed, observe=observe)
    return Snapshots(torch.stack(scores), torch.stack(targets), moments[: len(scores)])


def fit(name: str, recordings: Sequence[Snapshots], seed: int = 0, **options: Any) -> FitResult:
    """Return the fit of a loss on the recordings of one or more sets, in the order of time; `options` change FIT."""
    kind = kind_for("set", "" if name == COST else LOSSES[name][0])
    with tempfile.TemporaryDirectory(prefix="reloss-zoo-") as folder, torch.random.fork_rng(devices=[]):
        bank = PredictionBank.create(Path(folder) / "bank", item_size=ITEM, seed=seed)
        moments = [
            (float(time), which, row) for which, part in enumerate(recordings) for row, time in enumerate(part.times)
        ]
        for time, which, row in sorted(moments):
            part = recordings[which]
            count = part.scores.shape[1] // ITEM * ITEM
            bank.append(part.scores[row, :count], part.targets[row, :count], int(1e6 * time))
        bank.finish()
        torch.manual_seed(seed)
        surrogate = build(kind, (), features="expected")
        return fit_surrogate(surrogate, bank, metric_of(name), quiet=True, seed=seed, **{**FIT, **options})


@torch.no_grad()
def correlation(loss: SurrogateLoss | None, name: str, recording: Snapshots, size: int = ITEM) -> float | None:
    """Return Spearman's correlation of minus a loss with the metric, on the recorded items of a set.

    Args:
        loss: the loss; None for cross-entropy.
        name: a name in LOSSES, or COST.
        recording: the set.
        size: examples of an item.

    Returns:
        The correlation; None if all items have the same metric.
    """
    outputs, targets = recording.items(size)
    metric = metric_of(name)(outputs, targets)
    if (metric == metric[0]).all():
        return None
    losses = cross_entropy(outputs, targets) if loss is None else loss.per_item(outputs, targets)
    return float(spearman(-losses, metric))


def mean_correlation(
    losses: Mapping[str, SurrogateLoss | None], name: str, recordings: Mapping[str, Snapshots], size: int = ITEM
) -> float:
    """Return the mean over the sets of `correlation`, where `losses` holds the loss for each set."""
    values = [correlation(losses[which], name, recording, size) for which, recording in recordings.items()]
    return float(np.mean([value for value in values if value is not None]))


def record_all(data: Path, work: Path, seed: int) -> dict[str, Snapshots]:
    """Return the recordings of all sets, from `work` where it holds them."""
    recordings = {}
    for name in SETS:
        path = work / f"recording-{name}-{seed}.pt"
        if not path.exists():
            work.mkdir(parents=True, exist_ok=True)
            torch.save(vars(record(load_keel(name, data), seed)), path)
            say(f"recorded {name}")
        recordings[name] = Snapshots(**torch.load(path, weights_only=True))
    return recordings


def fitted(
    name: str, part: str, recordings: Mapping[str, Snapshots], work: Path, seed: int, longer: bool = False
) -> ExpectedLoss:
    """Return a fitted loss, from `work` if it holds it.

    Args:
        name: a name in LOSSES, or COST.
        part: "0" or "1" for a half of the sets, "all", or the name of a set.
        recordings: by set.
        work: folder of what was fitted.
        seed: seed of the fit.
        longer: whether to fit with LONGER.
    """
    path = work / f"{name}-{part}-{seed}{'-longer' if longer else ''}"
    if not path.exists():
        halves = {str(number): group for number, group in enumerate(GROUPS)}
        names = SETS if part == "all" else halves.get(part, (part,))
        result = fit(name, [recordings[which] for which in names], seed, **(LONGER if longer else {}))
        result.surrogate.save_pretrained(path, {"fit": result.summary()})
        say(f"fitted {name} on {part}: Spearman {result.spearman:.3f}, cross-entropy {result.spearman_ordinary:.3f}")
    return EXPECTED_KINDS[kind_for("set", "" if name == COST else LOSSES[name][0])].from_pretrained(path)


def measure(
    name: str, recordings: Mapping[str, Snapshots], work: Path, seed: int, longer: bool = False
) -> dict[str, Any]:
    """Return how a loss ranks sets that it was not fitted on, next to cross-entropy and the expected metric."""
    halves = [fitted(name, str(number), recordings, work, seed, longer) for number in range(len(GROUPS))]
    unseen: dict[str, SurrogateLoss | None] = {which: halves[1 - group_of(which)] for which in SETS}
    expected = formula(name, next(iter(recordings.values())))
    figures: dict[str, Any] = {
        "unseen": mean_correlation(unseen, name, recordings),
        "ordinary": mean_correlation(dict.fromkeys(SETS), name, recordings),
        "expected": None if expected is None else mean_correlation(dict.fromkeys(SETS, expected), name, recordings),
        "sizes": {str(size): mean_correlation(unseen, name, recordings, size) for size in SIZES},
        "sets": {which: correlation(unseen[which], name, recordings[which]) for which in SETS},
    }
    return figures


CHECKED = ("breast_cancer", "digit_eight")
"""Sets of scikit-learn that every loss of the zoo is measured on, also by the tests."""

TERMS = (
    "The KEEL repository publishes these sets; they come from the UCI Machine Learning Repository, whose page of each "
    "set states its terms. The loss holds no data, only the weights of a network that has seen scores and labels."
)


def transfers(ranks: Mapping[str, Any], training: Mapping[str, Any], ordinary: str = ORDINARY) -> bool:
    """Return whether a loss serves sets that it was not fitted on, and so belongs into the zoo.

    Both must hold on the mean of the unseen sets: it ranks better than the ordinary loss, and training with both is
    better than training with the ordinary loss alone.
    """
    return ranks["unseen"] > ranks["ordinary"] and training[f"zoo + {ordinary}"]["difference"] > 0


def advice(training: Mapping[str, Any], sizes: str = "32 to 512") -> str:
    """Return when fitting a loss to one's own recordings pays: from the results of training, and what was not tried."""
    general = f"if your batches are much larger or smaller than {sizes} examples, or your models are not small networks"
    gain = training.get(OWN, {}).get("to_zoo")
    if gain is None:
        return f"{general}; how a loss fitted on each set itself compares was not measured"
    interval = f"{gain['difference']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]"
    if gain["low"] > 0:
        return f"where you can: fitted on the set itself it is better by {interval}"
    if gain["high"] < 0:
        return f"only {general}: fitted on the set itself it is worse, {interval}"
    return f"only {general}: fitted on the set itself it is not surely better, {interval}"


def card_of(name: str, ranks: Mapping[str, Any], training: Mapping[str, Any], loss: SurrogateLoss) -> dict[str, Any]:
    """Return the card of a loss, without its options."""
    metric, use = LOSSES[name]
    checked = {which: record(load_sklearn(which), 0) for which in CHECKED}
    return rounded(
        {
            "name": name,
            "metric": metric,
            "kind": "binary",
            "surrogate": kind_for("set", metric),
            "ordinary": ORDINARY,
            "use": use,
            "sets": list(SETS),
            "terms": TERMS,
            "spearman": dict(ranks),
            "training": dict(training),
            "checked": {
                which: {"spearman": correlation(loss, name, part), "ordinary": correlation(None, name, part)}
                for which, part in checked.items()
            },
            "fit_your_own": advice(training),
        }
    )


def rounded(value: Any) -> Any:
    """Return a value for JSON in which numbers have four digits after the point."""
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def main() -> None:
    """Fit, measure and publish the losses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="data folder (default: %(default)s)")
    parser.add_argument("--work", type=Path, default=Path("runs/zoo"), help="folder of the fits (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recordings = record_all(arguments.data, arguments.work, arguments.seed)
    figures = {name: measure(name, recordings, arguments.work, arguments.seed) for name in LOSSES}
    costs = [measure(COST, recordings, arguments.work, arguments.seed, longer) for longer in (False, True)]
    ranks_of_cost = {"unseen": costs[0]["unseen"], "longer": costs[1]["unseen"], "ordinary": costs[0]["ordinary"]}
    write_json(CORRELATIONS, rounded({**figures, COST: ranks_of_cost}))
    results = Results(LINES)
    for name, ranks in figures.items():
        training = training_facts(results, name)
        path = zoo.FOLDER / f"{name}{zoo.SUFFIX}"
        if not transfers(ranks, training):
            say(f"{name} does not transfer: not published")
            path.unlink(missing_ok=True)
            continue
        loss = fitted(name, "all", recordings, arguments.work, arguments.seed)
        zoo.write_file(path, loss, card_of(name, ranks, training, loss))
        say(f"{name}: {path}")


if __name__ == "__main__":
    main()
