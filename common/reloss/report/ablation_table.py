"""The table of the ablation: one row per variant, with its paired difference to the ordinary loss on validation."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

from reloss.experiment.config import FITTED_LOSSES, Experiment
from reloss.experiment.records import Records, RunRecord
from reloss.experiment.task import ablations, find_experiment
from reloss.report.groups import Key, commits, group_key, group_runs, scores_by_seed, unfinished_runs
from reloss.report.row_status import RowKind, RowStatus
from reloss.report.statistics import (
    Difference,
    Sample,
    describe,
    difference_data,
    paired_difference,
    sample_data,
)
from reloss.report.table import Cell, Missing, Number, Table
from reloss.sweep.ablation import ABLATION, Variant

BASELINE, CENTRE = "baseline", "centre"
"""The factors of the two variants that all others are compared with: the ordinary loss, and the unchanged surrogate."""

RANKINGS = {
    "spearman_synthetic": "Spearman synthetic",
    "spearman": "Spearman recorded",
    "spearman_checkpoints": "Spearman checkpoints",
    "kendall_checkpoints": "Kendall checkpoints",
    "spearman_late": "Spearman late checkpoints",
}
"""The rank correlations by their name in the records, with their headers."""

HEADERS = (
    *("experiment", "factor", "value", *RANKINGS.values(), "validation, %", "difference to baseline", "test, %"),
    *("n", "learning, s", "status"),
)
NOTE = (
    "One factor at a time is changed around the centre, which is the loss reloss with fidelity=corrected. Scores: mean "
    "± standard deviation over n seeds. Difference: paired by seed with the baseline on the validation split, with its "
    "95 % t interval. Spearman and Kendall: rank correlation of minus the loss with the metric, on held-out synthetic "
    "and recorded items, and over the checkpoints of all runs (`reloss diagnose`); late ones are the second half of "
    "each run."
)


@dataclass(frozen=True)
class AblationRow:
    """One variant of one experiment, over seeds. Scores are in percent; None stands for a missing value.

    Attributes:
        experiment: name of the experiment.
        factor: the factor that is changed, or `baseline` or `centre`.
        value: the value of the factor.
        rankings: the measured rank correlations, by the keys of RANKINGS.
        validation: score on the validation split.
        difference: difference to the baseline on the validation split.
        test: score on the test split.
        seconds: mean duration of a fit.
        status: whether all runs finished.
        commits: commits of the code that ran.
    """

    experiment: str
    factor: str
    value: str
    rankings: dict[str, float]
    validation: Sample | None
    difference: Difference | None
    test: Sample | None
    seconds: float | None
    status: RowStatus
    commits: tuple[str, ...]


def ablation_rows(records: Records) -> list[AblationRow]:
    """Return the rows of all tasks' ablations, run or not."""
    return [
        row
        for ablation in ablations()
        if ablation.name == ABLATION
        for experiment in ablation.experiments
        for row in _experiment_rows(experiment, ablation.variants, records)
    ]


def _experiment_rows(experiment: str, variants: Sequence[Variant], records: Records) -> list[AblationRow]:
    config = find_experiment(experiment)[1]
    groups = group_runs(config, (run for run in records.runs if run.experiment == experiment))
    variant_groups = _variant_groups(config, variants, groups)
    baseline = next(group for variant, group in variant_groups.items() if variant.factor == BASELINE)
    reference = scores_by_seed(baseline, f"validation_{config.score}")
    return [
        _row(experiment, variant, group, config.score, reference, _rankings(experiment, group, records))
        for variant, group in variant_groups.items()
    ]


def _variant_groups(
    config: Experiment, variants: Sequence[Variant], groups: Mapping[Key, Sequence[RunRecord]]
) -> dict[Variant, Sequence[RunRecord]]:
    """Return the runs of each variant, which may have none.

    All variants of a sweep may share further settings, such as data.format=folder. They are the settings of the
    smallest group without a factor: for learned losses, which use more settings, and for the ordinary loss.
    """
    own = {variant: group_key(config, variant.loss, variant.settings)[1] for variant in variants}
    factors = {setting for settings in own.values() for setting in settings}
    plain = [(loss, settings) for loss, settings in groups if factors.isdisjoint(settings)]

    def settings_of(losses: Collection[str], keys: Iterable[Key]) -> list[tuple[str, ...]]:
        return [settings for loss, settings in keys if loss in losses]

    baseline = {config.ordinary_loss}
    ordinary = min(settings_of(baseline, plain) or settings_of(baseline, groups), key=len, default=())
    learned = min(settings_of(FITTED_LOSSES, plain), key=len, default=ordinary)
    keys = {
        variant: (variant.loss, tuple(sorted((*settings, *(learned if variant.loss in FITTED_LOSSES else ordinary)))))
        for variant, settings in own.items()
    }
    return {variant: groups.get(key, []) for variant, key in keys.items()}


def _rankings(experiment: str, group: Sequence[RunRecord], records: Records) -> dict[str, float]:
    """Return the rank correlations of the group's loss: over items by its fit, over checkpoints by the diagnosis."""
    if not group:
        return {}
    first = next((run for run in group if run.surrogate), None)
    fit, surrogate = (first.fit, first.surrogate) if first else ({}, "")
    figures = {**fit, **records.rankings.get((experiment, surrogate), {})}
    return {name: figures[name] for name in RANKINGS if name in figures}


def _row(
    experiment: str,
    variant: Variant,
    group: Sequence[RunRecord],
    score: str,
    reference: Mapping[int, float],
    rankings: dict[str, float],
) -> AblationRow:
    """Return the row of one variant; `reference` holds the baseline's scores on the validation split by seed."""
    validation, test = scores_by_seed(group, f"validation_{score}"), scores_by_seed(group, score)
    seconds = [run.fit["seconds"] for run in group if run.surrogate and "seconds" in run.fit]
    return AblationRow(
        experiment=experiment,
        factor=variant.factor,
        value=variant.value,
        rankings=rankings,
        validation=describe(list(validation.values())) if validation else None,
        difference=paired_difference(validation, reference) if variant.factor != BASELINE else None,
        test=describe(list(test.values())) if test else None,
        seconds=mean(seconds) if seconds else None,
        status=_status(group),
        commits=commits(group),
    )


def _status(group: Sequence[RunRecord]) -> RowStatus:
    if not group:
        return RowStatus(RowKind.NOT_RUN, "no record")
    unfinished = unfinished_runs(group)
    return RowStatus(RowKind.INCOMPLETE, "; ".join(unfinished)) if unfinished else RowStatus(RowKind.FINISHED)


def started_ablations(rows: Sequence[AblationRow]) -> list[AblationRow]:
    """Return the rows of the experiments whose ablation was started, with more than baseline and centre run."""
    started = {row.experiment for row in rows if row.factor not in (BASELINE, CENTRE) and row.status.is_run}
    return [row for row in rows if row.experiment in started]


def best_variants(rows: Sequence[AblationRow]) -> dict[str, AblationRow]:
    """Return the variant with the best paired difference on the validation split, by experiment."""
    compared = sorted((row.difference.mean, index) for index, row in enumerate(rows) if row.difference)
    return {rows[index].experiment: rows[index] for _, index in compared}


def ablation_table(rows: Sequence[AblationRow]) -> Table:
    """Return the table of the rows."""
    best = [
        f"{experiment}: {row.factor} {row.value}, {row.difference}" for experiment, row in best_variants(rows).items()
    ]
    used = sorted({commit for row in rows for commit in row.commits})
    note = f"{NOTE} Best differences: {'; '.join(best) or 'none'}. Commits: {', '.join(used) or 'none'}."
    return Table(HEADERS, [_cells(row) for row in rows], note, objects=[_object(row) for row in rows])


def _object(row: AblationRow) -> dict[str, Any]:
    values = {**asdict(row), "status": str(row.status)}
    for name in ("rankings", "validation", "difference", "test"):
        del values[name]
    values |= {name: row.rankings.get(name) for name in RANKINGS}
    values |= sample_data(row.validation, "validation_") | sample_data(row.test, "test_")
    return {**values, **difference_data(row.difference)}


def _cells(row: AblationRow) -> list[Cell]:
    """Return the cells of a row, in the order of HEADERS."""
    missing = Missing("none" if row.status.is_run else "not run")
    scored = row.validation or row.test
    difference = Missing("is the baseline") if row.factor == BASELINE else missing
    return [
        *(row.experiment, row.factor, row.value),
        *(row.rankings.get(name, missing) for name in RANKINGS),
        *(row.validation or missing, row.difference or difference, row.test or missing, scored.n if scored else 0),
        Number(row.seconds, f"{row.seconds:.0f}") if row.seconds is not None else missing,
        row.status,
    ]
