"""Many runs: a table's experiments x losses x seeds, in parallel processes on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from reloss.errors import RelossError, UsageError, unknown
from reloss.experiment.config import LEARNED_LOSSES, variant
from reloss.experiment.task import find_experiment, tasks
from reloss.files import read_json
from reloss.progress import progress, say


@dataclass(frozen=True)
class Cell:
    """One command of a sweep; `stage` is all for a run, learn for the surrogate that several runs share."""

    experiment: str
    loss: str
    seed: int
    stage: str = "all"


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


def phases(name: str, losses: Sequence[str], seeds: Sequence[int]) -> list[list[Cell]]:
    """Return the cells of table or experiment `name`, in phases that can each run in parallel.

    The recorded baselines come first, then one fit for each learned loss, then all the rest.

    Raises:
        UsageError: an unknown table, experiment or loss.
    """
    if name in tasks():
        names = list(tasks()[name].experiments)
    else:
        try:
            names = [find_experiment(name)[1].name]
        except UsageError:
            everything = [*tasks(), *(full for task in tasks().values() for full in task.experiments)]
            raise unknown("table or experiment", name, everything) from None
    baselines, fits, rest = [], [], []
    for experiment in names:
        config = find_experiment(experiment)[1]
        for loss in losses or config.losses:
            if loss not in config.losses:
                raise unknown(f"loss of {experiment}", loss, config.losses)
            if loss in LEARNED_LOSSES:
                fits.append(Cell(experiment, loss, seeds[0], "learn"))
            rest += [Cell(experiment, loss, seed) for seed in seeds]
        baseline = Cell(experiment, config.ordinary_loss, config.recording.seed)
        learned = [fit for fit in fits if fit.experiment == experiment]
        if baseline in rest:
            baselines.append(baseline)
        elif learned:
            baselines.append(replace(learned[0], stage="baseline"))
    return [baselines, fits, [cell for cell in rest if cell not in baselines]]


def command(cell: Cell, options: Sequence[str]) -> list[str]:
    """Return the words of the `reloss run` command of a cell."""
    words = ["reloss", "run", cell.experiment, "--loss", cell.loss, "--seed", str(cell.seed)]
    return [*words, *(["--stage", cell.stage] if cell.stage != "all" else []), *options]


def is_finished(cell: Cell, runs: Path, settings: Sequence[str]) -> bool:
    """Return whether the record of a cell says `finished`; other stages find out themselves, quickly."""
    changed = variant(settings)
    loss = f"{cell.loss}@{changed}" if changed else cell.loss
    path = runs / cell.experiment / loss / f"seed{cell.seed}" / "summary.json"
    return cell.stage == "all" and path.exists() and read_json(path)["status"] == "finished"


def run_local(
    plan: list[list[Cell]], options: Sequence[str], runs: Path, settings: Sequence[str], slots: int
) -> list[Cell]:
    """Run the cells of each phase in `slots` parallel processes, skipping finished ones; returns those that failed.

    Each process gets its share of the cores, and its output goes to RUNS/sweep/. A failing run leaves the others be.
    """
    logs = runs / "sweep"
    logs.mkdir(parents=True, exist_ok=True)
    threads = str(max(1, (os.cpu_count() or 1) // slots))
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
    failed: list[Cell] = []

    def start(cell: Cell) -> None:
        label = f"{cell.experiment} {cell.loss} " + (f"seed {cell.seed}" if cell.stage == "all" else cell.stage)
        if is_finished(cell, runs, settings):
            say(f"skip      {label} (finished)")
            advance()
            return
        say(f"start     {label}")
        log = logs / f"{cell.experiment.replace('/', '_')}-{cell.loss}-{cell.stage}-seed{cell.seed}.log"
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
    plan = phases(name, losses, seeds)
    if launcher == "print":
        for phase in plan:
            for cell in phase:
                print(" ".join(command(cell, options)))
        return
    failed = run_local(plan, options, runs, settings, slots)
    if failed:
        raise RelossError(
            f"{len(failed)} of {sum(map(len, plan))} runs failed; see {runs / 'sweep'}; the rest is recorded"
        )
