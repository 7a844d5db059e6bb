"""The README's verdict: where learned losses beat the ordinary one, how often, rare classes, and a short table.

All are computed from the committed records. The sentence counts every comparison in the tables of the tasks. The short
table shows, for each experiment and initialisation, both losses with the settings that the validation split prefers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from reloss.experiment.config import Experiment
from reloss.experiment.records import RunRecord
from reloss.experiment.settings import override
from reloss.report.groups import baseline_group, group_runs, scores_by_seed
from reloss.report.pooled_table import PooledRow
from reloss.report.statistics import Difference, Side, describe, paired_difference
from reloss.report.table import Cell, Table
from reloss.report.task_table import TaskRow, outdated

LEARNED = "reloss"
RIVALS = {"ce": "cross-entropy", "ce, threshold tuned": "with a tuned threshold", "soft_f1": "soft F1 added"}
NOTE = (
    "Mean ± standard deviation over n seeds, and the paired difference with its 95 % interval. Each loss has its best "
    "settings on the validation split; without validation scores, with the fewest settings."
)
HEADERS = ("experiment", "metric", "ordinary, %", "learned, %", "difference", "n")
MOST_ROWS = 10


def unbroken(markdown: str) -> str:
    """Return a text in which no line of a narrow page ends within a mean with its deviation, or within an interval."""
    markdown = markdown.replace(" ± ", "\u202f±\u202f")
    return re.sub(r"\[([+-][\d.]+), ([+-][\d.]+)\]", "[\\1,\u00a0\\2]", markdown)


def sentence(comparisons: Iterable[tuple[str, str, Difference]]) -> str:
    """Return the verdict in one sentence: where learned losses beat the ordinary one, tie with it, and lose to it.

    Args:
        comparisons: what was compared, the score, and learned minus ordinary loss.
    """
    places: dict[Side, list[str]] = {side: [] for side in Side}
    for name, score, difference in comparisons:
        by = "" if difference.side is Side.AROUND else f" by {abs(difference.mean):.2f} points of {score}"
        places[difference.side].append(name + by)
    won, tied, lost = (", ".join(places[side]) or "none" for side in (Side.ABOVE, Side.AROUND, Side.BELOW))
    return (
        f"**Learned losses beat the ordinary one** on {won}; **tie** (the interval contains 0) on {tied}; **lose** on "
        f"{lost}. Each loss has its best settings."
    )


def verdict(rows: Iterable[TaskRow]) -> str:
    """Return one sentence that counts the comparisons of the learned loss with the ordinary one, in all settings."""
    sides = Counter(row.difference.side for row in rows if row.loss == LEARNED and row.difference)
    return (
        f"Over all settings that were run, of {sides.total() - sides[Side.SINGLE]} comparisons over two or more seeds, "
        f"the learned loss scores higher in {sides[Side.ABOVE]}, lower in {sides[Side.BELOW]}, and too close to tell "
        f"in {sides[Side.AROUND]}."
    )


def short_table(configs: Iterable[Experiment], runs: Sequence[RunRecord]) -> Table:
    """Return a table of at most MOST_ROWS comparisons over two or more seeds; see NOTE."""
    rows = [row for config in configs for row in _comparisons(config, runs)]
    return Table(HEADERS, rows[:MOST_ROWS], NOTE)


def compared(table: Table, pooled: Sequence[PooledRow], score: str) -> list[tuple[str, str, Difference]]:
    """Return the comparisons of `sentence`: cross-entropy over the pooled data sets, then the rows of `short_table`."""
    rows = [(row.mean.n, row.difference) for row in pooled if row.loss == "ce" and row.difference]
    sets = [(f"{count} real data sets with rare classes", score, difference) for count, difference in rows]
    names, scores, differences = map(table.column, ("experiment", "metric", "difference"))
    return sets + [
        (str(name), str(metric), difference)
        for name, metric, difference in zip(names, scores, differences, strict=True)
        if isinstance(difference, Difference)
    ]


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
    """Return the experiment's name, and how a run differs from training with the default learned loss alone."""
    choices = override(config, run.settings)
    recipe, features = choices.train, choices.surrogate.features
    how = ["fine-tuned"] if recipe.init == "baseline" else []
    how += [f"{features} features"] if features != config.surrogate.features else []
    how += ["ordinary loss added"] if recipe.ordinary_weight else []
    return f"{config.name} ({', '.join(how)})" if how else config.name


def pooled_verdict(rows: Sequence[PooledRow]) -> str:
    """Return one sentence on rare classes: the learned loss next to its rivals, over many data sets."""
    learned = next(row for row in rows if row.difference is None)
    rivals = [row for row in rows if row.difference is not None and row.loss in RIVALS]
    compared = "; ".join(f"{RIVALS[row.loss]} {row.mean.mean:.1f} %, difference {row.difference}" for row in rivals)
    return (
        f"On {learned.mean.n} real data sets with rare classes, the loss learned for F1 and added to cross-entropy has "
        f"a mean F1 of {learned.mean.mean:.1f} % ({compared})."
    )
