"""Launching the cells of a sweep: as processes of this machine, or as lines to be run elsewhere."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from reloss.pipeline.stages import Request, surrogate_folder
from reloss.runtime.errors import RelossError, UsageError
from reloss.runtime.files import read_object, write_json
from reloss.runtime.lock import is_locked
from reloss.runtime.progress import progress, say
from reloss.sweep.plan import Cell, Plan, command, is_done, needs

TERMINATED = 128 + signal.SIGTERM
INTERRUPTED = (TERMINATED, 128 + signal.SIGINT)  # codes of a run that was told to end; the same command goes on
Start = Callable[[list[str], Any, Mapping[str, str]], int]


def notes(runs: Path) -> Path:
    """Return the folder in which a sweep keeps the log of each cell and, while there is something to say, a note."""
    return runs / "sweep"


def note_of(cell: Cell, runs: Path) -> dict[str, Any]:
    """Return the note on a cell that is submitted or has failed, or is a finished fit: state, reason, log, job.

    Of a note that is damaged, that state and the reason.
    """
    try:
        return read_object(notes(runs) / f"{cell.file_name}.json", {"state": str})
    except RelossError as error:
        return {"state": "damaged", "reason": str(error)}


def write_note(cell: Cell, runs: Path, **note: Any) -> None:
    """Note the state of a cell; nothing removes the note."""
    path = notes(runs) / f"{cell.file_name}.json"
    if note:
        write_json(path, note)
    else:
        path.unlink(missing_ok=True)


def log_of(cell: Cell, runs: Path, node: int = 0) -> Path:
    """Return where the output of a cell goes; each further node of a run has a log of its own."""
    return notes(runs) / (f"{cell.file_name}.log" if node == 0 else f"{cell.file_name}.node{node}.log")


def reason(log: Path, code: int) -> str:
    """Return why a command ended with `code`: the signal that killed it, or the first of torchrun's processes.

    Else the last line in which `reloss` says why, else the last line of the log.
    """
    text = log.read_text(encoding="utf-8", errors="replace")
    killed = re.search(r"failed \(exitcode: (-\d+)\)", text)  # as torchrun says it, which itself ends with 1
    number = -code if code < 0 else -int(killed[1]) if killed else 0
    if number:
        return f"killed by signal {number}" + (" (out of memory?)" if number == signal.SIGKILL else "")
    lines = [line for line in text.splitlines() if line.strip()]
    said = [line.removeprefix("reloss: ") for line in lines if line.startswith("reloss: ")]
    return (said or lines or ["it said nothing"])[-1]


def run_cell(
    cell: Cell,
    options: Sequence[str],
    runs: Path,
    environment: Mapping[str, str],
    start: Start,
    launcher: Sequence[str] = (),
    node: int = 0,
) -> int:
    """Run the command of a cell to its end and note why it failed, if it did; returns its exit code.

    Args:
        cell: the cell.
        options: of every command of the sweep.
        runs: folder of the records.
        environment: of the process.
        start: starts words with an open log and an environment, and returns the exit code; TERMINATED if this process
            was told to end and ended that one, whatever its code (torchrun's is 1).
        launcher: words between `python` and `-m reloss.cli`, such as torchrun's.
        node: of a run on several nodes, each of which runs the command; the first one notes.
    """
    log = log_of(cell, runs, node)
    log.parent.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, *launcher, "-m", "reloss.cli", *command(cell, options)[1:]]
    with log.open("w") as output:
        code = start(words, output, environment)
    if node == 0 and code == 0 and cell.stage == "learn":
        write_note(cell, runs, state="finished")  # what it leaves does not tell which sweep it is of
    elif node == 0 and (code == 0 or code in INTERRUPTED):
        write_note(cell, runs)
    elif node == 0:
        write_note(cell, runs, state="failed", code=code, reason=reason(log, code), log=str(log))
    return code


class _Processes:
    """The processes of a sweep on this machine, which end with it."""

    def __init__(self) -> None:
        self.running: set[subprocess.Popen] = set()
        self.stopped = False

    def start(self, words: list[str], output: Any, environment: Mapping[str, str]) -> int:
        if self.stopped:
            return TERMINATED
        with subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, env=environment) as process:
            self.running.add(process)
            if self.stopped:
                process.terminate()
            code = process.wait()
        self.running.discard(process)
        return TERMINATED if self.stopped and code != 0 else code

    def stop(self) -> None:
        self.stopped = True
        for process in list(self.running):
            with suppress(OSError):
                process.terminate()


def is_running(cell: Cell, runs: Path) -> bool:
    """Return whether another process is at work on a cell: holds the lock of what the cell writes."""
    if cell.stage == "all":
        return is_locked(cell.record(runs))
    home = runs / cell.experiment
    if cell.stage == "baseline":
        return is_locked(home / "bank")
    if not any(map(is_locked, home.glob("surrogates/*"))):  # else there is no need to find out which is its own
        return False
    with suppress(RelossError):  # as of a damaged bank
        folder = surrogate_folder(Request(cell.experiment, cell.loss, cell.seed, settings=cell.settings, runs=runs))
        return folder is not None and is_locked(folder)
    return False


def run_local(plan: Plan, options: Sequence[str], runs: Path, slots: int, gpus: Sequence[str]) -> list[Cell]:
    """Run the cells of a plan in `slots` parallel processes, skipping finished ones; returns those that failed.

    Each starts as soon as what it needs has ended. Each process gets its share of the cores and one of the GPUs, and
    its output goes to RUNS/sweep/. A failing run leaves the others be, but those that need it are not started. What
    another process is at work on, such as one that a killed sweep left behind, is waited for. SIGTERM and Ctrl-C end
    all of them; each keeps its last checkpoint.

    Args:
        plan: what to run.
        options: of every command.
        runs: folder of the records.
        slots: processes at a time.
        gpus: as CUDA_VISIBLE_DEVICES names them, shared out over the slots; none: a process sees what this one sees.
    """
    threads = str(max(1, (os.cpu_count() or 1) // slots))
    shared = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
    free: SimpleQueue[int] = SimpleQueue()
    for slot in range(slots):
        free.put(slot)
    processes = _Processes()
    needed = {cell: needs(cell, plan) for phase in plan for cell in phase}
    failed: list[Cell] = []
    missed: set[Cell] = set()

    def start(cell: Cell) -> None:
        missing = [need for need in needed[cell] if need in missed]
        if processes.stopped:
            return
        if is_done(cell, plan, runs):
            say(f"skip      {cell.label} (finished)")
        elif missing:
            missed.add(cell)
            say(f"NOT RUN   {cell.label}: it needs {missing[0].label}, which failed")
        else:
            run(cell)

    def run(cell: Cell) -> None:
        slot = free.get()
        gpu = {"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if gpus else {}
        try:
            code = _run_when_free(cell, options, runs, {**shared, **gpu}, processes)
            why = "" if code == 0 or code in INTERRUPTED else f": {reason(log_of(cell, runs), code)}"
        except (OSError, RelossError) as error:  # as on a full disk
            code, why = 1, f": {error}"
        finally:
            free.put(slot)
        if code != 0:
            failed.append(cell)
            missed.add(cell)
        how = "finished" if code == 0 else "interrupted" if code in INTERRUPTED else f"FAILED {code}"
        say(f"{how:<9} {cell.label} ({log_of(cell, runs)}){why}")

    with progress(len(needed), "sweep") as advance, ThreadPoolExecutor(slots) as pool:
        waiting, running = list(needed), dict[Future[None], Cell]()
        try:
            while waiting or running:
                blocked = {*waiting, *running.values()}
                for cell in [cell for cell in waiting if blocked.isdisjoint(needed[cell])]:
                    waiting.remove(cell)
                    running[pool.submit(start, cell)] = cell
                for ended in wait(running, return_when=FIRST_COMPLETED).done:
                    del running[ended]
                    ended.result()
                    advance()
        except BaseException:
            processes.stop()
            raise
    return failed


def _run_when_free(
    cell: Cell, options: Sequence[str], runs: Path, environment: Mapping[str, str], processes: _Processes
) -> int:
    """Run a cell as soon as no other process is at work on it; returns its exit code."""
    while True:
        if is_running(cell, runs):
            say(f"wait      {cell.label} (another process is at work on it)")
        while is_running(cell, runs) and not processes.stopped:
            time.sleep(1)
        if not processes.stopped:
            say(f"start     {cell.label}")
        code = run_cell(cell, options, runs, environment, processes.start)
        if code != UsageError.exit_code or not is_running(cell, runs):  # of two that start at once, one is refused
            return code


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def plain_lines(plan: Plan, options: Sequence[str], runs: Path) -> list[str]:
    """Return the commands of what is not finished of a plan, under comments that say what may run side by side."""
    left = [[cell for cell in phase if not is_done(cell, plan, runs)] for phase in plan]
    return _phased([[shlex.join(command(cell, options)) for cell in phase] for phase in left])


def docker_lines(plan: Plan, image: str, data: Path, runs: Path, options: Sequence[str]) -> list[str]:
    """Return a plan as `docker run` lines; in the image, the data lie in /data and the records in /runs.

    Comments say what may run side by side. All of the plan, for what is in a volume is not seen here; in the image,
    what is finished is not done again.
    To docker, a plain name such as `runs` is a volume; any other path is a folder of this machine.
    """
    named = [path if len(path.parts) == 1 else path.absolute() for path in (data, runs)]
    volumes = ["-v", f"{named[0]}:/data", "-v", f"{named[1]}:/runs"]
    start = ["docker", "run", "--rm", "--gpus", "all", "--ipc", "host", *volumes, image]
    return _phased([[shlex.join([*start, *command(cell, options)[1:]]) for cell in phase] for phase in plan])


def _phased(phases: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of all phases, a comment before each phase that has some."""
    lines: list[str] = []
    for phase in filter(None, phases):
        lines += [f"# when {'those before have ended' if lines else 'you like'}, side by side or not:", *phase]
    return lines


def check(failed: Sequence[Cell], plan: Plan, runs: Path) -> None:
    """Raise RelossError if cells failed."""
    if failed:
        raise RelossError(
            f"{len(failed)} of {sum(map(len, plan))} runs failed; see {notes(runs)}; the rest is recorded. The same "
            "command tries them again and skips what is finished"
        )
