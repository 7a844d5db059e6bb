"""Losses for two classes side by side on KEEL sets: `python -m benchmarks.field --data DATA --work WORK`.

Each method trains a small network on five folds of each set, at three learning rates; for each metric, the rate with
the best mean on the validation rows counts. A loss of the zoo is the one that was fitted on the other half of the sets.
WORK holds what `tools.fit_zoo` has fitted; the fits that are missing are made. Losses of other libraries are trained
by their own optimisers and samplers, if --peers names folders with the unpacked packages:

    pip download --no-deps libauc==2.0.1 imbalanced-losses==0.6.0    # then unpack each into a folder

Writes one line for each set and method to --out. Lines that are there already are not repeated, so an interrupted
benchmark resumes.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import field_peers
from reloss.experiment import environment
from reloss.metrics import Metric
from reloss.runtime.progress import say
from reloss.surrogates.base import bounded
from reloss.surrogates.expected.base import ExpectedLoss
from reloss.surrogates.expected.top import ExpectedTop
from tools.field_records import COMPARED, COST, LINES
from tools.fit_zoo import LOSSES, Snapshots, cross_entropy, fitted, formula, metric_of, record_all
from tools.tabular_runs import BATCH, EPOCHS, RATES, SETS, Folds, Loss, group_of, load_keel, train

THRESHOLDED = ("f1", "f2", "mcc", "balanced_accuracy", "kappa", COST)
ORDINARY_RATES = (*RATES, 1.5)  # cross-entropy alone often prefers a rate that is too large for a sum of losses
QUANTILES = 101  # of the validation scores, among which a threshold is tuned
MISS = 10.0  # cost of a miss, in false alarms
TIMED_SET, TIMED_EPOCHS = "yeast4", 6


def weighted(weight: float, scores: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy in which a positive counts `weight` times: scores [R, B], targets [R, B] -> [R]."""
    pos_weight = torch.tensor(weight)
    losses = F.binary_cross_entropy_with_logits(scores, targets.float(), pos_weight=pos_weight, reduction="none")
    return losses.mean(-1)


def adjusted(share: float, scores: Tensor, targets: Tensor) -> Tensor:
    """Return the logit-adjusted cross-entropy for a share of positives: scores [R, B], targets [R, B] -> [R]."""
    return cross_entropy(scores + math.log(share / (1 - share)), targets)


def focal(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the focal loss with alpha .25 and gamma 2 (Lin et al., 2017): scores [R, B], targets [R, B] -> [R]."""
    signs = 2.0 * targets - 1
    alpha = 0.5 - 0.25 * signs
    return (-alpha * torch.sigmoid(-signs * scores).square() * F.logsigmoid(signs * scores)).mean(-1)


def soft_f1(scores: Tensor, targets: Tensor) -> Tensor:
    """Return 1 - soft F1 plus the cross-entropy: scores [R, B], targets [R, B] -> [R]."""
    p = scores.sigmoid()
    return 1 - 2 * (p * targets).sum(-1) / (p + targets).sum(-1) + cross_entropy(scores, targets)


def expected_cost(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the expected cost per example: scores [R, B], targets [R, B] -> [R]."""
    p = scores.sigmoid()
    return (MISS * (1 - p) * targets + p * (1 - targets)).mean(-1)


def positive_share(folds: Folds) -> float:
    """Return the share of positives among the training rows of all splits."""
    return float(folds.targets[folds.training].float().mean())


def shared_methods(folds: Folds) -> dict[str, Loss]:
    """Return the methods that are no learned losses, by name; after a colon, the one metric that a method is for."""
    share = positive_share(folds)
    return {
        "cross-entropy": cross_entropy,
        "weighted cross-entropy": partial(weighted, 1 / share - 1),
        "focal": focal,
        "logit-adjusted": partial(adjusted, share),
        "soft F1 + cross-entropy": soft_f1,
        f"expected + cross-entropy: {COST}": lambda scores, targets: (
            cross_entropy(scores, targets) + expected_cost(scores, targets)
        ),
        f"cross-entropy, a miss weighs ten: {COST}": partial(weighted, MISS),
    }


class Method(NamedTuple):
    """A loss over expected parts of a metric, alone or added to an ordinary loss."""

    name: str
    metric: str
    loss: ExpectedLoss
    ordinary: Loss | None = None

    def title(self) -> str:
        """Return the name with its metric."""
        return f"{self.name}: {self.metric}"

    def alone(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each network: scores [R, B], targets [R, B] -> [R]."""
        losses = self.loss.per_item(scores, targets)
        return losses if self.ordinary is None else losses + self.ordinary(scores, targets)


def ready_methods(which: str, recordings: Mapping[str, Snapshots], work: Path, seed: int) -> Iterator[Method]:
    """Yield the losses that were not fitted on the set: those of the zoo, and the expected metrics."""
    for metric in (*LOSSES, COST):
        unseen = fitted(metric, str(1 - group_of(which)), recordings, work, seed)
        yield Method("zoo", metric, unseen)
        yield Method("zoo + cross-entropy", metric, unseen, cross_entropy)
        expected = formula(metric, recordings[which])
        if metric in COMPARED and expected is not None:
            yield Method("expected + cross-entropy", metric, expected, cross_entropy)


def remedies(which: str, folds: Folds, recordings: Mapping[str, Snapshots], work: Path, seed: int) -> Iterator[Method]:
    """Yield losses of the zoo in the two columns where others are ahead, used as these columns need it.

    They are added to a cross-entropy whose weights fit the metric, and the one for the cost is fitted for longer.
    """
    share, half = positive_share(folds), str(1 - group_of(which))
    unseen = fitted("balanced_accuracy", half, recordings, work, seed)
    balanced, costly = partial(weighted, 1 / share - 1), partial(weighted, MISS)
    yield Method("zoo + weighted cross-entropy", "balanced_accuracy", unseen, balanced)
    yield Method("zoo + logit-adjusted", "balanced_accuracy", unseen, partial(adjusted, share))
    longer = fitted(COST, half, recordings, work, seed, longer=True)
    yield Method("zoo, longer fit", COST, longer)
    yield Method("zoo, longer fit + cross-entropy", COST, longer, cross_entropy)
    yield Method("zoo, longer fit + cross-entropy, a miss weighs ten", COST, longer, costly)


def own_methods(which: str, recordings: Mapping[str, Snapshots], work: Path, seed: int) -> Iterator[Method]:
    """Yield the losses that were fitted on the recordings of the set itself."""
    for metric in COMPARED:
        loss = fitted(metric, which, recordings, work, seed)
        yield Method("fitted on the set", metric, loss)
        yield Method("fitted on the set + cross-entropy", metric, loss, cross_entropy)


def together(methods: Sequence[Method], rates: int) -> Loss:
    """Return the loss of networks in the order split, method, rate: their features are computed once for all methods.

    The features of a set are the first ones of the features of a ranking's top.
    """
    seer = ExpectedTop()

    def loss(scores: Tensor, targets: Tensor) -> Tensor:
        shape = (-1, len(methods), rates)
        features = seer.features(bounded(scores), targets).unflatten(0, shape)
        batch = [part.unflatten(0, shape) for part in (scores, targets)]
        losses = []
        for number, method in enumerate(methods):
            own = method.loss.network(features[:, number, ..., : len(method.loss.FEATURES)])[..., 0] * method.loss.scale
            added = 0 if method.ordinary is None else method.ordinary(*(part[:, number] for part in batch))
            losses.append(own + added)
        return torch.stack(losses, 1).flatten()

    return loss


def scores_of(
    folds: Folds, outputs: Tensor, metrics: Sequence[str], rates: Sequence[float], tuned: bool
) -> dict[str, Any]:
    """Return the scores of each metric at its best rate.

    Args:
        folds: the set.
        outputs: [K, L, E] scores of all rows.
        metrics: names of the metrics.
        rates: L learning rates.
        tuned: whether thresholds are tuned on the validation rows.

    Returns:
        For each metric the best rate, the mean on validation at each rate, and the test scores of each split.
    """
    results, outputs = {}, outputs.nan_to_num()  # a diverged network gives every row the same score
    for name in metrics:
        validation, test = [], []
        for split, held_out in enumerate(folds.validation):
            parts = [(outputs[split][:, rows], folds.targets[rows]) for rows in (held_out, folds.test[split])]
            metric = metric_of(name)
            scores = _tuned_scores(metric, *parts) if tuned else [_score(metric, *part) for part in parts]
            validation.append(scores[0])
            test.append(scores[1])
        means = torch.stack(validation).mean(0)
        best = int(means.argmax())
        results[name] = {
            "rate": rates[best],
            "validation": [round(float(mean), 4) for mean in means],
            "test": [round(float(score[best]), 4) for score in test],
        }
    return results


def _score(metric: Metric, scores: Tensor, targets: Tensor) -> Tensor:
    """Return the metric of each network: scores [L, n], targets [n] -> [L]."""
    return metric(scores, targets.expand(scores.shape))


def _tuned_scores(metric: Metric, validation: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Return the metric of each network [L] on both parts, at the threshold that is best on validation rows."""
    scores, targets = validation
    thresholds = torch.quantile(scores, torch.linspace(0, 1, QUANTILES), dim=1)[..., None]  # [Q, L, 1]
    shifted = scores - thresholds
    values = metric(shifted.flatten(0, 1), targets.expand(shifted.shape).flatten(0, 1)).view(shifted.shape[:2])
    best, index = values.max(0)
    chosen = thresholds[index, torch.arange(len(index))]
    return [best, _score(metric, test[0] - chosen, test[1])]


class Log:
    """The lines of results, by set and method."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.finished = {(line["set"], line["method"]) for line in map(json.loads, lines)}

    def add(self, line: Mapping[str, Any]) -> None:
        """Append one line to the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, separators=(",", ":")) + "\n")
        self.finished.add((line["set"], line["method"]))


def run_shared(log: Log, which: str, folds: Folds, seed: int) -> None:
    """Train with the methods that are no learned losses."""
    for name, loss in shared_methods(folds).items():
        tuned = f"{name}, tuned threshold"
        if (which, tuned if name == "cross-entropy" else name) in log.finished:
            continue
        metrics = [COST] if ": " in name else [*LOSSES, COST]
        outputs = train(folds, loss, ORDINARY_RATES, seed)
        log.add(
            {"set": which, "method": name, "scores": scores_of(folds, outputs, metrics, ORDINARY_RATES, tuned=False)}
        )
        if name == "cross-entropy":
            scores = scores_of(folds, outputs, THRESHOLDED, ORDINARY_RATES, tuned=True)
            log.add({"set": which, "method": tuned, "scores": scores})


def run_methods(log: Log, which: str, folds: Folds, methods: Sequence[Method], seed: int) -> None:
    """Train with learned losses, all at once; one line for each."""
    if all((which, method.title()) in log.finished for method in methods):
        return
    outputs = train(folds, together(methods, len(RATES)), RATES * len(methods), seed)
    for method, part in zip(methods, outputs.split(len(RATES), 1), strict=True):
        if (which, method.title()) not in log.finished:
            scores = scores_of(folds, part, [method.metric], RATES, tuned=False)
            log.add({"set": which, "method": method.title(), "scores": scores})


def run_peers(log: Log, which: str, folds: Folds, seed: int) -> None:
    """Train with the losses of other libraries; thresholds are tuned, since their scores have no natural one."""
    for name, peer in field_peers.PEERS.items():
        if (which, name) not in log.finished:
            outputs = field_peers.train(folds, peer, seed)
            scores = scores_of(folds, outputs, COMPARED, peer.rates, tuned=True)
            log.add({"set": which, "method": name, "scores": scores})


def milliseconds(step_of: Callable[[Folds], int], folds: Folds) -> float:
    """Return the CPU time of one training step of one network, in milliseconds."""
    one = folds._replace(
        features=folds.features[:1], training=folds.training[:1], validation=folds.validation[:1], test=folds.test[:1]
    )
    step_of(one)
    started = time.process_time()
    steps = step_of(one)
    return round(1e3 * (time.process_time() - started) / steps, 3)


def run_times(log: Log, recordings: Mapping[str, Snapshots], data: Path, work: Path, seed: int) -> None:
    """Measure the time of a step of each method; its lines have the set `time`."""
    folds = load_keel(TIMED_SET, data)

    def steps(loss: Loss, part: Folds) -> int:
        train(part, loss, RATES[:1], seed, TIMED_EPOCHS)
        return TIMED_EPOCHS * (part.training.shape[1] // BATCH)

    losses = shared_methods(folds)
    methods = [*ready_methods(TIMED_SET, recordings, work, seed), *own_methods(TIMED_SET, recordings, work, seed)]
    losses |= {method.title(): method.alone for method in methods if method.metric in COMPARED}
    for name, loss in losses.items():
        if ("time", name) not in log.finished:
            log.add({"set": "time", "method": name, "ms": milliseconds(partial(steps, loss), folds)})
    for name, peer in field_peers.PEERS.items():
        if ("time", name) not in log.finished:
            time_of_step = milliseconds(partial(field_peers.steps, peer, seed=seed), folds)
            log.add({"set": "time", "method": name, "ms": time_of_step})


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="data folder (default: %(default)s)")
    work = Path("runs/zoo")
    parser.add_argument("--work", type=Path, default=work, help="folder of tools.fit_zoo (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=LINES, help="file of the results (default: %(default)s)")
    parser.add_argument("--peers", type=Path, nargs="*", default=(), help="folders with other libraries")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and order (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    sys.path += map(str, arguments.peers)
    log = Log(arguments.out)
    if ("about", "machine") not in log.finished:
        machine = {"cpu": environment.devices()["cpu"], "torch": torch.__version__, "commit": environment.commit()}
        log.add({"set": "about", "method": "machine", **machine, "seed": arguments.seed})
    recordings = record_all(arguments.data, arguments.work, arguments.seed)
    folds = {which: load_keel(which, arguments.data) for which in SETS}
    fits = (recordings, arguments.work, arguments.seed)
    for which, part in folds.items():
        run_shared(log, which, part, arguments.seed)
        run_methods(log, which, part, list(ready_methods(which, *fits)), arguments.seed)
        run_methods(log, which, part, list(remedies(which, part, *fits)), arguments.seed)
        say(f"{which}: ordinary losses and the zoo, {EPOCHS} epochs")
    for which, part in folds.items():
        if arguments.peers:
            run_peers(log, which, part, arguments.seed)
            say(f"{which}: other libraries")
    for which, part in folds.items():
        run_methods(log, which, part, list(own_methods(which, *fits)), arguments.seed)
        say(f"{which}: fitted on the set")
    if arguments.peers:
        run_times(log, recordings, arguments.data, arguments.work, arguments.seed)


if __name__ == "__main__":
    main()
