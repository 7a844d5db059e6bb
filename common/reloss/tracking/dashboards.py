"""Dashboards on W&B as code: one report per task, with the ordinary losses and ReLoss side by side.

For each experiment, a report shows the curves (mean and range over the seeds of a loss), the loss against the metric,
the final scores and the table of runs; below them, the fits of its surrogates. Only finished runs are shown, since a
resumed run repeats the rows of the interrupted one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from reloss.experiment.config import Experiment
from reloss.experiment.task import tasks
from reloss.runtime.errors import RelossError, UsageError, unknown
from reloss.runtime.extras import install_command

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import Report

LOSS = "train_loss"
FIT_METRICS = ("spearman", "spearman_synthetic", "objective")
COLUMNS = ("config:loss.value", "config:variant.value", "config:seed.value", "config:commit.value")


def validation_score(config: Experiment) -> str:
    """Return the name under which tasks log an experiment's score on its validation examples."""
    return f"validation_{config.score}"


def dashboards(names: Sequence[str], entity: str) -> list[Report]:
    """Return one report per task.

    Args:
        names: tasks or experiments to include; all if empty.
        entity: user or team on W&B that the reports belong to; may be empty if they are only printed.

    Raises:
        UsageError: a name is neither a task nor an experiment.
        RelossError: wandb-workspaces is not installed.
    """
    try:
        from wandb_workspaces.reports.v2 import Report
    except ImportError:
        raise RelossError(f"wandb-workspaces is not installed: `{install_command('tracking')}`") from None
    known = {full: task.name for task in tasks().values() for full in task.experiments}
    for name in names:
        if name not in known and name not in tasks():
            raise unknown("task or experiment", name, [*tasks(), *known])
    reports = []
    for task in tasks().values():
        chosen = [make() for full, make in task.experiments.items() if not names or {full, task.name} & set(names)]
        if chosen:
            project = os.environ.get("WANDB_PROJECT") or "reloss"
            title, description = f"{task.name}: ordinary losses and ReLoss", "Written by `reloss dashboard`."
            blocks = [block for config in chosen for block in _blocks(config)]
            reports.append(Report(project, entity=entity, title=title, description=description, blocks=blocks))
    return reports


def _blocks(config: Experiment) -> list[Any]:
    """Return the blocks of one experiment: a heading, and the panels of its trainings and of its fits."""
    from wandb_workspaces.reports.v2 import H2, BarPlot, LinePlot, P, PanelGrid, RunComparer, ScatterPlot

    validation = validation_score(config)
    mean_and_range: dict[str, Any] = {"groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    trainings = _runset("trainings", config, ("baseline", "train"), (f"summary:{config.score}", *COLUMNS))
    fits = _runset("fits", config, ("learn",), tuple(f"summary:{name}" for name in FIT_METRICS[:2]))
    curves = [
        LinePlot(title=f"{config.score}, validation", x="step", y=[validation], **mean_and_range),
        LinePlot(title="training loss (each loss has its own scale)", x="step", y=[LOSS], **mean_and_range),
        LinePlot(title=f"training loss against {config.score}", x=LOSS, y=[validation]),
        BarPlot(
            title=f"final {config.score}, mean over seeds", metrics=[config.score], orientation="h", **mean_and_range
        ),
    ]
    fit_curves = [LinePlot(title=name.replace("_", " "), x="step", y=[name]) for name in FIT_METRICS]
    recorded, synthetic = map(_summary, FIT_METRICS[:2])
    ranks = ScatterPlot(title="ranking recorded and synthetic items", x=recorded, y=synthetic)
    return [
        H2(config.name),
        P(f"{config.scope_text()}. The surrogate is fitted to {config.metric}; the table reports {config.score}."),
        PanelGrid(runsets=[trainings], panels=[*curves, RunComparer(diff_only="split")]),
        P("The fits of its surrogates: correlation of minus the loss with the metric, on held-out items."),
        PanelGrid(runsets=[fits], panels=[*fit_curves, ranks]),
    ]


def _summary(name: str) -> Any:
    from wandb_workspaces.reports.v2 import SummaryMetric

    return SummaryMetric(name)


def _runset(name: str, config: Experiment, stages: tuple[str, ...], columns: tuple[str, ...]) -> Any:
    """Return the finished runs of an experiment's stages, grouped by loss and variant, over the seeds."""
    from wandb_workspaces import expr
    from wandb_workspaces.reports.v2 import Runset

    filters = expr.And(
        expr.Metric("Group") == config.name,
        expr.Config("stage").isin(list(stages)),
        expr.Metric("State") == "finished",
    )
    groups = ["config.loss", "config.variant"]
    return Runset(name=name, filters=filters, groupby=groups, pinned_columns=list(columns))


def specs(reports: Sequence[Report]) -> list[dict[str, Any]]:
    """Return the reports as plain values: what `push` sends to W&B."""
    return [report._to_model().model_dump(by_alias=True, exclude_none=True, mode="json") for report in reports]


def push(names: Sequence[str]) -> list[str]:
    """Write the reports to W&B and return their addresses.

    Raises:
        UsageError: there is no key.
        RelossError: W&B refuses the reports, or does not answer.
    """
    from reloss.tracking.sync import has_key
    from reloss.tracking.worker import obstacle

    if not has_key():
        raise UsageError("there is no W&B key: set WANDB_API_KEY, or call `wandb login`; --print needs none")
    import wandb

    if problem := obstacle(address := wandb.setup().settings.base_url):
        raise RelossError(
            f"W&B does not answer at {address} ({problem}); run the same command again when it answers, or use --print"
        )
    try:
        entity = os.environ.get("WANDB_ENTITY") or str(wandb.Api(timeout=30).default_entity)
        reports = dashboards(names, entity)
        for report in reports:
            report.save()
        return [report.url for report in reports]
    except RelossError:
        raise
    except Exception as error:
        raise RelossError(
            f"W&B refuses the dashboard ({type(error).__name__}: {error}); WANDB_API_KEY, WANDB_ENTITY and "
            "WANDB_PROJECT choose the account and the project"
        ) from error
