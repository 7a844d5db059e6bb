"""What learning a loss gives: the loss, and a verdict on whether it is worth training with.

A learned loss can win where it ranks predictions as the metric does and the ordinary loss does not. That can be
measured before any training: on held-out items, and on small changes of the last predictions, where training will
start. The verdict states where the two losses differ, or why nothing can be gained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from torch import nn

from reloss.learning import FitResult
from reloss.metric_loss.loss import MetricLoss, MixedLoss
from reloss.metric_loss.plain_metrics import MetricForItems
from reloss.report.table import Missing, Number, Table

if TYPE_CHECKING:
    from reloss.metric_loss.compare import Comparison

WIDTH = 100  # columns of the printed verdict
USEFUL = 0.5  # a loss that correlates less with the metric teaches little
CLEAR = 0.02  # difference of two rank correlations that matters; the ordinary loss's is no better below it


@dataclass(frozen=True)
class LearnedLoss:
    """A loss learned for a metric; `print` shows the verdict.

    Attributes:
        loss: the learned loss, frozen: loss(outputs, targets) -> scalar.
        expected: the expected metric as a loss, without learning; None if the metric has no formula here.
        ordinary: the ordinary loss.
        metric: the metric, and how it is called.
        fit: the fit of the learned loss.
        expected_fit: the measurements of the expected metric.
        recording: holds the folder of the recorded predictions.
    """

    loss: MetricLoss
    expected: MetricLoss | None
    ordinary: nn.Module
    metric: MetricForItems
    fit: FitResult
    expected_fit: FitResult | None = None
    recording: Any = field(default=None, repr=False)

    def mixed(self, weight: float = 1.0) -> MixedLoss:
        """Return ordinary loss + weight * learned loss, which often trains better than either."""
        return MixedLoss(self.ordinary, self.loss, weight)

    def table(self) -> Table:
        """Return how each loss ranks: held-out items, and small changes of the last predictions."""
        rows = [("learned", self.fit.spearman, self.fit.local.get("local_spearman"))]
        if self.expected_fit is not None:
            rows.append(("expected", self.expected_fit.spearman, self.expected_fit.local.get("local_spearman")))
        ordinary = self.fit.local.get("local_spearman_ordinary")
        rows.append((self.loss.kind.ordinary, self.fit.spearman_ordinary, ordinary))
        cells = [[name, _number(held_out), _number(local)] for name, held_out, local in rows]
        return Table(("loss", "held-out Spearman", "near the last predictions"), cells)

    def gain(self) -> tuple[float, float]:
        """Return learned minus ordinary Spearman correlation: on held-out items, and near the last predictions.

        The latter is 0 if no small change of the last predictions alters the metric.
        """
        local = self.fit.local
        near = local.get("local_spearman", 0.0) - local.get("local_spearman_ordinary", 0.0)
        return self.fit.spearman - self.fit.spearman_ordinary, near

    def verdict(self) -> str:
        """Return one sentence: worth training with, no better than the ordinary loss, or not learnable, and why.

        Where the ordinary loss ranks predictions the other way round, the sentence asks to check the direction instead.
        """
        name, ordinary = self.metric.name, self.loss.kind.ordinary
        if self.fit.spearman_ordinary < -USEFUL:
            assumed, other = ("higher", "lower") if self.metric.higher_is_better else ("lower", "higher")
            return (
                f"check the direction: the better the predictions are by {ordinary}, the worse they are by {name}, for "
                f"which {assumed} was taken to be better. If {other} is better, pass "
                f"higher_is_better={not self.metric.higher_is_better}"
            )
        held_out, near = self.gain()
        strongest = max(self.fit.spearman, self.fit.local.get("local_spearman", -1))
        if not strongest > USEFUL:
            return (
                f"not learnable: the best loss ranks predictions by {name} with a correlation of only {strongest:.2f}. "
                "Either the items differ too little: record longer, or with a larger item_size. Or the metric depends "
                "on what the outputs do not show"
            )
        if not max(held_out, near) >= CLEAR:
            return (
                f"no better than {ordinary}, which ranks these predictions by {name} as well as the learned loss does: "
                "there is little to gain"
            )
        where = " and ".join(
            text
            for gain, text in ((held_out, "on held-out items"), (near, "near the last predictions"))
            if gain >= CLEAR
        )
        return (
            f"worth training with: it follows {name} more closely than {ordinary} {where}. Train with `loss` or "
            "`mixed()`, and let `compare` decide on separate data"
        )

    def compare(
        self, train: Callable[..., Any], seeds: int | Sequence[int] = 5, rates: Sequence[float] = ()
    ) -> Comparison:
        """Train with the ordinary, the expected and the learned loss, and return the table of paired differences.

        See `reloss.metric_loss.compare.compare` for the arguments.
        """
        from reloss.metric_loss.compare import compare

        return compare(self, train, seeds, rates)

    def save_pretrained(self, path: str) -> None:
        """Write the learned loss into the folder `path`; `reloss.load` reads it."""
        self.loss.save_pretrained(path, {"metric": self.metric.name, **self.fit.summary()})

    def __str__(self) -> str:
        title = f"{self.metric}; {self.loss.kind.title}, {self.fit.validation_items} held-out items"
        return "\n".join([title, self.table().plain(), *wrap(self.verdict(), WIDTH)])


def _number(value: float | None) -> Number | Missing:
    return Missing("not measured") if value is None else Number(value, f"{value:.3f}")
