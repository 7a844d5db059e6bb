"""Sweeps on a Slurm cluster, with submitit: one Slurm job per job of the plan.

Jobs that wait for the same jobs form one array. Slurm starts an array once the jobs before it ended well, and requeues
a job that is preempted or runs out of time; its command then resumes from the last checkpoint.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from reloss.experiment.status import Status
from reloss.experiment.workspace import Workspace
from reloss.runtime.errors import RelossError, UsageError
from reloss.runtime.progress import say
from reloss.runtime.signals import noticing
from reloss.sweep.job import TERMINATED, Job, failure_reason, log_of, read_note, run_job, write_note
from reloss.sweep.resources import Resources

if TYPE_CHECKING:  # a job imports this module, and can do without torch, which Plan brings
    from submitit import AutoExecutor
    from submitit.helpers import DelayedSubmission

    from reloss.sweep.plan import Plan

PATIENCE = 600
"""Seconds for which a job that was told to end waits for the scheduler to end it."""


@dataclass
class SlurmJob:
    """What one Slurm job runs: the command of a job of the plan, in a process of its own.

    When the time is nearly over or the job is preempted, submitit calls `checkpoint` and has the job requeued; the same
    command then resumes from the run's last checkpoint.
    """

    job: Job
    options: tuple[str, ...]
    workspace: Workspace
    resources: Resources = field(default_factory=Resources)

    def __post_init__(self) -> None:
        self.process: subprocess.Popen | None = None

    def __call__(self) -> int:
        """Run the command.

        Raises:
            RelossError: it failed; Slurm then does not start the jobs that need it.
        """
        threads = str(self.resources.cpus or 1)
        environment = {"OMP_NUM_THREADS": threads, **os.environ}
        node = int(os.environ.get("SLURM_NODEID", "0"))
        with noticing(signal.SIGTERM, signal.SIGUSR2) as is_told_to_end:

            def start(*arguments: Any) -> int:
                code = self._start(*arguments)
                return TERMINATED if is_told_to_end() and code != 0 else code

            launcher = self.resources.torchrun()
            code = run_job(self.job, self.options, self.workspace, environment, start, launcher, node)
            if code != 0 and is_told_to_end():
                time.sleep(PATIENCE)  # Slurm ends every process of a job that it takes back, then this one
        if code != 0:
            raise RelossError(failure_reason(log_of(self.job, self.workspace, node), code))
        return code

    def _start(self, words: list[str], output: Any, environment: Mapping[str, str]) -> int:
        # Slurm's signal reaches all processes of the job. Only this process handles it, and passes it on as SIGTERM.
        self.process = subprocess.Popen(
            words,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            preexec_fn=lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN),
        )
        return self.process.wait()

    def checkpoint(self) -> DelayedSubmission:
        """End the run, which keeps its last checkpoint, and return what Slurm requeues."""
        from submitit.helpers import DelayedSubmission

        if self.process is not None:
            self.process.terminate()
            # This handler may interrupt `process.wait` above, and a second call of it would wait for that one's lock.
            with suppress(ChildProcessError):
                os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(replace(self))


def submit(plan: Plan, options: Sequence[str], workspace: Workspace, resources: Resources) -> None:
    """Submit the jobs of a plan that are neither done nor queued; each starts when the jobs it needs ended well.

    Raises:
        UsageError: the folder of the records has a character that Slurm replaces in paths.
        RelossError: there is no Slurm here, or it refuses a job.
    """
    from submitit import AutoExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    logs = workspace.slurm_logs.absolute()
    if set("%\\") & set(str(logs)):
        raise UsageError(f"Slurm replaces % and \\ in paths such as {logs}; choose another folder with --runs")
    if shutil.which("sbatch") is None:
        raise RelossError("no Slurm here: sbatch is not found; use --launcher local or print")
    queued = queued_jobs()
    ids: dict[Job, str] = {}
    for phase in plan.phases:
        for needed_ids, jobs in _arrays(phase, plan, ids, queued, workspace).items():
            executor = AutoExecutor(logs, cluster="slurm", slurm_max_num_timeout=resources.timeouts)
            name = jobs[0].run.experiment.replace("/", "_")
            executor.update_parameters(**resources.options(), slurm_job_name=name)
            try:
                ids |= _submit_array(executor, jobs, needed_ids, options, workspace, resources)
            except (FailedJobError, FailedSubmissionError, subprocess.SubprocessError) as error:
                raise RelossError(f"Slurm refuses the jobs: {error}; change the resources with --slurm") from error


def _submit_array(
    executor: AutoExecutor,
    jobs: Sequence[Job],
    needed_ids: Sequence[str],
    options: Sequence[str],
    workspace: Workspace,
    resources: Resources,
) -> dict[Job, str]:
    """Submit jobs that wait for the same Slurm jobs; return the ids of theirs."""
    executor.update_parameters(slurm_additional_parameters={"requeue": True, **resources.options_after(needed_ids)})
    with executor.batch():
        submitted = [executor.submit(SlurmJob(job, tuple(options), workspace, resources)) for job in jobs]
    ids = {job: str(handle.job_id) for job, handle in zip(jobs, submitted, strict=True)}
    for job, number in ids.items():
        write_note(job, workspace, Status.QUEUED, job=number)
        say(f"job {number:<8} {job.label}" + (f", after {', '.join(needed_ids)}" if needed_ids else ""))
    return ids


def _arrays(
    phase: Sequence[Job], plan: Plan, ids: dict[Job, str], queued: set[str], workspace: Workspace
) -> dict[tuple[str, ...], list[Job]]:
    """Return the jobs of a phase to submit, by the Slurm jobs that they wait for; add queued jobs to `ids`."""
    arrays: dict[tuple[str, ...], list[Job]] = {}
    for job in phase:
        number = read_note(job, workspace).get("job")
        if plan.is_done(job, workspace):
            say(f"finished     {job.label}")
        elif number in queued:
            ids[job] = number
            say(f"job {number:<8} {job.label} is queued already")
        else:
            needed_ids = tuple(sorted(ids[need] for need in plan.needs[job] if need in ids))
            arrays.setdefault(needed_ids, []).append(job)
    return arrays


def queued_jobs() -> set[str]:
    """Return the ids of the user's jobs that wait or run, such as 12 or 13_4.

    Raises:
        RelossError: Slurm does not answer, or is not there.
    """
    words = ["squeue", "--noheader", "--array", "--format=%i", f"--user={os.getuid()}"]
    try:
        output = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        problem = (getattr(error, "stderr", None) or str(error)).strip()
        raise RelossError(
            f"squeue does not list the queued jobs: {problem}; run the same command again when Slurm answers"
        ) from error
    return set(output.split())
