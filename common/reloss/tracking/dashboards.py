"""The dashboard on W&B, as code: a report a task that puts ordinary losses and ReLoss side by side.

Each experiment has its curves (mean and range over the seeds of a loss), its loss against its metric, its final scores,
and the table of its runs; below them how its surrogates were learned. Only the runs that finished are shown: a run that
was interrupted is repeated by the run that went on from it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from reloss.experiment.config import Experiment
from reloss.experiment.task import tasks
from reloss.runtime.errors import RelossError, UsageError, unknown

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import Report

LOSS = "train_loss"
LEARNED = ("spearman", "spearman_synthetic", "objective")  # of the history of a fit
COLUMNS = ("config:loss.value", "config:variant.value", "config:seed.value", "config:commit.value")


def validation_score(config: Experiment) -> str:
    """Return the name under which the tasks log the score of an experiment's table on its validation examples."""
    return f"validation_{config.score}"


def dashboards(names: Sequence[str], entity: str) -> list[Report]:
    """Return the reports of tasks, one each, with the experiments that are named; all if `names` is empty.

    Args:
        names: tasks or experiments.
        entity: user or team on W&B that the reports belong to; may be empty if they are only printed.

    Raises:
        UsageError: a name that is neither.
        RelossError: what builds them is not installed.
    """
    try:
        from wandb_workspaces.reports.v2 import Report
    except ImportError:
        raise RelossError(
            "wandb-workspaces is not installed: `make setup`, or `pip install wandb-workspaces`"
        ) from None
    known = {full: task.name for task in tasks().values() for full in task.experiments}
    for name in names:
        if name not in known and name not in tasks():
            raise unknown("task or experiment", name, [*tasks(), *known])
    reports = []
    for task in tasks().values():
        chosen = [make() for full, make in task.experiments.items() if not names or {full, task.name} & set(names)]
        if chosen:
            project = os.environ.get("WANDB_PROJECT") or "reloss"
            title, told = f"{task.name}: ordinary losses and ReLoss", "Written by `reloss dashboard`."
            blocks = [block for config in chosen for block in _blocks(config)]
            reports.append(Report(project, entity=entity, title=title, description=told, blocks=blocks))
    return reports


def _blocks(config: Experiment) -> list[Any]:
    """Return the heading, the panels of the trainings, and those of the fits of an experiment."""
    from wandb_workspaces.reports.v2 import H2, BarPlot, LinePlot, P, PanelGrid, RunComparer, ScatterPlot

    validation = validation_score(config)
    mean_and_range: dict[str, Any] = {"groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    trainings = _runset("trainings", config, ("baseline", "train"), (f"summary:{config.score}", *COLUMNS))
    fits = _runset("fits", config, ("learn",), tuple(f"summary:{name}" for name in LEARNED[:2]))
    curves = [
        LinePlot(title=f"{config.score}, validation", x="step", y=[validation], **mean_and_range),
        LinePlot(title="training loss (each loss has its own scale)", x="step", y=[LOSS], **mean_and_range),
        LinePlot(title=f"training loss against {config.score}", x=LOSS, y=[validation]),
        BarPlot(
            title=f"final {config.score}, mean over seeds", metrics=[config.score], orientation="h", **mean_and_range
        ),
    ]
    learned = [LinePlot(title=name.replace("_", " "), x="step", y=[name]) for name in LEARNED]
    ranks = ScatterPlot(title="ranking recorded and synthetic items", x=_summary(LEARNED[0]), y=_summary(LEARNED[1]))
    return [
        H2(config.name),
        P(f"Paper: {config.scope_text()}. The surrogate is taught {config.metric}; the table reports {config.score}."),
        PanelGrid(runsets=[trainings], panels=[*curves, RunComparer(diff_only="split")]),
        P("How its surrogates were learned: correlations of minus the loss with the metric, on held-out items."),
        PanelGrid(runsets=[fits], panels=[*learned, ranks]),
    ]


def _summary(name: str) -> Any:
    from wandb_workspaces.reports.v2 import SummaryMetric

    return SummaryMetric(name)


def _runset(name: str, config: Experiment, stages: tuple[str, ...], columns: tuple[str, ...]) -> Any:
    """Return the finished runs of an experiment's stages, grouped by loss and variant, over the seeds."""
    from wandb_workspaces import expr
    from wandb_workspaces.reports.v2 import Runset

    wanted = expr.And(
        expr.Metric("Group") == config.name,
        expr.Config("stage").isin(list(stages)),
        expr.Metric("State") == "finished",
    )
    groups = ["config.loss", "config.variant"]
    return Runset(name=name, filters=wanted, groupby=groups, pinned_columns=list(columns))


def specs(reports: Sequence[Report]) -> list[dict[str, Any]]:
    """Return what would be sent to W&B: title and blocks, as plain values."""
    return [report._to_model().model_dump(by_alias=True, exclude_none=True, mode="json") for report in reports]


def push(names: Sequence[str]) -> list[str]:
    """Write the reports to W&B; returns their addresses.

    Raises:
        UsageError: no key.
        RelossError: W&B refused, or did not answer.
    """
    from reloss.tracking.sync import has_key
    from reloss.tracking.worker import obstacle

    if not has_key():
        raise UsageError("no key of W&B: set WANDB_API_KEY, or call `wandb login`; --print needs none")
    import wandb

    if problem := obstacle(address := wandb.setup().settings.base_url):
        raise RelossError(f"W&B does not answer at {address} ({problem})")
    try:
        entity = os.environ.get("WANDB_ENTITY") or str(wandb.Api(timeout=30).default_entity)
        reports = dashboards(names, entity)
        for report in reports:
            report.save()
        return [report.url for report in reports]
    except RelossError:
        raise
    except Exception as error:
        raise RelossError(f"W&B took no dashboard ({type(error).__name__}: {error})") from error
