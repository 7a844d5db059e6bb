"""Compares the metrics of a record with the dashboard that shows them and the page that documents them."""

from pathlib import Path
from re import findall
from typing import Any

from reloss.experiment.metrics_log import read_metrics
from reloss.experiment.task import find_experiment
from reloss.runtime.files import read_json
from reloss.tracking.dashboards import LOSS, dashboards, specs

PAGE = Path(__file__).parents[1] / "docs" / "tracking.md"


def panels(experiment: str) -> dict[str, set[str]]:
    """The metrics in an experiment's panels, of its trainings and its fits; final scores begin with `summary:`."""
    (spec,) = specs(dashboards([experiment], entity=""))
    named: dict[str, set[str]] = {}
    for block in spec["spec"]["blocks"]:
        if block["type"] == "panel-grid":
            found = named.setdefault(block["metadata"]["runSets"][0]["name"], set())
            for panel in block["metadata"]["panelBankSectionConfig"]["panels"]:
                found |= metrics_of(panel["viewType"], panel["config"])
    return named


def metrics_of(kind: str, config: dict[str, Any]) -> set[str]:
    named = {*config.get("metrics", []), config.get("xAxis"), config.get("yAxis")} - {None}
    return {f"summary:{name}" for name in named} if kind == "Bar Chart" else named


def check_logged(record: Path) -> None:
    """Check that every metric on the dashboard is in the record, and that every metric in the record is documented."""
    summary = read_json(record / "summary.json")
    named = panels(summary["experiment"])
    rows = read_metrics(record / "metrics.jsonl")
    logged = {name for row in rows for name in row}
    score = find_experiment(summary["experiment"])[1].score
    assert any({LOSS, f"validation_{score}"} <= row.keys() for row in rows)  # the panel of one against the other
    assert named["trainings"] <= logged | {f"summary:{name}" for name in summary["scores"]}
    if "surrogate" in summary:
        folder = record.parents[1] / summary["surrogate"]["folder"]
        of_fit = {name for line in read_metrics(folder / "history.jsonl") for name in line}
        figures = read_json(folder / "surrogate.json")["fit"]
        assert named["fits"] <= of_fit | {f"summary:{name}" for name in figures}
        logged |= of_fit
    documented = {name.replace("<score>", score) for name in findall(r"`([^`]+)`", PAGE.read_text(encoding="utf-8"))}
    assert logged <= documented
