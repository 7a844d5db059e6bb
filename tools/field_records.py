"""The committed results of `benchmarks.field`, as means over folds and paired differences over sets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from reloss.report.statistics import Difference, paired_difference
from tools.tabular_runs import SETS

FOLDER = Path(__file__).resolve().parent.parent / "results" / "records" / "field"
LINES, CORRELATIONS = FOLDER / "field.jsonl", FOLDER / "spearman.json"
COST = "ten_misses"  # a cost; a loss for it is fitted for the comparison, but is too special for the zoo
COMPARED = ("auroc", "average_precision", "partial_auroc", "f1", "mcc", "balanced_accuracy", COST)
"""Metrics of the comparison, by the name of the loss. The others of the zoo are measured for its cards alone."""

ORDINARY = "cross-entropy"
TUNED = "cross-entropy, tuned threshold"


class Results:
    """Scores of each method on each set: the mean over its folds, at the rate that validation rows prefer.

    Args:
        path: file that `benchmarks.field` wrote.

    Attributes:
        scores: by method and metric, the score on each set.
        rates: by method and metric, the chosen rate on each set.
        milliseconds: CPU time of a training step by method.
        about: machine and versions.
    """

    def __init__(self, path: Path = LINES) -> None:
        self.scores: dict[tuple[str, str], dict[str, float]] = {}
        self.rates: dict[tuple[str, str], dict[str, float]] = {}
        self.milliseconds: dict[str, float] = {}
        self.about: dict[str, Any] = {}
        for line in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            if line["set"] == "about":
                self.about = line
                continue
            if line["set"] == "time":
                self.milliseconds[line["method"]] = line["ms"]
                continue
            method = line["method"].partition(": ")[0]
            for metric, result in line["scores"].items():
                self.scores.setdefault((method, metric), {})[line["set"]] = float(np.mean(result["test"]))
                self.rates.setdefault((method, metric), {})[line["set"]] = result["rate"]

    def complete(self, method: str, metric: str) -> bool:
        """Return whether a method was trained on every set."""
        return self.scores.get((method, metric), {}).keys() == set(SETS)

    def methods(self, metric: str) -> list[str]:
        """Return the methods that were trained on every set, in the order of the file."""
        return [method for method, name in self.scores if name == metric and self.complete(method, metric)]

    def mean(self, method: str, metric: str) -> float:
        """Return the mean over the sets."""
        return float(np.mean(list(self.scores[method, metric].values())))

    def difference(self, method: str, metric: str, other: str = ORDINARY) -> Difference:
        """Return the difference method - other, paired by set."""
        ours, theirs = (self._numbered(self.scores[name, metric]) for name in (method, other))
        difference = paired_difference(ours, theirs)
        assert difference is not None
        return difference

    def ranks(self, metric: str) -> dict[str, tuple[float, float]]:
        """Return the mean rank of each method, 1 for the best, and the sets it wins; ties share both."""
        from scipy.stats import rankdata

        methods = self.methods(metric)
        table = np.array([[self.scores[method, metric][which] for which in SETS] for method in methods])
        ranks = rankdata(-table, axis=0)
        best = table == table.max(0)
        wins = (best / best.sum(0)).sum(1)
        return {method: (float(ranks[row].mean()), float(wins[row])) for row, method in enumerate(methods)}

    @staticmethod
    def _numbered(scores: Mapping[str, float]) -> dict[int, float]:
        return {SETS.index(which): score for which, score in scores.items()}


def training_facts(results: Results, metric: str) -> dict[str, Any]:
    """Return how a loss of the zoo trains on unseen sets, for its card: means, and differences to cross-entropy."""
    facts: dict[str, Any] = {ORDINARY: results.mean(ORDINARY, metric)}
    for method in (
        TUNED,
        "zoo",
        "zoo + cross-entropy",
        "expected + cross-entropy",
        "fitted on the set + cross-entropy",
    ):
        if results.complete(method, metric):
            difference = results.difference(method, metric)
            facts[method] = {"mean": results.mean(method, metric), "difference": difference.mean}
            facts[method] |= {"low": difference.low, "high": difference.high}
    return facts
