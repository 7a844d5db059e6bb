"""docs/zoo.md and results/field.md, rendered from the cards of the zoo and the records of `benchmarks.field`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from reloss.metric_loss.kinds import KINDS
from reloss.metric_loss.zoo import zoo_card, zoo_names
from reloss.report.statistics import Difference
from reloss.report.table import Cell, Missing, Number, Table
from tools.field_records import COMPARED, CORRELATIONS, COST, LINES, ORDINARY, TUNED, Results, training_facts
from tools.fit_zoo import LOSSES
from tools.tabular_runs import SETS

TITLES = {
    "auroc": "AUROC",
    "average_precision": "average precision",
    "partial_auroc": "partial AUROC (at most 10 % false positives)",
    "f1": "F1",
    "mcc": "MCC",
    "balanced_accuracy": "balanced accuracy",
    COST: "minus the cost per example, if a miss costs ten false alarms",
}
OURS = ("zoo", "zoo + cross-entropy", "expected + cross-entropy", "fitted on the set + cross-entropy")
NOT_MEASURED = Missing("not measured")


def zoo_page() -> str:
    """Return docs/zoo.md without its introduction: the table, what does not transfer, and a card for each loss."""
    results, figures = Results(LINES), json.loads(CORRELATIONS.read_text(encoding="utf-8"))
    rows = [_summary(name, figures[name], training_facts(results, name)) for name in zoo_names()]
    headers = ("name", "metric", "Spearman, unseen sets", "cross-entropy's", "expected metric's")
    trained = ("cross-entropy", "zoo + cross-entropy", "difference", "zoo alone")
    parts = [Table((*headers, *trained), rows).markdown()]
    uncertain = [name for name in zoo_names() if training_facts(results, name)["zoo + cross-entropy"]["low"] <= 0]
    if uncertain:
        parts += [f"The interval of the difference includes 0, so a gain is not certain, for {', '.join(uncertain)}."]
    missing = [name for name in LOSSES if name not in zoo_names()]
    if missing:
        rows = [_summary(name, figures[name], training_facts(results, name)) for name in missing]
        parts += ["## Not in the zoo", _NOT_IN_THE_ZOO, Table((*headers, *trained), rows).markdown()]
    parts += ["## Cards", *(_card(zoo_card(name)) for name in zoo_names())]
    return "\n\n".join(parts)


_NOT_IN_THE_ZOO = """These losses were fitted and measured like the others, but they do not transfer: they rank unseen
sets no better than cross-entropy, or training with them added is not better on the mean."""


def _summary(name: str, spearman: Mapping[str, Any], training: Mapping[str, Any]) -> list[Cell]:
    mixed = training["zoo + cross-entropy"]
    return [
        name,
        LOSSES[name][0],
        *(_two_digits(spearman[key]) for key in ("unseen", "cross_entropy", "expected")),
        Number(training[ORDINARY], f"{training[ORDINARY]:.3f}"),
        Number(mixed["mean"], f"{mixed['mean']:.3f}"),
        _interval(mixed["difference"], mixed["low"], mixed["high"]),
        Number(training["zoo"]["mean"], f"{training['zoo']['mean']:.3f}"),
    ]


def _card(card: Mapping[str, Any]) -> str:
    """Return the card of a loss in Markdown."""
    spearman, training = card["spearman"], card["training"]
    sizes = ", ".join(f"{spearman['sizes'][size]:.2f} ({size})" for size in sorted(spearman["sizes"], key=int))
    sets = ", ".join(f"{which} {_or_dash(value)}" for which, value in spearman["sets"].items())
    checked = "; ".join(
        f"{which.replace('_', ' ')} {values['spearman']:.2f} (cross-entropy {values['cross_entropy']:.2f})"
        for which, values in card["checked"].items()
    )
    trained = [
        f"  - {method}: {facts['mean']:.3f}, {_interval(facts['difference'], facts['low'], facts['high'])}"
        for method, facts in training.items()
        if isinstance(facts, dict)
    ]
    lines = [
        f"### {card['name']}",
        "",
        f"- Use it for: {card['use']}.",
        f"- Metric: `{card['metric']}`. Batches: {KINDS[card['kind']].shapes}.",
        f"- Spearman on unseen sets, by examples of an item: {sizes}.",
        f"- The same by set (-: the metric is the same for all items): {sets}.",
        f"- On sets of scikit-learn, which are no part of the fit: {checked}.",
        f"- Training on unseen sets, mean of {len(SETS)}, and difference to cross-entropy ({training[ORDINARY]:.3f}):",
        *trained,
        f"- Measured best {best_use(training)}. Fit your own {card['fit_your_own']}.",
    ]
    return "\n".join(lines)


def best_use(training: Mapping[str, Any]) -> str:
    """Return whether a loss trains better alone or added to cross-entropy, on the mean of the unseen sets."""
    return "alone" if training["zoo"]["mean"] > training["zoo + cross-entropy"]["mean"] else "added to cross-entropy"


def field_page() -> str:
    """Return results/field.md without its introduction: a table for each metric, and where each method is best."""
    results = Results(LINES)
    parts = [_summary_text(results)]
    for metric in COMPARED:
        parts += [f"## {_title(TITLES[metric])}", _metric_table(results, metric).markdown()]
    return "\n\n".join(parts)


def _title(text: str) -> str:
    return text[0].upper() + text[1:]


def _metric_table(results: Results, metric: str) -> Table:
    ranks = results.ranks(metric)
    rows: list[list[Cell]] = []
    for method in sorted(ranks, key=lambda name: -results.mean(name, metric)):
        rank, wins = ranks[method]
        time = results.milliseconds.get(method, results.milliseconds.get(f"{method}: {metric}"))
        if method == TUNED:
            time = results.milliseconds.get(ORDINARY)
        difference, mean = results.difference(method, metric), results.mean(method, metric)
        compared = _interval(difference.mean, difference.low, difference.high)
        rows.append(
            [
                method,
                Number(mean, f"{mean:.3f}"),
                Number(rank, f"{rank:.1f}"),
                Number(wins, f"{wins:.1f}"),
                "is the baseline" if method == ORDINARY else compared,
                NOT_MEASURED if time is None else Number(time, f"{time:.1f}"),
            ]
        )
    return Table(("method", "mean", "mean rank", "wins", "difference to cross-entropy", "ms a step"), rows)


def _summary_text(results: Results) -> str:
    """Return the first paragraph: the best method of each metric, and where another one than ours is ahead."""
    sentences = list(_sentences(results))
    return "\n".join(
        [
            "The best method by the mean over the sets, and how far the zoo is from it or from the best rival:",
            "",
            *(f"- {sentence}" for sentence in sentences),
        ]
    )


def _sentences(results: Results) -> Iterator[str]:
    for metric in COMPARED:
        methods = results.methods(metric)
        best = max(methods, key=lambda name: results.mean(name, metric))
        ready = results.mean("zoo + cross-entropy", metric)
        text = f"{_title(TITLES[metric])}: {best} ({results.mean(best, metric):.3f})"
        if best == "zoo + cross-entropy":
            rivals = [name for name in methods if name not in OURS]
            rival = max(rivals, key=lambda name: results.mean(name, metric))
            text += f"; best without reloss: {rival} ({results.mean(rival, metric):.3f})"
            text += f", {_paired(results, metric, best, rival)}"
        else:
            text += f"; zoo + cross-entropy {ready:.3f}, {_paired(results, metric, 'zoo + cross-entropy', best)}"
        yield f"{text}."


def _paired(results: Results, metric: str, ours: str, other: str) -> str:
    difference: Difference = results.difference(ours, metric, other)
    return f"difference {_interval(difference.mean, difference.low, difference.high)}"


def _interval(mean: float, low: float | None, high: float | None) -> str:
    return f"{mean:+.3f}" if low is None else f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"


def _two_digits(value: float | None) -> Cell:
    return Missing("no formula") if value is None else Number(value, f"{value:.2f}")


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
