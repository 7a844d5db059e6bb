"""`reloss zoo`: the losses that are fitted already, and the card of one of them."""

from __future__ import annotations

from typing import Any

from reloss.metric_loss.kinds import KINDS
from reloss.metric_loss.zoo import FOLDER, SUFFIX, zoo_card, zoo_names
from reloss.report.table import Cell, Number, Table
from reloss.report.terminal import Layout

LAYOUT = Layout(("name", "kind", "kB", "Spearman", "ordinary", "use it for"))


def zoo_table() -> Table:
    """Return the losses of the zoo: how each ranks sets that it was not fitted on, its size, and when to use it."""
    rows: list[list[Cell]] = []
    for card in zoo_data():
        correlations = (_number(card["spearman"][key], 2) for key in ("unseen", "ordinary"))
        size = _number(card["bytes"] / 1000, 1)
        rows.append([card["name"], card["kind"], size, *correlations, card["use"], card["metric"], card["shapes"]])
    return Table((*LAYOUT.columns, "metric", "shapes"), rows)


def zoo_note() -> str:
    """Return what the table of the zoo does not explain: the columns, and the shapes of each kind."""
    lines = ["Spearman: with the metric, on sets that the loss was not fitted on; ordinary: the ordinary loss's."]
    kinds = {card["kind"] for card in zoo_data()}
    return "\n".join([*lines, *(f"{kind}: {KINDS[kind].shapes}." for kind in sorted(kinds))])


def zoo_data() -> list[dict[str, Any]]:
    """Return the cards of all losses, with the size of the file and the shapes of a batch."""
    return [card_data(name) for name in zoo_names()]


def card_data(name: str) -> dict[str, Any]:
    """Return the card of one loss, with the size of its file and the shapes of a batch.

    Raises:
        UsageError: there is no such loss; the message names the nearest ones.
    """
    card = zoo_card(name)
    size = (FOLDER / f"{name}{SUFFIX}").stat().st_size
    return {**card, "bytes": size, "shapes": KINDS[card["kind"]].shapes}


def zoo_text(name: str) -> str:
    """Return the card of one loss as text.

    Raises:
        UsageError: there is no such loss; the message names the nearest ones.
    """
    card = zoo_card(name)
    spearman, training = card["spearman"], card["training"]
    by_size = spearman["sizes"]
    sizes = ", ".join(f"{by_size[size]:.2f} for items of {size}" for size in sorted(by_size, key=int))
    lines = [
        f"{name}: {card['metric']}; {KINDS[card['kind']].title} (kind={card['kind']})",
        f"batches: {KINDS[card['kind']].shapes}",
        f"use it for: {card['use']}",
        f"Spearman on sets it was not fitted on: {spearman['unseen']:.3f} ({sizes}); "
        f"{card['ordinary']} {spearman['ordinary']:.3f}; {_expected(spearman['expected'])}",
        f"training on sets it was not fitted on, mean of {len(card['sets'])}: "
        f"{card['ordinary']} {training[card['ordinary']]:.3f}; "
        + "; ".join(_trained(method, facts) for method, facts in training.items() if isinstance(facts, dict)),
        f"when to fit your own: {card['fit_your_own']}",
        f"fitted on: {', '.join(card['sets'])}. {card['terms']}",
    ]
    return "\n".join(lines)


def _trained(method: str, facts: dict[str, float]) -> str:
    return f"{method} {facts['mean']:.3f} ({facts['difference']:+.3f} [{facts['low']:+.3f}, {facts['high']:+.3f}])"


def _expected(correlation: float | None) -> str:
    return "there is no expected metric" if correlation is None else f"the expected metric {correlation:.3f}"


def _number(value: float, digits: int) -> Number:
    return Number(value, f"{value:.{digits}f}")
