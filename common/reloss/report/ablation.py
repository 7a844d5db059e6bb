"""The table of the ablation: one row a variant, with its paired difference to the ordinary loss on held-out images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from reloss.errors import UsageError
from reloss.experiment.ablation import Variant
from reloss.experiment.record import read_summaries
from reloss.experiment.task import ablations, find_experiment
from reloss.files import read_json
from reloss.report.statistics import Difference, Sample, describe, paired_difference
from reloss.report.tables import written

RANKINGS = ("spearman_synthetic", "spearman", "spearman_checkpoints", "kendall_checkpoints", "spearman_late")
HEADERS = (
    *("experiment", "factor", "value", "Spearman synthetic", "Spearman recorded", "Spearman checkpoints"),
    *("Kendall checkpoints", "Spearman late checkpoints", "validation, %", "difference to baseline", "test, %", "n"),
    *("learning, s", "status"),
)
NOTE = (
    "One factor at a time around the centre, loss reloss with fidelity=corrected. Scores: mean ± standard deviation "
    "over n seeds; the difference is paired by seed with the baseline on the validation split, with its 95 % t "
    "interval. "
    "Spearman and Kendall: of minus the loss with the metric, on held-out synthetic and recorded items, and between "
    "the checkpoints of all runs (`reloss diagnose`); late ones are the second half of each run's."
)


@dataclass(frozen=True)
class AblationRow:
    """One variant of one experiment, over seeds. Scores in percent; None where there is none."""

    experiment: str
    factor: str
    value: str
    rankings: dict[str, float]
    validation: Sample | None
    difference: Difference | None
    test: Sample | None
    seconds: float | None
    status: str
    commits: tuple[str, ...]


def ablation_rows(runs: Path) -> list[AblationRow]:
    """Return the rows of all tasks' ablations, run or not.

    Raises:
        UsageError: there is no folder `runs`.
    """
    if not runs.is_dir():
        raise UsageError(f"no folder of records at {runs}; name it with --runs, or begin with `reloss sweep ablation`")
    summaries = read_summaries(runs)
    rows = []
    for ablation in ablations():
        for experiment in ablation.experiments:
            mine = [summary for summary in summaries if summary["experiment"] == experiment]
            rows += _rows(experiment, ablation.variants, mine, runs)
    return rows


def recommended(rows: Sequence[AblationRow]) -> AblationRow | None:
    """Return the variant whose paired difference to the baseline is best on the validation split, if any was run."""
    compared = [row for row in rows if row.difference is not None]
    return max(compared, key=lambda row: row.difference.mean) if compared else None  # type: ignore[union-attr]


def _rows(
    experiment: str, variants: Sequence[Variant], summaries: Sequence[dict[str, Any]], runs: Path
) -> list[AblationRow]:
    config = find_experiment(experiment)[1]
    ordinary = [summary["settings"] for summary in summaries if summary["loss"] == config.ordinary_loss]
    common: list[str] = min(ordinary, key=len, default=[])  # what the sweep set for all, such as data.format=folder
    groups = [_matching(summaries, variant.loss, (*common, *variant.settings)) for variant in variants]
    baseline = _scores(_matching(summaries, config.ordinary_loss, tuple(common)), f"validation_{config.score}")
    path = runs / experiment / "diagnostics" / "diagnostics.json"
    diagnosed = {entry.get("folder"): entry for entry in (read_json(path) if path.exists() else [])}
    return [
        _row(experiment, variant, group, config.score, baseline, diagnosed)
        for variant, group in zip(variants, groups, strict=True)
    ]


def _matching(summaries: Sequence[dict[str, Any]], loss: str, settings: tuple[str, ...]) -> list[dict[str, Any]]:
    return [s for s in summaries if s["loss"] == loss and sorted(s["settings"]) == sorted(settings)]


def _row(
    experiment: str,
    variant: Variant,
    mine: Sequence[dict[str, Any]],
    score: str,
    baseline: dict[int, float],
    diagnosed: dict[str | None, dict[str, Any]],
) -> AblationRow:
    validation, test = _scores(mine, f"validation_{score}"), _scores(mine, score)
    fits = [summary["surrogate"] for summary in mine if "surrogate" in summary]
    entry = diagnosed.get(fits[0]["folder"] if fits else None, {}) if mine else {}
    found = {**(fits[0] if fits else {}), **entry}
    is_baseline = variant.factor == "baseline"
    return AblationRow(
        experiment=experiment,
        factor=variant.factor,
        value=variant.value,
        rankings={name: found[name] for name in RANKINGS if name in found},
        validation=describe(list(validation.values())) if validation else None,
        difference=paired_difference(validation, baseline) if validation and baseline and not is_baseline else None,
        test=describe(list(test.values())) if test else None,
        seconds=mean(fit["seconds"] for fit in fits) if fits else None,
        status=_status(mine),
        commits=tuple(sorted({summary["environment"].get("commit", "unknown") for summary in mine})),
    )


def _scores(summaries: Sequence[dict[str, Any]], score: str) -> dict[int, float]:
    """Return a score in percent by seed, of finished runs that have it."""
    return {s["seed"]: 100 * s["scores"][score] for s in summaries if score in s["scores"]}


def _status(summaries: Sequence[dict[str, Any]]) -> str:
    if not summaries:
        return "not run (no record)"
    unfinished = [
        f"seed {s['seed']} {s['status']}" + (f": {s['cause']}" if "cause" in s else "")
        for s in summaries
        if s["status"] != "finished"
    ]
    return "; ".join(unfinished) or "finished"


def cells(row: AblationRow) -> list[str]:
    """Return the texts of a row, in the order of HEADERS."""
    missing = "not run" if row.status.startswith("not run") else "none"
    return [
        *(row.experiment, row.factor, row.value),
        *(f"{row.rankings[name]:.3f}" if name in row.rankings else missing for name in RANKINGS),
        *(_sample(row.validation, missing), _difference(row, missing), _sample(row.test, missing)),
        *(str(row.validation.n if row.validation else 0), f"{row.seconds:.0f}" if row.seconds is not None else missing),
        row.status,
    ]


def _sample(sample: Sample | None, missing: str) -> str:
    return sample.shown() if sample is not None else missing


def _difference(row: AblationRow, missing: str) -> str:
    if row.difference is None:
        return "is the baseline" if row.factor == "baseline" else missing
    return row.difference.shown()


def render_ablation(rows: Sequence[AblationRow], format: str) -> str:
    """Return the table as `md`, `csv`, `tex` (booktabs) or `json`.

    Raises:
        UsageError: another format.
    """
    commits = sorted({commit for row in rows for commit in row.commits})
    note = f"{NOTE} Commits: {', '.join(commits) or 'none'}."
    return written(format, HEADERS, [cells(row) for row in rows], note, [asdict(row) for row in rows])
