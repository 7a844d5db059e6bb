"""Many runs: which commands a table's experiments x losses x seeds need, and which of them wait for which."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from reloss.experiment.config import LEARNED_LOSSES, Experiment
from reloss.experiment.record import read_summary, record_folder
from reloss.experiment.run_spec import variant_name
from reloss.experiment.settings import baseline_settings, override, tuned
from reloss.experiment.task import ablations, find_experiment, tasks
from reloss.runtime.errors import RelossError, UsageError, unknown
from reloss.runtime.files import read_object

Plan = list[list["Cell"]]

ABLATION = "ablation"
START_SECONDS = 6.0  # of a process, before the run's own clock


@dataclass(frozen=True)
class Cell:
    """One command of a sweep; `stage` is all for a run, learn for the surrogate that several runs share."""

    experiment: str
    loss: str
    seed: int
    stage: str = "all"
    settings: tuple[str, ...] = ()

    @property
    def changed_loss(self) -> str:
        """The loss, and what the settings changed."""
        changed = variant_name(self.settings)
        return f"{self.loss}@{changed}" if changed else self.loss

    @property
    def label(self) -> str:
        """What people read of it."""
        what = f"seed {self.seed}" if self.stage == "all" else self.stage
        return f"{self.experiment} {self.changed_loss} {what}"

    @property
    def file_name(self) -> str:
        """What its log and notes are called, without ending."""
        return f"{self.experiment.replace('/', '_')}-{self.changed_loss}-{self.stage}-seed{self.seed}"

    def record(self, runs: Path) -> Path:
        """Return the folder of its record."""
        return record_folder(runs, self.experiment, self.loss, self.settings, self.seed)


def parse_seeds(text: str) -> list[int]:
    """Return the seeds of a list such as `0-4` or `0,2,5-7`.

    Raises:
        UsageError: the text is no such list.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise UsageError(f"--seeds takes a list such as 0-4 or 0,2,5-7, not '{text}'")
        seeds += range(int(first), int(last or first) + 1)
    if not seeds:
        raise UsageError(f"--seeds {text} names no seed")
    return sorted(set(seeds))


def phases(name: str, losses: Sequence[str], seeds: Sequence[int], settings: Sequence[str] = ()) -> Plan:
    """Return the cells of a table, an experiment or the `ablation`, in four phases that can each run in parallel.

    Runs of other experiments that theirs use come first; then the recorded baselines, with those that runs are
    fine-tuned from; then one fit for each surrogate, then all the rest.

    Raises:
        UsageError: an unknown table, experiment, loss or setting.
    """
    others: list[Cell] = []
    baselines: list[Cell] = []
    fits: list[Cell] = []
    rest: list[Cell] = []
    for experiment, variants in _variants(name, losses).items():
        config = find_experiment(experiment)[1]
        mine = [Cell(experiment, loss, seed, settings=(*settings, *own)) for loss, own in variants for seed in seeds]
        others += [other for cell in mine for other in _others(cell, config)]
        recorded_seed = override(config, settings).recording.seed
        learned = [_fit(cell, settings, recorded_seed) for cell in mine if cell.loss in LEARNED_LOSSES]
        first = [start for cell in mine for start in _starts(cell, config)]
        recorded = Cell(experiment, config.ordinary_loss, recorded_seed, settings=tuple(settings))
        if recorded in mine and not first and not tuned(config, settings):
            first = [recorded]
        elif learned and recorded_seed not in [start.seed for start in first]:
            first.append(replace(recorded, stage="baseline"))
        baselines += dict.fromkeys(first)
        fits += dict.fromkeys(learned)
        rest += [cell for cell in mine if cell not in first]
    others = list(dict.fromkeys(others))
    return [others, *([cell for cell in phase if cell not in others] for phase in (baselines, fits, rest))]


def needs(cell: Cell, plan: Plan) -> list[Cell]:
    """Return the cells of a plan that must have ended well before `cell` can start."""
    others, baselines, fits, _ = plan
    config = find_experiment(cell.experiment)[1]
    used = [each for each in _others(cell, config) if each in others]
    if cell in others or cell in baselines:
        return used
    if cell in fits:
        seed = override(config, cell.settings).recording.seed
        mine = [each for each in (*others, *baselines) if each.experiment == cell.experiment]
        return [each for each in mine if each.stage == "baseline" or each.seed == seed]
    own_fit = [fit for fit in fits if (fit.experiment, fit.loss) == (cell.experiment, cell.loss)]
    found = [fit for fit in own_fit if _learn_settings(fit) == _learn_settings(cell)]
    return found + used + [start for start in _starts(cell, config) if start in (*others, *baselines)]


def _others(cell: Cell, config: Experiment) -> list[Cell]:
    """Return the runs of other experiments whose records a cell uses."""
    return [Cell(*needed) for needed in override(config, cell.settings).required_runs()]


def _starts(cell: Cell, config: Experiment) -> list[Cell]:
    """Return the run whose weights a fine-tuning cell starts from."""
    if not override(config, cell.settings).fine_tunes:
        return []
    return [replace(cell, loss=config.ordinary_loss, settings=baseline_settings(config, cell.settings))]


def _learn_settings(cell: Cell) -> list[str]:
    return [setting for setting in cell.settings if setting.startswith("learn.")]


def _fit(cell: Cell, common: Sequence[str], seed: int) -> Cell:
    """Return the fit of a run's surrogate, which those share that differ in how they train alone.

    Its seed is that of the bank, not of a run: sweeps over other seeds have the same fit.
    """
    own = tuple(setting for setting in cell.settings[len(common) :] if setting.startswith("learn."))
    return replace(cell, seed=seed, stage="learn", settings=(*common, *own))


def _variants(name: str, losses: Sequence[str]) -> dict[str, list[tuple[str, tuple[str, ...]]]]:
    """Return the losses and their own settings, by experiment.

    Raises:
        UsageError: an unknown table, experiment or loss, or losses chosen for an ablation.
    """
    if name == ABLATION:
        if losses:
            raise UsageError("the ablation says itself which losses it compares; drop --losses")
        return {
            experiment: [(variant.loss, variant.settings) for variant in ablation.variants]
            for ablation in ablations()
            for experiment in ablation.experiments
        }
    if name in tasks():
        names = list(tasks()[name].experiments)
    else:
        try:
            names = [find_experiment(name)[1].name]
        except UsageError:
            everything = [ABLATION, *tasks(), *(full for task in tasks().values() for full in task.experiments)]
            raise unknown("table or experiment", name, everything) from None
    chosen: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
    for experiment in names:
        config = find_experiment(experiment)[1]
        for loss in losses:
            if loss not in config.losses:
                raise unknown(f"loss of {experiment}", loss, config.losses)
        chosen[experiment] = [(loss, ()) for loss in losses or config.losses]
    return chosen


def command(cell: Cell, options: Sequence[str]) -> list[str]:
    """Return the words of the `reloss run` command of a cell."""
    words = ["reloss", "run", cell.experiment, "--loss", cell.loss, "--seed", str(cell.seed)]
    words += ["--stage", cell.stage] if cell.stage != "all" else []
    return [*words, *options, *(["--set", *cell.settings] if cell.settings else [])]


def has_bank(cell: Cell, runs: Path) -> bool:
    """Return whether the bank of a cell's experiment is complete.

    Raises:
        RelossError: it is damaged.
    """
    return bool(read_object(runs / cell.experiment / "bank" / "bank.json", {"complete": bool}).get("complete"))


def is_finished(cell: Cell, runs: Path) -> bool:
    """Return whether the record or the bank of a cell is complete; a fit finds that out itself, quickly.

    What is damaged is not: the cell's own command says what is wrong with it.
    """
    with suppress(RelossError):
        if cell.stage == "baseline":
            return has_bank(cell, runs)
        return cell.stage == "all" and read_summary(cell.record(runs)).get("status") == "finished"
    return False


def is_done(cell: Cell, plan: Plan, runs: Path) -> bool:
    """Return whether a cell has nothing to do: it is finished, or it only serves runs that are."""
    if is_finished(cell, runs):
        return True
    served = [each for phase in plan for each in phase if each.experiment == cell.experiment]
    return cell.stage != "all" and all(is_done(each, plan, runs) for each in served if cell in needs(each, plan))


def estimate(plan: Plan, runs: Path, slots: int) -> str:
    """Return one line: the runs of a plan, how many are finished, and about how long the rest takes where known.

    An experiment's time is the median of its finished records in the plan, else what the ablation states of a run with
    the same settings.
    """
    cells = [cell for phase in plan for cell in phase if cell.stage == "all"]
    left = [cell for cell in cells if not is_finished(cell, runs)]
    stated = {
        (name, each.loss, each.settings): 60 * minutes
        for ablation in ablations()
        for name, minutes in ablation.experiments.items()
        for each in ablation.variants
    }
    measured: dict[str, list[float]] = defaultdict(list)
    for cell in cells:
        if cell not in left:
            seconds = read_summary(cell.record(runs)).get("wall_seconds", 0.0)
            measured[cell.experiment].append(seconds + START_SECONDS)
    known = {name: statistics.median(seconds) for name, seconds in measured.items()}
    times = [known.get(each.experiment) or stated.get((each.experiment, each.loss, each.settings)) for each in left]
    line = f"{len(cells)} runs, {len(cells) - len(left)} finished"
    if not left or not all(times):
        return line
    minutes = sum(filter(None, times)) / slots / 60
    about = f"about {minutes:.0f} minutes" if minutes >= 1.5 else "a minute or less"
    return f"{line}; the rest takes {about} in {slots} processes"
