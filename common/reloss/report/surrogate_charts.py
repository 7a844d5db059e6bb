"""Charts of one surrogate: both losses against the metric, the learned loss itself, and its fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from reloss.experiment.config import FITTED_LOSSES, Experiment
from reloss.experiment.records import RunRecord, SurrogateRecord
from reloss.pipeline.pictures import read_picture
from reloss.report.charts import Chart, Series, chart
from reloss.report.colours import ROLES, loss_colour

ORDINARY = ROLES.index("ordinary")
Values = Mapping[str, Sequence[float]]
"""Measured values by name, one per item or example."""


def shown_surrogates(
    runs: Sequence[RunRecord], surrogates: Sequence[SurrogateRecord]
) -> list[tuple[str, SurrogateRecord]]:
    """Return, for each learned loss, the surrogate that most runs trained with; without such runs, the first one."""
    known = {surrogate.reference: surrogate for surrogate in surrogates}
    users = {
        loss: Counter(run.surrogate for run in runs if run.loss == loss and run.surrogate) for loss in FITTED_LOSSES
    }
    chosen = [(loss, counts.most_common(1)[0][0]) for loss, counts in users.items() if counts]
    if not chosen:
        return [("reloss", surrogate) for surrogate in surrogates[:1]]
    return [(loss, known[reference]) for loss, reference in chosen if reference in known]


def surrogate_charts(config: Experiment, loss: str, surrogate: SurrogateRecord) -> list[Chart]:
    """Return the charts of a surrogate, as far as its record holds what they draw.

    Raises:
        RelossError: a part of the record is damaged.
        KeyError: a part of the record lacks values.
    """
    ordinary, name = config.ordinary_loss, f"{loss} {surrogate.name.rpartition('/')[2][:6]}"
    colour = loss_colour(config, loss)
    picture = read_picture(surrogate) or {}
    charts: list[Chart | None] = []
    if "items" in picture:
        items, metric, fit = picture["items"], surrogate.metric, surrogate.fit
        charts.append(_metric_chart(items, "ordinary", ordinary, metric, fit["spearman_ordinary"], ORDINARY))
        charts.append(_metric_chart(items, "surrogate", name, metric, fit["spearman"], colour))
    if "curve" in picture:
        charts.append(_curve_chart(picture["curve"], ordinary, name, colour))
    if "examples" in picture:
        charts.append(_examples_chart(picture["examples"], ordinary, name, colour))
    return [drawn for drawn in (*charts, _fit_chart(surrogate, name, colour)) if drawn is not None]


def _metric_chart(items: Values, key: str, label: str, metric: str, spearman: float, colour: int) -> Chart | None:
    alt = (
        f"Scatter of the loss {label} against {metric} for {len(items['metric'])} held-out recorded items; the rank "
        f"correlation of minus the loss with the metric is {spearman:.3f}."
    )
    points = [Series(label, items["metric"], items[key], kind="points", colour=colour)]
    return chart(f"{label} against {metric}, ρ = {spearman:.3f}", f"{metric} of an item", label, points, alt)


def _curve_chart(curve: Values, ordinary: str, name: str, colour: int) -> Chart | None:
    lines = [
        Series(ordinary, curve["probability"], curve["ordinary"], colour=ORDINARY),
        Series(name, curve["probability"], curve["surrogate"], colour=colour),
    ]
    alt = f"The learned loss {name} and {ordinary} against the target's probability, minus their value at 1."
    return chart("The learned loss as a curve", "probability of the target", "loss - loss at 1", lines, alt)


def _examples_chart(examples: Values, ordinary: str, name: str, colour: int) -> Chart | None:
    points = [Series(name, examples["ordinary"], examples["surrogate"], kind="points", colour=colour)]
    alt = f"Scatter of the learned loss {name} against {ordinary} for {len(examples['ordinary'])} single examples."
    return chart("The learned loss, example by example", f"{ordinary} of an example", name, points, alt)


def _fit_chart(surrogate: SurrogateRecord, name: str, colour: int) -> Chart | None:
    lines = [line for line in surrogate.history() if "step" in line]
    if len(lines) < 2:  # nothing was learned, as for an expected metric
        return None
    series = []
    for key, label in (("spearman", "recorded items"), ("spearman_synthetic", "synthetic items")):
        measured = [line for line in lines if key in line]
        steps, values = [line["step"] for line in measured], [line[key] for line in measured]
        series.append(Series(label, steps, values, colour=colour))
    alt = f"Spearman's rank correlation of minus the loss {name} with the metric, on held-out items, during the fit."
    return chart(f"Fitting {name}", "step", "Spearman, held-out items", series, alt)
