"""Runs grouped for a table: one group holds the runs of one loss with the same settings, one run per seed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from statistics import mean

from reloss.experiment.config import Experiment
from reloss.experiment.records import RunRecord
from reloss.experiment.settings import as_text, flat, override, renamed
from reloss.experiment.status import Status
from reloss.runtime.errors import UsageError

LEARNING_RATE = "train.lr="
INITIALISATION = ("train.init=", "train.length=")

Key = tuple[str, tuple[str, ...]]
"""A loss and its settings, sorted, with their values written in one way."""


def group_key(config: Experiment, loss: str, settings: Iterable[str]) -> Key:
    """Return the key of a group. It depends neither on the order of the settings nor on how their values are written.

    Settings that do not fit the experiment any more are taken as they are.
    """
    settings = tuple(sorted(settings))
    with suppress(UsageError):
        values = flat(override(config, settings).model_dump(mode="json"))
        keys = (setting.partition("=")[0] for setting in map(renamed, settings))
        settings = tuple(sorted(f"{key}={as_text(values[key])}" for key in keys))
    return loss, settings


def group_runs(config: Experiment, runs: Iterable[RunRecord]) -> dict[Key, list[RunRecord]]:
    """Return the runs of one experiment by loss and settings, ordered by loss and by the settings as written."""
    as_written: dict[Key, list[RunRecord]] = defaultdict(list)
    for run in runs:
        as_written[run.loss, tuple(sorted(run.settings))].append(run)
    groups: dict[Key, list[RunRecord]] = defaultdict(list)
    for loss, settings in sorted(as_written):
        groups[group_key(config, loss, settings)] += as_written[loss, settings]
    return dict(groups)


def scores_by_seed(runs: Iterable[RunRecord], score: str) -> dict[int, float]:
    """Return the score called `score`, in percent, of the finished runs that have it."""
    return {run.seed: 100 * run.scores[score] for run in runs if run.status == Status.FINISHED and score in run.scores}


def learning_rate(config: Experiment, settings: Iterable[str]) -> float:
    """Return the learning rate of a run with `settings`, NaN if a damaged record holds an impossible one."""
    try:
        return override(config, [setting for setting in settings if setting.startswith(LEARNING_RATE)]).train.lr
    except UsageError:
        return math.nan


def baseline_group(
    groups: Mapping[Key, Sequence[RunRecord]], loss: str, run: RunRecord, score: str
) -> Sequence[RunRecord]:
    """Return the group of the ordinary `loss` that `run` is compared with, empty if there is none.

    It has the same protocol, initialisation and length, because fine-tuning adds to an earlier training. Among several
    groups, which differ in what may be tuned, it is the one with the best mean `score` on the validation split; if none
    has that score, the one with the fewest settings.
    """

    def preference(group: Sequence[RunRecord]) -> tuple[float, int]:
        validation = scores_by_seed(group, f"validation_{score}").values()
        return mean(validation) if validation else float("-inf"), -len(group[0].settings)

    def is_comparable(other: RunRecord) -> bool:
        return other.protocol == run.protocol and _initialisation(other) == _initialisation(run)

    candidates = (group for key, group in groups.items() if key[0] == loss and is_comparable(group[0]))
    return max(candidates, key=preference, default=[])


def _initialisation(run: RunRecord) -> list[str]:
    return [setting for setting in run.settings if setting.startswith(INITIALISATION)]


def commits(runs: Iterable[RunRecord]) -> tuple[str, ...]:
    """Return the commits of the code that the runs used."""
    return tuple(sorted({run.commit for run in runs}))


def unfinished_runs(runs: Iterable[RunRecord]) -> tuple[str, ...]:
    """Return one remark for each run that did not finish, with the cause."""
    unfinished = (run for run in runs if run.status != Status.FINISHED)
    return tuple(f"seed {run.seed} {run.status}" + (f": {run.cause}" if run.cause else "") for run in unfinished)
