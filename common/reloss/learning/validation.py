"""Validation: how well a surrogate ranks held-out items, and the warning if it ranks them badly.

The surrogate is measured on recorded items with their true targets, which is what the loss has to rank in training, and
on synthetic items. The best weights are chosen on the kind of items that the fit learns from.
"""

from __future__ import annotations

import torch

from reloss.learning.items import are_scores
from reloss.learning.local_diagnostics import preferred_positives
from reloss.learning.measure import Measure
from reloss.learning.objective import check_finite
from reloss.learning.options import LearnOptions
from reloss.learning.sampling import ScoredItems
from reloss.ranking import spearman
from reloss.surrogates import SurrogateLoss

VANISHING = 0.05  # predicted positives per true positive, at the threshold that a loss prefers
FEW = 20  # with fewer held-out items, a rank correlation is not reliable


class Validation:
    """The held-out items of a fit.

    Args:
        recorded: held-out recorded items.
        synthetic: synthetic items made from them.
        options: the objective, and the mixture of items that the fit learns from.
    """

    def __init__(self, recorded: ScoredItems, synthetic: ScoredItems, options: LearnOptions) -> None:
        self.recorded, self.synthetic, self.options = recorded, synthetic, options

    def __len__(self) -> int:
        """Return the number of held-out recorded items."""
        return len(self.recorded.metric)

    def measure(self, surrogate: SurrogateLoss) -> dict[str, float]:
        """Return Spearman's correlation of minus the loss with the metric, on both kinds of items.

        With objective `value`, also the mean squared difference of the loss from 1 - metric.

        Raises:
            RelossError: a loss is NaN or infinite.
        """
        figures = {}
        for suffix, scored in (("", self.recorded), ("_synthetic", self.synthetic)):
            figures[f"spearman{suffix}"] = _correlation(surrogate, scored)
            if self.options.objective == "value":
                figures[f"squared_error{suffix}"] = _squared_error(surrogate, scored)
        return figures

    def score(self, figures: dict[str, float]) -> float:
        """Return the figure that decides which weights are the best; higher is better.

        It is measured on recorded items if the fit learns from them and their metric varies, else on synthetic ones.
        """
        metric = self.recorded.metric
        suffix = "" if "recorded" in self.options.shares() and (metric != metric[0]).any() else "_synthetic"
        if self.options.objective == "value":
            return -figures[f"squared_error{suffix}"]
        return figures[f"spearman{suffix}"]

    @torch.no_grad()
    def measure_ordinary_loss(self, surrogate: SurrogateLoss) -> float:
        """Return Spearman's correlation of minus the ordinary loss with the metric, on recorded items."""
        losses = surrogate.ordinary_loss(self.recorded.items.outputs, self.recorded.items.targets)
        return float(spearman(-losses, self.recorded.metric))

    def few_items_warning(self) -> str | None:
        """Return the warning that the correlations are not reliable, or None with enough items."""
        if len(self) >= FEW:
            return None
        return (
            f"warning: only {len(self)} held-out items are ranked, so their correlation is not reliable; record "
            "longer, or with a smaller item_size"
        )

    def vanishing_positives_warning(self, surrogate: SurrogateLoss) -> str | None:
        """Return the warning that the loss prefers to predict almost no positives, or None; for scores alone."""
        items = self.recorded.items
        if not are_scores(items) or not (items.targets > 0).any():
            return None
        ratio = preferred_positives(surrogate.per_item, items)
        if ratio >= VANISHING:
            return None
        return (
            f"warning: the loss is smallest where {ratio:.2f} positives are predicted per true positive, so predicted "
            "positives can vanish in training; add the ordinary loss to it, as train.ordinary_weight=1 does"
        )

    def bad_ranking_warning(self, surrogate: SurrogateLoss, measure: Measure) -> str:
        """Return the warning that the surrogate does not rank the held-out recorded items as the metric does."""
        metric = self.recorded.metric
        if (metric == metric[0]).all():
            return (
                f"warning: metric {measure.name} is {measure.sign * metric[0]:g} for all held-out recorded items, so "
                "they cannot show how well the surrogate ranks; record predictions of all qualities"
            )
        remedies = ["the opposite higher_is_better", "a longer recording, with early predictions"]
        if "recorded" not in self.options.shares():
            remedies.insert(1, "mixture=half")
        if surrogate.options().get("output", "monotone") != "monotone":
            remedies.insert(1, "output=monotone")
        return (
            f"warning: the surrogate does not rank held-out recorded items as {measure.name} does (Spearman <= 0); "
            f"try {', '.join(remedies[:-1])} or {remedies[-1]}"
        )


@torch.no_grad()
def _correlation(surrogate: SurrogateLoss, scored: ScoredItems) -> float:
    losses = surrogate.per_item(scored.items.outputs, scored.items.targets)
    check_finite(losses)
    return float(spearman(-losses, scored.metric))


@torch.no_grad()
def _squared_error(surrogate: SurrogateLoss, scored: ScoredItems) -> float:
    losses = surrogate.per_item(scored.items.outputs, scored.items.targets)
    return float((losses - 1 + scored.metric).square().mean())
