"""Sweeps on this machine: parallel processes, each with its share of the cores and one of the GPUs.

A job starts as soon as the jobs that it needs have ended, and the sweep survives whatever happens to a job: a failing
run stops only the runs that need it. Ending the sweep ends its processes, which keep their last checkpoints.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

from reloss.experiment.banks import bank_folder
from reloss.experiment.workspace import Workspace
from reloss.pipeline.fitting import surrogate_folder
from reloss.runtime.errors import RelossError, UsageError
from reloss.runtime.lock import is_locked
from reloss.runtime.progress import progress, say
from reloss.sweep.job import INTERRUPTED, TERMINATED, Job, failure_reason, log_of, run_job
from reloss.sweep.plan import Plan


class Processes:
    """The processes of a sweep on this machine, which end with it.

    Attributes:
        stopped: whether the sweep is ending; nothing starts any more.
    """

    def __init__(self) -> None:
        self._running: set[subprocess.Popen] = set()
        self.stopped = False

    def start(self, words: list[str], output: Any, environment: Mapping[str, str]) -> int:
        """Start a process and wait for it; see `Start`."""
        if self.stopped:
            return TERMINATED
        with subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, env=environment) as process:
            self._running.add(process)
            if self.stopped:
                process.terminate()
            code = process.wait()
        self._running.discard(process)
        return TERMINATED if self.stopped and code != 0 else code

    def stop(self) -> None:
        """End all processes."""
        self.stopped = True
        for process in list(self._running):
            with suppress(OSError):
                process.terminate()


def run_local(plan: Plan, options: Sequence[str], workspace: Workspace, slots: int, gpus: Sequence[str]) -> list[Job]:
    """Run the jobs of a plan in `slots` parallel processes; return the jobs that failed.

    Finished jobs are skipped, and so are jobs that need a failed one. A job that another process is running, such as a
    process that a killed sweep left behind, is waited for. SIGTERM and Ctrl-C end all processes.

    Args:
        plan: the jobs.
        options: options that every command gets.
        workspace: where records and logs lie.
        slots: number of processes at a time.
        gpus: GPUs to share out over the slots, as CUDA_VISIBLE_DEVICES names them; if empty, every process sees the
            GPUs that this one sees.
    """
    sweep = _LocalSweep(plan, options, workspace, slots, gpus)
    sweep.run()
    return sweep.failed


class _LocalSweep:
    """The state of a running sweep.

    Attributes:
        processes: the processes of its jobs.
        failed: jobs that failed.
    """

    def __init__(
        self, plan: Plan, options: Sequence[str], workspace: Workspace, slots: int, gpus: Sequence[str]
    ) -> None:
        self.plan, self.options, self.workspace = plan, options, workspace
        self.slots, self.gpus = slots, gpus
        self.processes = Processes()
        self.failed: list[Job] = []
        self._unavailable: set[Job] = set()  # failed, or not run because a job that they need is unavailable
        self._free_slots: SimpleQueue[int] = SimpleQueue()
        for slot in range(slots):
            self._free_slots.put(slot)

    def run(self) -> None:
        """Run every job as soon as the jobs that it needs have ended."""
        waiting, running = list(self.plan), dict[Future[None], Job]()
        with progress(len(waiting), "sweep") as advance, ThreadPoolExecutor(self.slots) as pool:
            try:
                while waiting or running:
                    unended = {*waiting, *running.values()}
                    for job in [job for job in waiting if unended.isdisjoint(self.plan.needs[job])]:
                        waiting.remove(job)
                        running[pool.submit(self._start, job)] = job
                    for ended in wait(running, return_when=FIRST_COMPLETED).done:
                        del running[ended]
                        ended.result()
                        advance()
            except BaseException:
                self.processes.stop()  # before leaving the pool, which waits for its jobs
                raise

    def _start(self, job: Job) -> None:
        """Run a job, unless it is done or cannot run."""
        missing = [need for need in self.plan.needs[job] if need in self._unavailable]
        if self.processes.stopped:
            return
        if self.plan.is_done(job, self.workspace):
            say(f"skip      {job.label} (finished)")
        elif missing:
            self._unavailable.add(job)
            say(f"NOT RUN   {job.label}: it needs {missing[0].label}, which failed")
        else:
            self._run(job)

    def _run(self, job: Job) -> None:
        """Run a job in a free slot, and report how it ended."""
        slot = self._free_slots.get()
        log = log_of(job, self.workspace)
        try:
            code = self._run_when_unlocked(job, self._environment(slot))
            reason = "" if code == 0 or code in INTERRUPTED else f": {failure_reason(log, code)}"
        except (OSError, RelossError) as error:  # such as a full disk
            code, reason = 1, f": {error}"
        finally:
            self._free_slots.put(slot)
        if code != 0:
            self.failed.append(job)
            self._unavailable.add(job)
        outcome = "finished" if code == 0 else "interrupted" if code in INTERRUPTED else f"FAILED {code}"
        say(f"{outcome:<9} {job.label} ({log}){reason}")

    def _environment(self, slot: int) -> dict[str, str]:
        """Return the environment of a process: its share of the cores, and its GPU."""
        threads = str(max(1, (os.cpu_count() or 1) // self.slots))
        gpu = {"CUDA_VISIBLE_DEVICES": self.gpus[slot % len(self.gpus)]} if self.gpus else {}
        return {"OMP_NUM_THREADS": threads, **os.environ, **gpu}

    def _run_when_unlocked(self, job: Job, environment: Mapping[str, str]) -> int:
        """Run a job as soon as no other process is running it; return its exit code."""
        while True:
            if is_running(job, self.workspace):
                say(f"wait      {job.label} (another process is running it)")
            while is_running(job, self.workspace) and not self.processes.stopped:
                time.sleep(1)
            if not self.processes.stopped:
                say(f"start     {job.label}")
            code = run_job(job, self.options, self.workspace, environment, self.processes.start)
            # If two processes start at the same moment, one is refused; this job then waits for the other process.
            if code != UsageError.exit_code or not is_running(job, self.workspace):
                return code


def is_running(job: Job, workspace: Workspace) -> bool:
    """Return whether another process is running a job: it holds the lock of the folder that the job writes."""
    if job.stage == "all":
        return is_locked(workspace.record(job.run))
    if job.stage == "learn" and not any(map(is_locked, workspace.surrogates(job.run.experiment))):
        return False  # without reading the bank, which takes a while
    with suppress(RelossError):  # such as a damaged bank
        if job.stage == "baseline":
            return is_locked(bank_folder(job.run.load()[1], workspace))
        folder = surrogate_folder(job.run, workspace)
        return folder is not None and is_locked(folder)
    return False


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    if names is not None:
        return [name for name in names.split(",") if name]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def check(failed: Sequence[Job], plan: Plan, workspace: Workspace) -> None:
    """Raise RelossError if jobs failed."""
    if failed:
        raise RelossError(
            f"{len(failed)} of {len(list(plan))} runs failed; see {workspace.sweep}; the rest is recorded. The same "
            "command tries them again and skips what is finished"
        )
