"""Evidence for the claims of docs/claims.md: measured differences, each read from committed records or files.

A piece of evidence is a function without arguments. It returns a `Measurement`, or None where nothing was measured.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean

from reloss.experiment.config import Experiment
from reloss.experiment.records import RunRecord, read_runs
from reloss.experiment.settings import canonical_settings
from reloss.experiment.task import find_experiment, tasks
from reloss.report.groups import LEARNING_RATE, group_runs, learning_rate, scores_by_seed
from reloss.report.pooled_table import pooled_rows
from reloss.report.statistics import Difference, Side, paired_difference
from reloss.report.task_table import outdated

ROOT = Path(__file__).resolve().parent.parent
RECORDS, BENCHMARKS = ROOT / "results" / "records", ROOT / "results" / "benchmarks" / "cpu"
PAGES = {"ablation": "ablation", "rare": "rare"}  # pages of results/ by group of records; else the page of the task


@dataclass(frozen=True)
class Measurement:
    """What was measured: a text with the numbers, where its interval lies, and the commands that repeat it."""

    text: str
    side: Side
    commands: tuple[str, ...]


Evidence = Callable[[], Measurement | None]


@dataclass(frozen=True)
class Variant:
    """A loss with settings. Other settings, which all runs of a comparison share, are not part of it."""

    loss: str
    settings: tuple[str, ...] = ()


@cache
def records(group: str) -> list[RunRecord]:
    """Return the committed runs of one group."""
    return read_runs(RECORDS / group)


def runs_by_rate(config: Experiment, runs: Iterable[RunRecord], variant: Variant) -> dict[float, list[RunRecord]]:
    """Return the finished runs of a variant by learning rate.

    Among the runs that have the variant's settings these are the ones with the fewest others. Runs whose experiment has
    changed since do not count.
    """
    candidates: dict[frozenset[str], dict[float, list[RunRecord]]] = defaultdict(dict)
    for (loss, settings), group in group_runs(config, runs).items():
        if loss != variant.loss or outdated(config, group[0]):
            continue
        own = frozenset(canonical_settings(config, settings, loss))
        others = frozenset(setting for setting in own if not setting.startswith(LEARNING_RATE))
        if others.issuperset(variant.settings):
            candidates[others][learning_rate(config, own)] = group
    return min(candidates.items(), key=lambda item: (len(item[0]), sorted(item[0])), default=(None, {}))[1]


def compare(
    config: Experiment, runs: Sequence[RunRecord], variants: tuple[Variant, Variant], score: str, same_rate: bool
) -> tuple[Difference, list[Sequence[RunRecord]]] | None:
    """Return the first variant's score minus the second's, paired by seed, and the runs of both; None without a pair.

    Each variant is taken at the learning rate with the best mean on the validation split; with `same_rate`, both at the
    best one of the first variant that the second was run with, too.
    """

    def best(by_rate: Mapping[float, Sequence[RunRecord]]) -> Sequence[RunRecord]:
        return max(by_rate.values(), key=lambda group: _validation(group, score), default=[])

    first, second = (runs_by_rate(config, runs, variant) for variant in variants)
    if same_rate:
        first = {rate: group for rate, group in first.items() if rate in second}
    chosen = [best(first), best(second)]
    if same_rate and chosen[0]:
        chosen[1] = second[next(rate for rate, group in first.items() if group is chosen[0])]
    difference = paired_difference(*(scores_by_seed(group, score) for group in chosen))
    if difference is None or chosen[0][0].protocol != chosen[1][0].protocol:
        return None
    return difference, chosen


def _validation(group: Sequence[RunRecord], score: str) -> float:
    values = scores_by_seed(group, f"validation_{score}").values()
    return mean(values) if values else float("-inf")


def paired(
    group: str,
    experiment: str,
    first: Variant,
    second: Variant,
    score: str = "",
    same_rate: bool = False,
    with_ranking: bool = False,
) -> Evidence:
    """Return the evidence of two variants of one experiment; see `compare`. `with_ranking` adds how well both rank."""

    def measure() -> Measurement | None:
        config = find_experiment(experiment)[1]
        own = [run for run in records(group) if run.experiment == experiment]
        result = compare(config, own, (first, second), score or config.score, same_rate)
        if result is None:
            return None
        difference, chosen = result
        page = PAGES.get(group, experiment.partition("/")[0])
        text = f"[{experiment}](../results/{page}.md), {score or config.score}: {difference}, {seeds(difference.n)}"
        if with_ranking:
            ranked = [f"{runs[0].fit['spearman']:.3f}" for runs in chosen]
            text += f"; held-out Spearman {' against '.join(ranked)}"
        return Measurement(text, difference.side, tuple(sweep_commands(config, chosen)))

    return measure


def seeds(count: int) -> str:
    """Return how many seeds, in words."""
    return f"{count} seed{'' if count == 1 else 's'}"


def sweep_commands(config: Experiment, chosen: Sequence[Sequence[RunRecord]]) -> list[str]:
    """Return the commands that run both variants again: one, if both losses can take the same settings."""
    losses = [runs[0].loss for runs in chosen]
    settings = [canonical_settings(config, runs[0].settings, runs[0].loss) for runs in chosen]
    common = sorted(set.intersection(*({run.seed for run in runs} for runs in chosen)))
    text = f"{common[0]}-{common[-1]}" if len(common) > 1 else str(common[0])
    longer = max(settings, key=len)
    if all(canonical_settings(config, longer, loss) == own for loss, own in zip(losses, settings, strict=True)):
        return [_sweep(config, ",".join(dict.fromkeys(losses)), text, longer)]
    return [_sweep(config, loss, text, own) for loss, own in zip(losses, settings, strict=True)]


def _sweep(config: Experiment, losses: str, seeds: str, settings: Sequence[str]) -> str:
    changes = f" --set {' '.join(settings)}" if settings else ""
    return f"reloss sweep {config.name} --losses {losses} --seeds {seeds}{changes}"


def pooled(rival: str, score: str) -> Evidence:
    """Return the evidence of the learned loss minus a rival, over KEEL's data sets."""

    def measure() -> Measurement | None:
        rows = pooled_rows(tasks()["classification"], records("keel"), score, "keel_*")
        (row,) = [row for row in rows if (row.loss, row.settings) == (rival, ())]
        assert row.difference is not None  # only the learned loss has none
        text = f"[{row.mean.n} data sets](why-it-wins.md), {score}: {row.difference}"
        command = f"reloss table classification --tuned {score} --pool 'keel_*' --runs results/records/keel"
        return Measurement(text, row.difference.side, (command,))

    return measure


def fits() -> Measurement | None:
    """Return by how much learned losses rank held-out items better than ordinary ones; a pair per experiment."""
    groups = ("main", "rare", "keel")
    learned: dict[int, float] = {}
    ordinary: dict[int, float] = {}
    for group in groups:
        for name in dict.fromkeys(run.experiment for run in records(group)):
            config = find_experiment(name)[1]
            own = [run for run in records(group) if run.experiment == name]
            fit = next((runs[0].fit for runs in runs_by_rate(config, own, Variant("reloss")).values()), {})
            if "spearman_ordinary" in fit:
                learned[len(learned)], ordinary[len(ordinary)] = fit["spearman"], fit["spearman_ordinary"]
    difference = paired_difference(learned, ordinary)
    if difference is None or difference.low is None:
        return None
    text = (
        f"[{difference.n} experiments](../results/correlation.md): {difference.mean:+.3f} "
        f"[{difference.low:+.3f}, {difference.high:+.3f}]"
    )
    commands = tuple(f"reloss table correlation --runs results/records/{group}" for group in groups)
    return Measurement(text, difference.side, commands)


def cost(
    file: str, text: str, column: str, row: Mapping[str, str], per: Mapping[str, str] | None, most: float
) -> Evidence:
    """Return the evidence that a measured cost is at most `most`. It is no record, so it has no interval.

    Args:
        file: benchmark, a CSV file without its ending.
        text: what the cost is; `{cost}` stands for the number.
        column: column of the number.
        row: values of other columns that select the row; of several rows the largest number counts.
        per: values that select the row to divide by; None for the number itself.
        most: bound that supports the claim.
    """

    def measure() -> Measurement:
        with (BENCHMARKS / f"{file}.csv").open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))

        def number(wanted: Mapping[str, str]) -> float:
            return max(float(each[column]) for each in rows if wanted.items() <= each.items())

        value = number(row) / (number(per) if per else 1)
        shown = f"[benchmark](../results/benchmarks/cpu/{file}.md): {text.format(cost=value)}"
        return Measurement(shown, Side.ABOVE if value <= most else Side.BELOW, (f"make bench-{file}",))

    return measure


def cost_of_mistakes() -> Measurement:
    """Return how far the cost of mistakes falls in docs/your-own-metric.md, which a test runs; lower is better."""
    page = (ROOT / "docs" / "your-own-metric.md").read_text(encoding="utf-8")
    number = r"([+-]\d\.\d+)"
    (values,) = re.findall(rf"^learned \+ ordinary .* {number} \[{number}, {number}\]$", page, flags=re.MULTILINE)
    (ordinary,) = re.findall(r"^ordinary +(\d\.\d+)", page, flags=re.MULTILINE)
    (count,) = re.findall(r"^(\d+) seeds; paired", page, flags=re.MULTILINE)
    change, low, high = map(float, values)
    text = f"[the tutorial](your-own-metric.md): cost {change:+.3f} [{low:+.3f}, {high:+.3f}], {count} seeds"
    text += f", {-change / float(ordinary):.0%} less"
    return Measurement(text, Difference(-change, -high, -low, int(count)).side, ("pytest tests/test_docs.py",))


def tested(text: str, path: str) -> Evidence:
    """Return the evidence of a test, which fails if the claim is wrong."""
    return lambda: Measurement(f"[{text}](../{path})", Side.ABOVE, (f"pytest {path}",))
