"""The README's verdict: how often the learned loss beats the ordinary one, rare classes in a sentence, a short table.

All are computed from the committed records. The sentence counts every comparison in the tables of the tasks. The short
table shows, for each experiment and initialisation, both losses with the settings that the validation split prefers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from reloss.experiment.config import Experiment
from reloss.experiment.records import RunRecord
from reloss.experiment.settings import override
from reloss.report.groups import baseline_group, group_runs, scores_by_seed
from reloss.report.pooled_table import PooledRow
from reloss.report.statistics import describe, paired_difference
from reloss.report.table import Cell, Table
from reloss.report.task_table import TaskRow, outdated

LEARNED = "reloss"
RIVALS = {"ce": "cross-entropy", "ce, threshold tuned": "with a tuned threshold", "soft_f1": "soft F1 added"}
NOTE = (
    "Mean ± standard deviation, and the paired difference with its 95 % interval. Each loss is shown with its best "
    "settings on the validation split; without validation scores, with the fewest settings."
)
HEADERS = ("experiment", "metric", "ordinary loss, %", "learned loss, %", "difference", "seeds")
MOST_ROWS = 10


def verdict(rows: Iterable[TaskRow]) -> str:
    """Return one sentence that counts the comparisons of the learned loss with the ordinary one."""
    differences = [row.difference for row in rows if row.loss == LEARNED and row.difference is not None]
    intervals = [(each.low, each.high) for each in differences if each.low is not None and each.high is not None]
    above, below = sum(low > 0 for low, _ in intervals), sum(high < 0 for _, high in intervals)
    return (
        f"Of {len(intervals)} comparisons with the ordinary loss, paired over two or more seeds, the learned loss "
        f"scores higher in {above}, lower in {below}, and too close to tell in {len(intervals) - above - below} "
        "(95 % intervals)."
    )


def short_table(configs: Iterable[Experiment], runs: Sequence[RunRecord]) -> Table:
    """Return a table of at most MOST_ROWS comparisons over two or more seeds; see NOTE."""
    rows = [row for config in configs for row in _comparisons(config, runs)]
    return Table(HEADERS, rows[:MOST_ROWS], NOTE)


def _comparisons(config: Experiment, runs: Sequence[RunRecord]) -> Iterator[list[Cell]]:
    """Yield a row for each protocol and initialisation in which both losses were run."""
    groups = group_runs(config, (run for run in runs if run.experiment == config.name))
    groups = {
        key: group
        for key, group in groups.items()
        if len(scores_by_seed(group, config.score)) > 1 and not outdated(config, group[0])
    }
    for (loss, _), group in groups.items():
        is_preferred = baseline_group(groups, config.ordinary_loss, group[0], config.score) is group
        learned = baseline_group(groups, LEARNED, group[0], config.score)
        if loss != config.ordinary_loss or not is_preferred or not learned:
            continue
        ordinary_scores, scores = (scores_by_seed(each, config.score) for each in (group, learned))
        difference = paired_difference(scores, ordinary_scores)
        if difference is not None:
            samples = [describe(list(values.values())) for values in (ordinary_scores, scores)]
            yield [_name(config, learned[0]), config.score, *samples, difference, difference.n]


def _name(config: Experiment, run: RunRecord) -> str:
    """Return the experiment's name, and how a run was trained if not from scratch with the learned loss alone."""
    recipe = override(config, run.settings).train
    fine_tuned = ["fine-tuned"] if recipe.init == "baseline" else []
    added = [f"plus {_weight(recipe.ordinary_weight)} x ordinary"] if recipe.ordinary_weight else []
    return ", ".join([config.name, *fine_tuned, *added])


def _weight(weight: float | str) -> str:
    return weight if isinstance(weight, str) else f"{weight:g}"


def pooled_verdict(rows: Sequence[PooledRow]) -> str:
    """Return one sentence on rare classes: the learned loss next to its rivals, over many data sets."""
    learned = next(row for row in rows if row.difference is None)
    rivals = [row for row in rows if row.difference is not None and row.loss in RIVALS]
    compared = "; ".join(f"{RIVALS[row.loss]} {row.mean.mean:.1f} %, difference {row.difference}" for row in rivals)
    return (
        f"On {learned.mean.n} real data sets with rare classes, the loss learned for F1 and added to cross-entropy has "
        f"a mean F1 of {learned.mean.mean:.1f} % ({compared})."
    )
