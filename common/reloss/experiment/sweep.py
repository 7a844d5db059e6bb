"""Many runs: a table's experiments x losses x seeds, in parallel processes on this machine."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from reloss.errors import RelossError, UsageError, unknown
from reloss.experiment.config import LEARNED_LOSSES, variant
from reloss.experiment.record import read_summary, record_folder
from reloss.experiment.task import ablations, find_experiment, tasks
from reloss.progress import progress, say

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


def phases(name: str, losses: Sequence[str], seeds: Sequence[int], settings: Sequence[str] = ()) -> list[list[Cell]]:
    """Return the cells of a table, an experiment or the `ablation`, in phases that can each run in parallel.

    The recorded baselines come first, then one fit for each surrogate, then all the rest.

    Raises:
        UsageError: an unknown table, experiment or loss.
    """
    baselines: list[Cell] = []
    fits: list[Cell] = []
    rest: list[Cell] = []
    for experiment, variants in _variants(name, losses).items():
        config = find_experiment(experiment)[1]
        baseline = Cell(experiment, config.ordinary_loss, config.recording.seed, settings=tuple(settings))
        mine = [Cell(experiment, loss, seed, settings=(*settings, *own)) for loss, own in variants for seed in seeds]
        learned = [_fit(cell, settings) for cell in mine if cell.loss in LEARNED_LOSSES]
        if baseline in mine:
            baselines.append(baseline)
        elif learned:
            baselines.append(replace(learned[0], stage="baseline", settings=tuple(settings)))
        fits += dict.fromkeys(replace(fit, seed=seeds[0]) for fit in learned)
        rest += [cell for cell in mine if cell != baseline]
    return [baselines, fits, rest]


def _fit(cell: Cell, common: Sequence[str]) -> Cell:
    """Return the fit of a run's surrogate, which those share that differ in how they train alone."""
    own = tuple(setting for setting in cell.settings[len(common) :] if setting.startswith("learn."))
    return replace(cell, stage="learn", settings=(*common, *own))


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


def is_finished(cell: Cell, runs: Path) -> bool:
    """Return whether the record of a cell says `finished`; other stages find out themselves, quickly."""
    folder = record_folder(runs, cell.experiment, cell.loss, cell.settings, cell.seed)
    return cell.stage == "all" and read_summary(folder).get("status") == "finished"


def estimate(plan: list[list[Cell]], runs: Path, slots: int) -> str:
    """Return one line: the runs of a plan, how many are finished, and about how long the rest takes where known.

    An experiment's time is the median of its finished records, else what the ablation states.
    """
    cells = [cell for phase in plan for cell in phase if cell.stage == "all"]
    left = [cell for cell in cells if not is_finished(cell, runs)]
    stated = {name: 60 * minutes for ablation in ablations() for name, minutes in ablation.experiments.items()}
    measured: dict[str, list[float]] = defaultdict(list)
    for cell in cells:
        if cell not in left:
            folder = record_folder(runs, cell.experiment, cell.loss, cell.settings, cell.seed)
            measured[cell.experiment].append(read_summary(folder)["wall_seconds"] + START_SECONDS)
    known = stated | {name: statistics.median(seconds) for name, seconds in measured.items()}
    line = f"{len(cells)} runs, {len(cells) - len(left)} finished"
    if all(cell.experiment in known for cell in left):
        minutes = sum(known[cell.experiment] for cell in left) / slots / 60
        return f"{line}; the rest takes about {minutes:.0f} minutes in {slots} processes"
    return line


def run_local(plan: list[list[Cell]], options: Sequence[str], runs: Path, slots: int) -> list[Cell]:
    """Run the cells of each phase in `slots` parallel processes, skipping finished ones; returns those that failed.

    Each process gets its share of the cores, and its output goes to RUNS/sweep/. A failing run leaves the others be.
    """
    logs = runs / "sweep"
    logs.mkdir(parents=True, exist_ok=True)
    threads = str(max(1, (os.cpu_count() or 1) // slots))
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
    failed: list[Cell] = []

    def start(cell: Cell) -> None:
        changed = variant(cell.settings)
        loss = f"{cell.loss}@{changed}" if changed else cell.loss
        label = f"{cell.experiment} {loss} " + (f"seed {cell.seed}" if cell.stage == "all" else cell.stage)
        if is_finished(cell, runs):
            say(f"skip      {label} (finished)")
            advance()
            return
        say(f"start     {label}")
        log = logs / f"{cell.experiment.replace('/', '_')}-{loss}-{cell.stage}-seed{cell.seed}.log"
        words = [sys.executable, "-m", "reloss.cli", *command(cell, options)[1:]]
        with log.open("w") as output:
            code = subprocess.run(
                words, stdout=output, stderr=subprocess.STDOUT, env=environment, check=False
            ).returncode
        if code != 0:
            failed.append(cell)
        say(f"{'finished' if code == 0 else f'FAILED {code}'}  {label} ({log})")
        advance()

    with progress(sum(map(len, plan)), "sweep") as advance:
        for phase in plan:
            with ThreadPoolExecutor(slots) as pool:
                list(pool.map(start, phase))
    return failed


def sweep(
    name: str,
    losses: Sequence[str],
    seeds: Sequence[int],
    options: Sequence[str],
    runs: Path,
    settings: Sequence[str],
    slots: int,
    launcher: str,
) -> None:
    """Run a sweep, or print its commands.

    Raises:
        UsageError: an unknown name.
        RelossError: some runs failed; the message names their number, the logs their reasons.
    """
    plan = phases(name, losses, seeds, settings)
    if launcher == "print":
        for phase in plan:
            for cell in phase:
                print(" ".join(command(cell, options)))
        return
    say(estimate(plan, runs, slots))
    failed = run_local(plan, options, runs, slots)
    if failed:
        raise RelossError(
            f"{len(failed)} of {sum(map(len, plan))} runs failed; see {runs / 'sweep'}; the rest is recorded"
        )
