"""Records gathered for a table: those of one loss with the same settings, over seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import mean

from reloss.experiment.config import Experiment
from reloss.experiment.records import RunRecord

RATE, BEGINNING = "train.lr=", "train.init="

Key = tuple[str, tuple[str, ...]]
"""A loss and its settings, sorted."""


def key_of(loss: str, settings: Iterable[str]) -> Key:
    """Return the key of a group, whatever the order in which the settings were given."""
    return loss, tuple(sorted(settings))


def group(summaries: Iterable[RunRecord]) -> dict[Key, list[RunRecord]]:
    """Return the summaries of one experiment by loss and settings."""
    groups: dict[Key, list[RunRecord]] = defaultdict(list)
    for summary in summaries:
        groups[key_of(summary.loss, summary.settings)].append(summary)
    return dict(groups)


def scores(summaries: Iterable[RunRecord], score: str) -> dict[int, float]:
    """Return a score in percent by seed, of finished runs that have it."""
    kept = [summary for summary in summaries if summary.status == "finished" and score in summary.scores]
    return {summary.seed: 100 * summary.scores[score] for summary in kept}


def rate_of(config: Experiment, settings: Iterable[str]) -> float:
    """Return the learning rate of a run with `settings`."""
    given = [setting.removeprefix(RATE) for setting in settings if setting.startswith(RATE)]
    return float(given[0] if given else config.model_dump()["train"]["lr"])


def baseline(groups: Mapping[Key, Sequence[RunRecord]], loss: str, like: RunRecord, score: str) -> Sequence[RunRecord]:
    """Return the group of the ordinary `loss` that `like` is compared with, empty if there is none.

    It has the same protocol and begins with the same weights, for fine-tuning comes on top of another training. Of
    several, which differ in what may be tuned, the one with the best mean `score` on the validation split; where none
    has that, the one with the fewest settings.
    """

    def preference(mine: Sequence[RunRecord]) -> tuple[float, int]:
        validated = scores(mine, f"validation_{score}").values()
        return mean(validated) if validated else float("-inf"), -len(mine[0].settings)

    def alike(mine: RunRecord) -> bool:
        return bool(mine.protocol == like.protocol and _beginning(mine) == _beginning(like))

    same = (mine for key, mine in groups.items() if key[0] == loss and alike(mine[0]))
    return max(same, key=preference, default=[])


def _beginning(summary: RunRecord) -> list[str]:
    return [setting for setting in summary.settings if setting.startswith(BEGINNING)]


def commits(summaries: Iterable[RunRecord]) -> tuple[str, ...]:
    """Return the commits that the runs were made at."""
    return tuple(sorted({summary.commit for summary in summaries}))


def unfinished(summaries: Iterable[RunRecord]) -> list[str]:
    """Return what to say of the runs that did not finish, and why."""
    return [
        f"seed {s.seed} {s.status}" + (f": {s.cause}" if s.cause else "") for s in summaries if s.status != "finished"
    ]
