"""The table of the ablation: one row a variant, with its paired difference to the ordinary loss on held-out images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from operator import itemgetter
from pathlib import Path
from statistics import mean

from reloss.experiment.records import Records, RunRecord, read_records
from reloss.experiment.task import ablations, find_experiment
from reloss.report.groups import commits, group, key_of, scores, unfinished
from reloss.report.statistics import Difference, Sample, describe, paired_difference
from reloss.report.tables import existing, written
from reloss.sweep.ablation import Variant

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


def ablation_rows(runs: Path, damaged: list[str] | None = None) -> list[AblationRow]:
    """Return the rows of all tasks' ablations, run or not.

    Damaged records are said in the list `damaged`, if there is one, and left out.

    Raises:
        UsageError: there is no folder `runs`.
        RelossError: a record or a diagnosis is damaged, and there is no list to say so in.
    """
    return rows_of(read_records(existing(runs, "reloss sweep ablation"), damaged))


def rows_of(records: Records) -> list[AblationRow]:
    """Return the rows, given all records."""
    rows = []
    for ablation in ablations():
        for experiment in ablation.experiments:
            rows += _rows(experiment, ablation.variants, records)
    return rows


def best_variants(rows: Sequence[AblationRow]) -> dict[str, AblationRow]:
    """Return the variant with the best paired difference to the baseline on the validation split, by experiment."""
    compared = sorted(((row.difference.mean, row) for row in rows if row.difference), key=itemgetter(0))
    return {row.experiment: row for _, row in compared}


def _rows(experiment: str, variants: Sequence[Variant], records: Records) -> list[AblationRow]:
    config = find_experiment(experiment)[1]
    groups = group(run for run in records.runs if run.experiment == experiment)
    ordinary = [settings for loss, settings in groups if loss == config.ordinary_loss]
    common = min(ordinary, key=len, default=())  # what the sweep set for all, such as data.format=folder
    reference = scores(groups.get((config.ordinary_loss, common), []), f"validation_{config.score}")
    return [
        _row(
            experiment,
            variant,
            groups.get(key_of(variant.loss, (*common, *variant.settings)), []),
            config.score,
            reference,
            records,
        )
        for variant in variants
    ]


def _row(
    experiment: str,
    variant: Variant,
    mine: Sequence[RunRecord],
    score: str,
    reference: dict[int, float],
    records: Records,
) -> AblationRow:
    validation, test = scores(mine, f"validation_{score}"), scores(mine, score)
    fits = [(run.surrogate, run.fit) for run in mine if run.surrogate]
    seconds = [fit["seconds"] for _, fit in fits if "seconds" in fit]
    surrogate, fit = fits[0] if fits else ("", {})
    found = {**fit, **records.rankings.get((experiment, surrogate), {})} if mine else {}
    return AblationRow(
        experiment=experiment,
        factor=variant.factor,
        value=variant.value,
        rankings={name: found[name] for name in RANKINGS if name in found},
        validation=describe(list(validation.values())) if validation else None,
        difference=paired_difference(validation, reference) if variant.factor != "baseline" else None,
        test=describe(list(test.values())) if test else None,
        seconds=mean(seconds) if seconds else None,
        status=("; ".join(unfinished(mine)) or "finished") if mine else "not run (no record)",
        commits=commits(mine),
    )


def cells(row: AblationRow) -> list[str]:
    """Return the texts of a row, in the order of HEADERS."""
    missing = "not run" if row.status.startswith("not run") else "none"
    scored = row.validation or row.test
    return [
        *(row.experiment, row.factor, row.value),
        *(f"{row.rankings[name]:.3f}" if name in row.rankings else missing for name in RANKINGS),
        *(_sample(row.validation, missing), _difference(row, missing), _sample(row.test, missing)),
        *(str(scored.n if scored else 0), f"{row.seconds:.0f}" if row.seconds is not None else missing),
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
    made_at = sorted({commit for row in rows for commit in row.commits})
    best = [
        f"{experiment}: {row.factor} {row.value}, {_difference(row, 'none')}"
        for experiment, row in best_variants(rows).items()
    ]
    note = f"{NOTE} Best differences: {'; '.join(best) or 'none'}. Commits: {', '.join(made_at) or 'none'}."
    return written(format, HEADERS, [cells(row) for row in rows], note, [asdict(row) for row in rows])
