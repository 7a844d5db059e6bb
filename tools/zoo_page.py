"""docs/zoo.md and results/field.md, rendered from the cards of the zoo and the records of `benchmarks.field`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from reloss.metric_loss.kinds import KINDS
from reloss.metric_loss.zoo import zoo_card, zoo_names
from reloss.report.statistics import Difference
from reloss.report.table import Cell, Missing, Number, Table
from tools.field_records import (
    COMPARED,
    CORRELATIONS,
    COST,
    KIND_CORRELATIONS,
    LINES,
    LONGER,
    ORDINARY,
    OWN,
    READY,
    RECIPES,
    TUNED,
    KindResults,
    Results,
    training_facts,
)
from tools.fit_zoo import LOSSES
from tools.fit_zoo_kinds import OTHERS
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
SHORT_TITLES = {**TITLES, "partial_auroc": "partial AUROC", COST: "the cost"}
OURS = (
    "zoo",
    READY,
    *RECIPES,
    LONGER,
    f"{LONGER} + cross-entropy",
    "expected + cross-entropy",
    "fitted on the set",
    OWN,
)
NOT_MEASURED = Missing("not measured")
SAME_STEP = {
    **dict.fromkeys((OWN, *RECIPES, f"{LONGER} + cross-entropy"), READY),
    **dict.fromkeys(("fitted on the set", LONGER), "zoo"),
    TUNED: ORDINARY,
}
"""Methods whose training step computes the same as another one's, and was not timed again."""
CHART = "![Difference of each loss to cross-entropy, by metric, with 95 % intervals](field.svg)"


def zoo_page() -> str:
    """Return docs/zoo.md without its introduction: tables, what does not transfer, and a card for each loss."""
    results, figures = Results(LINES), json.loads(CORRELATIONS.read_text(encoding="utf-8"))
    training = {name: training_facts(results, name) for name in LOSSES}
    names = [name for name in zoo_names() if name in LOSSES]
    rows = [_summary(name, LOSSES[name][0], figures[name], training[name]) for name in names]
    parts = ["### Scores of two classes", Table(HEADERS, rows).markdown()]
    uncertain = [name for name in names if training[name][READY]["low"] <= 0]
    if uncertain:
        parts += [f"The interval of the difference includes 0, so a gain is not certain, for {', '.join(uncertain)}."]
    missing = [name for name in LOSSES if name not in names]
    if missing:
        rows = [_summary(name, LOSSES[name][0], figures[name], training[name]) for name in missing]
        parts += ["### Not in the zoo", _NOT_IN_THE_ZOO, Table(HEADERS, rows).markdown()]
    parts += _other_kinds()
    parts += ["## Cards", *(_card(zoo_card(name)) for name in zoo_names())]
    return "\n\n".join(parts)


HEADERS = (
    *("name", "metric", "Spearman, unseen sets", "the ordinary loss's", "expected metric's"),
    *("ordinary loss", "zoo + ordinary", "difference", "zoo alone"),
)
_NOT_IN_THE_ZOO = """These losses were fitted and measured like the others. They are not in the zoo because they rank
unseen sets no better than the ordinary loss, or because training with them added is not better, or was not measured."""


def _other_kinds() -> list[str]:
    """Return the tables of the losses for other kinds than two classes: in the zoo or not."""
    results, figures = KindResults(), json.loads(KIND_CORRELATIONS.read_text(encoding="utf-8"))
    rows: dict[bool, list[list[Cell]]] = {True: [], False: []}
    for name, ranks in figures.items():
        ordinary = KINDS[OTHERS[name].kind].ordinary
        row = _summary(name, OTHERS[name].metric, ranks, results.facts(name, ordinary), ordinary)
        rows[name in zoo_names()].append(row)
    parts = ["### Other kinds", Table(HEADERS, rows[True]).markdown()] if rows[True] else []
    if rows[False]:
        parts += ["### Other kinds that are not in the zoo", _NOT_IN_THE_ZOO, Table(HEADERS, rows[False]).markdown()]
    return parts


def _summary(
    name: str, metric: str, spearman: Mapping[str, Any], training: Mapping[str, Any], ordinary: str = ORDINARY
) -> list[Cell]:
    ranks = [name, metric, *(_two_digits(spearman[key]) for key in ("unseen", "ordinary", "expected"))]
    if not training:
        return [*ranks, *[NOT_MEASURED] * 4]
    mixed = training[f"zoo + {ordinary}"]
    return [
        *ranks,
        Number(training[ordinary], f"{training[ordinary]:.3f}"),
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
        f"{which.replace('_', ' ')} {values['spearman']:.2f} ({card['ordinary']} {values['ordinary']:.2f})"
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
        f"- On data of scikit-learn, which is no part of the fit: {checked}.",
        f"- Training on unseen sets, mean of {len(card['sets'])}, and difference to {card['ordinary']} "
        f"({training[card['ordinary']]:.3f}):",
        *trained,
        f"- Measured best {best_use(training, card['ordinary'])}. Fit your own {card['fit_your_own']}.",
    ]
    return "\n".join(lines)


def best_use(training: Mapping[str, Any], ordinary: str = ORDINARY) -> str:
    """Return whether a loss trains better alone or added to the ordinary loss, on the mean of the unseen sets."""
    alone = training["zoo"]["mean"] > training[f"zoo + {ordinary}"]["mean"]
    return "alone" if alone else f"added to {ordinary}"


def field_page() -> str:
    """Return results/field.md without its introduction: a table for each metric, and where each method is best."""
    results = Results(LINES)
    parts = [standing(results), CHART, _summary_text(results), "## When fitting your own pays", _own_text(results)]
    parts += ["## Where others were ahead, and why", _reasons(results)]
    for metric in COMPARED:
        parts += [f"## {_title(TITLES[metric])}", _metric_table(results, metric).markdown()]
    return "\n\n".join(parts)


def standing(results: Results) -> str:
    """Return in two sentences which loss has the highest mean in which metric, and where the zoo's is surely behind."""
    best: dict[str, list[str]] = {}
    behind = []
    for metric in COMPARED:
        method = max(results.methods(metric), key=lambda name: results.mean(name, metric))
        best.setdefault(method, []).append(SHORT_TITLES[metric])
        ours = max((*RECIPES, LONGER, "zoo", READY), key=lambda name: _mean_or_lowest(results, name, metric))
        if ours != method and (results.difference(ours, metric, method).high or 0) < 0:
            behind.append(SHORT_TITLES[metric])
    listed = "; ".join(f"{method} for {listing(metrics)}" for method, metrics in best.items())
    level = f"all but {listing(behind)}" if behind else "all of them"
    return (
        f"On {len(SETS)} tables with rare classes, these have the highest mean: {listed}. A loss that was fitted on "
        f"other sets, used as the metric needs it, is the best or level with it (the interval of the difference "
        f"contains 0) in {level}."
    )


def standing_with_chart(results: Results) -> str:
    """Return `standing` and the chart for the README, in one line."""
    return f"{standing(results)} [Side by side](results/field.md): {CHART.replace('(', '(results/')}"


def _mean_or_lowest(results: Results, method: str, metric: str) -> float:
    return results.mean(method, metric) if results.complete(method, metric) else -math.inf


def listing(names: Sequence[str]) -> str:
    """Return names as a list in a sentence."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _title(text: str) -> str:
    return text[0].upper() + text[1:]


def _metric_table(results: Results, metric: str) -> Table:
    ranks = results.ranks(metric)
    rows: list[list[Cell]] = []
    for method in sorted(ranks, key=lambda name: -results.mean(name, metric)):
        rank, wins = ranks[method]
        timed = SAME_STEP.get(method, method)
        time = results.milliseconds.get(timed, results.milliseconds.get(f"{timed}: {metric}"))
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
            for recipe in RECIPES:
                if results.complete(recipe, metric) and recipe != best:
                    mean, difference = results.mean(recipe, metric), _paired(results, metric, recipe, best)
                    text += f"; {recipe} {mean:.3f}, {difference}"
        yield f"{text}."


def _own_text(results: Results) -> str:
    """Return how a loss that is fitted on the set itself trains next to the zoo's, which never saw it."""
    rows: list[list[Cell]] = []
    sure = []
    for metric in COMPARED:
        ours, ready = results.scores[OWN, metric], results.scores[READY, metric]
        difference = results.difference(OWN, metric, READY)
        if difference.low is not None and difference.low > 0:
            sure.append(SHORT_TITLES[metric])
        better = sum(ours[which] > ready[which] for which in SETS)
        means = (results.mean(method, metric) for method in (READY, OWN))
        interval = _interval(difference.mean, difference.low, difference.high)
        shown = [Number(mean, f"{mean:.3f}") for mean in means]
        rows.append([_title(TITLES[metric]), *shown, interval, Number(better, f"{better} of {len(SETS)}")])
    headers = ("metric", READY, OWN, "difference", "sets on which the own fit is better")
    verdict = f"A fit of your own is surely better for {listing(sure)}." if sure else _NOT_SURELY
    return f"{_OWN} {verdict}\n\n{Table(headers, rows).markdown()}"


_OWN = """The loss fitted on the recordings of the set itself, next to the zoo's, which was fitted on other sets. Both
are added to cross-entropy and trained the same way; the difference is paired by set."""
_NOT_SURELY = "No interval is above 0: on tables like these, a fit of your own does not surely pay."


def _reasons(results: Results) -> str:
    """Return why the zoo's losses were behind for balanced accuracy and the cost, with the numbers that show it."""
    balanced, (weighted, adjusted, costly) = "balanced_accuracy", RECIPES
    figures = json.loads(CORRELATIONS.read_text(encoding="utf-8"))[COST]
    methods = {
        "balanced": (READY, "logit-adjusted", "zoo", weighted, adjusted),
        "cost": (READY, "cross-entropy, a miss weighs ten", LONGER, f"{LONGER} + cross-entropy", costly),
    }
    means = {
        column: [f"{results.mean(method, metric):.3f}" for method in methods[column]]
        for column, metric in (("balanced", balanced), ("cost", COST))
    }
    worst = [f"{results.scores[method, COST]['yeast1']:.2f}" for method in ("zoo", LONGER)]
    spearman = {name: f"{value:.2f}" for name, value in figures.items()}
    return _REASONS.format(**means, worst=worst, spearman=spearman)


_REASONS = """**Balanced accuracy** ({balanced[0]} with cross-entropy added 1 : 1, {balanced[1]} for logit-adjusted
cross-entropy): the sum is the cause. Unweighted cross-entropy pulls the scores back to the share of positives, so few
examples are predicted positive. The zoo's loss alone reaches {balanced[2]}; added to weighted cross-entropy
{balanced[3]}, to logit-adjusted cross-entropy {balanced[4]}. So use it alone, or add it to a cross-entropy that
balances the classes.

**The cost** ({cost[0]} with cross-entropy added, {cost[1]} for cross-entropy in which a miss weighs ten): the fit is
the first cause. The cost follows the number of positives in a batch, a small number whose weight grows slowly in the
fit. After 150 steps, Spearman on unseen sets is {spearman[unseen]}, cross-entropy's {spearman[ordinary]}; after 600
steps it is {spearman[longer]}. One set decides the mean: yeast1, whose share of positives is twice that of any set of
the fit. It costs {worst[0]} with the short fit and {worst[1]} with the longer one. The sum is the second cause, as
above. With the longer fit the mean is {cost[2]} alone, {cost[3]} with cross-entropy added, and {cost[4]} added to
cross-entropy in which a miss weighs ten."""


def _paired(results: Results, metric: str, ours: str, other: str) -> str:
    difference: Difference = results.difference(ours, metric, other)
    return f"difference {_interval(difference.mean, difference.low, difference.high)}"


def _interval(mean: float, low: float | None, high: float | None) -> str:
    return f"{mean:+.3f}" if low is None else f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"


def _two_digits(value: float | None) -> Cell:
    return Missing("no formula") if value is None else Number(value, f"{value:.2f}")


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
