"""The committed results of `benchmarks.field` and `tools.fit_zoo_kinds`: means and differences paired by set."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from reloss.report.statistics import Difference, paired_difference
from reloss.runtime.files import write_text
from tools.tabular_runs import SETS

FOLDER = Path(__file__).resolve().parent.parent / "results" / "records" / "field"
LINES, CORRELATIONS = FOLDER / "field.jsonl", FOLDER / "spearman.json"
KIND_LINES, KIND_CORRELATIONS = FOLDER / "kinds.jsonl", FOLDER / "spearman_kinds.json"
COST = "ten_misses"  # a cost; a loss for it is fitted for the comparison, but is too special for the zoo
COMPARED = ("auroc", "average_precision", "partial_auroc", "f1", "mcc", "balanced_accuracy", COST)
"""Metrics of the comparison, by the name of the loss. The others of the zoo are measured for its cards alone."""

ORDINARY = "cross-entropy"
TUNED = "cross-entropy, tuned threshold"
OWN, READY = "fitted on the set + cross-entropy", "zoo + cross-entropy"
LONGER = "zoo, longer fit"
RECIPES = ("zoo + weighted cross-entropy", "zoo + logit-adjusted", f"{LONGER} + cross-entropy, a miss weighs ten")
"""The zoo's loss added to a cross-entropy whose weights fit the metric."""


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
    for method in (TUNED, "zoo", READY, "expected + cross-entropy", "fitted on the set", OWN):
        if results.complete(method, metric):
            facts[method] = {"mean": results.mean(method, metric), **_interval(results.difference(method, metric))}
    if OWN in facts:
        facts[OWN]["to_zoo"] = _interval(results.difference(OWN, metric, READY))
    return facts


def _interval(difference: Difference) -> dict[str, float | None]:
    return {"difference": difference.mean, "low": difference.low, "high": difference.high}


class KindResults:
    """Scores of the losses for other kinds than two classes, in a file with a line for each loss, set and method.

    Args:
        path: file that `tools.fit_zoo_kinds` writes; it need not exist.

    Attributes:
        lines: the content of the file.
    """

    def __init__(self, path: Path = KIND_LINES) -> None:
        self.path = path
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        self.lines: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]

    def replace(self, name: str, lines: Iterable[Mapping[str, Any]]) -> None:
        """Write the lines of a loss into the file, in place of earlier ones."""
        self.lines = [line for line in self.lines if line["loss"] != name] + [dict(line) for line in lines]
        write_text(self.path, "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in self.lines))

    def facts(self, name: str, ordinary: str) -> dict[str, Any]:
        """Return how a loss trains on unseen sets, as `training_facts` does; empty if it was not measured.

        Args:
            name: name of the loss.
            ordinary: name of the ordinary loss, the baseline.
        """
        scores: dict[str, dict[int, float]] = {}
        for line in self.lines:
            if line["loss"] == name:
                of_method = scores.setdefault(line["method"], {})
                of_method[len(of_method)] = float(np.mean(line["test"]))
        if ordinary not in scores:
            return {}
        facts: dict[str, Any] = {ordinary: float(np.mean(list(scores[ordinary].values())))}
        for method, values in scores.items():
            difference = paired_difference(values, scores[ordinary])
            if method != ordinary and difference is not None:
                facts[method] = {"mean": float(np.mean(list(values.values()))), **_interval(difference)}
        return facts
