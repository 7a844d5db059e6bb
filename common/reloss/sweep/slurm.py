"""Sweeps on a Slurm cluster, by submitit: a job per run, arrays of those that wait for the same."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reloss.runtime.errors import RelossError, UsageError
from reloss.runtime.progress import say
from reloss.runtime.signals import noticing
from reloss.sweep.local import TERMINATED, log_of, note_of, notes, reason, run_cell, write_note
from reloss.sweep.plan import Cell, Plan, is_done, needs

if TYPE_CHECKING:
    from submitit import AutoExecutor
    from submitit.helpers import DelayedSubmission

PATIENCE = 600  # seconds that a job that was told to end waits for the scheduler to end it
TIMES = (
    r"(?P<minutes>\d+)",
    r"(?:(?P<days>\d+)-)?(?P<hours>\d+):(?P<minutes>\d+):\d+",
    r"(?P<days>\d+)-(?P<hours>\d+)(?::(?P<minutes>\d+))?",
)


@dataclass(frozen=True)
class Resources:
    """What each job of a sweep asks for, as `--slurm key=value` says it; unknown keys are sbatch's own long options.

    Attributes:
        time: minutes, or as Slurm writes it, such as 4:00:00 or 1-0:00; a run that takes longer is requeued.
        partition: of the cluster; its default one if empty.
        nodes: of one run.
        gpus: of each node; several make the run one of torchrun's, with a process a GPU.
        processes: of each node where no GPU is asked for.
        cpus: of each node.
        mem: gigabytes of each node.
        parallel: jobs of one array that run at a time.
        grace: seconds before the end at which a run is told to keep a checkpoint and end.
        timeouts: how often a run may be requeued because its time is over.
        others: sbatch's long options, without dashes.
    """

    time: str = "4:00:00"
    partition: str = ""
    nodes: int = 1
    gpus: int = 0
    processes: int = 1
    cpus: int = 0
    mem: float = 0.0
    parallel: int = 256
    grace: int = 90
    timeouts: int = 100
    others: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, settings: Sequence[str]) -> Resources:
        """Return what settings such as `gpus=4` say.

        Raises:
            UsageError: a setting without `=`, or a value that does not fit.
        """
        known: dict[str, Any] = {each.name: type(each.default) for each in fields(cls) if each.name != "others"}
        values: dict[str, Any] = {}
        others: dict[str, str] = {}
        for setting in settings:
            key, equals, value = setting.partition("=")
            if not equals or not key:
                raise UsageError(f"--slurm takes key=value, not '{setting}'")
            if key not in known:
                others[key.lstrip("-")] = value
                continue
            try:
                values[key] = known[key](value)
            except ValueError:
                raise UsageError(f"--slurm {setting}: a number is needed") from None
            if known[key] is not str and values[key] < 0:
                raise UsageError(f"--slurm {setting}: the number must not be negative")
        found = cls(**values, others=others)
        found.minutes()
        return found

    def minutes(self) -> int:
        """Return `time` in minutes.

        Raises:
            UsageError: it is not a time.
        """
        for pattern in TIMES:
            if match := re.fullmatch(pattern, self.time):
                part = {name: int(value or 0) for name, value in match.groupdict().items()}
                minutes = (part.get("days", 0) * 24 + part.get("hours", 0)) * 60 + part.get("minutes", 0)
                if minutes:
                    return minutes
        raise UsageError(f"--slurm time={self.time}: give minutes, H:MM:SS, D-H or D-H:MM, at least a minute")

    def options(self) -> dict[str, Any]:
        """Return them as submitit's executor takes them."""
        found: dict[str, Any] = {
            "timeout_min": self.minutes(),
            "nodes": self.nodes,
            "tasks_per_node": 1,
            "slurm_array_parallelism": self.parallel,
            "slurm_signal_delay_s": self.grace,
        }
        chosen = {"gpus_per_node": self.gpus, "cpus_per_task": self.cpus, "mem_gb": self.mem}
        found |= {name: value for name, value in chosen.items() if value}
        return found | ({"slurm_partition": self.partition} if self.partition else {})

    def torchrun(self) -> list[str]:
        """Return the words before `-m reloss.cli` in a job of these resources: torchrun's, if there are processes."""
        processes = self.gpus or self.processes
        if self.nodes == 1:
            return ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] * (processes > 1)
        port = 20000 + int(os.environ["SLURM_JOB_ID"]) % 20000
        return [
            *("-m", "torch.distributed.run", f"--nnodes={self.nodes}", f"--nproc-per-node={processes}"),
            *(f"--node-rank={os.environ['SLURM_NODEID']}", f"--master-addr={os.environ['SLURM_LAUNCH_NODE_IPADDR']}"),
            f"--master-port={port}",
        ]


@dataclass
class Job:
    """The work of one Slurm job: a cell's command in a process of its own.

    When the time is nearly over or the job is pre-empted, submitit calls `checkpoint` and has the job requeued; the
    same command then goes on from the run's last checkpoint.
    """

    cell: Cell
    options: tuple[str, ...]
    runs: str
    resources: Resources = Resources()

    def __post_init__(self) -> None:
        self.process: subprocess.Popen | None = None

    def __call__(self) -> int:
        """Run the command.

        Raises:
            RelossError: it failed; what needs it is then not started.
        """
        runs, threads = Path(self.runs), str(self.resources.cpus or 1)
        environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
        node = int(os.environ.get("SLURM_NODEID", "0"))
        with noticing(signal.SIGTERM, signal.SIGUSR2) as told:

            def start(*what: Any) -> int:
                code = self._start(*what)
                return TERMINATED if told() and code != 0 else code

            code = run_cell(self.cell, self.options, runs, environment, start, self.resources.torchrun(), node)
            if code != 0 and told():
                time.sleep(PATIENCE)  # Slurm ends every process of a job that it takes back, then this one
        if code != 0:
            raise RelossError(reason(log_of(self.cell, runs, node), code))
        return code

    def _start(self, words: list[str], output: Any, environment: Mapping[str, str]) -> int:
        # The signal that tells the job to end reaches all of its processes; this one passes it on as SIGTERM.
        self.process = subprocess.Popen(
            words,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            preexec_fn=lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN),
        )
        return self.process.wait()

    def checkpoint(self) -> DelayedSubmission:
        """End the run, which keeps its last checkpoint, and return what is to be requeued."""
        from submitit.helpers import DelayedSubmission

        if self.process is not None:
            self.process.terminate()
            # This is a signal's handler, and what it interrupted is `process.wait`, whose lock a second one waits for.
            with suppress(ChildProcessError):
                os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(replace(self))


def submit(plan: Plan, options: Sequence[str], runs: Path, resources: Resources) -> None:
    """Submit the cells of a plan that are neither finished nor queued; each starts when what it needs ended well.

    Raises:
        RelossError: there is no Slurm here, or it refuses a job.
    """
    from submitit import AutoExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    if shutil.which("sbatch") is None:
        raise RelossError("no Slurm here: sbatch is not found; use --launcher local or print")
    queued = queued_jobs()
    jobs: dict[Cell, str] = {}
    folder = notes(runs) / "slurm"
    for phase in plan:
        for wanted, cells in _groups(phase, plan, jobs, queued, runs).items():
            executor = AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=resources.timeouts)
            executor.update_parameters(**resources.options(), slurm_job_name=cells[0].experiment.replace("/", "_"))
            try:
                jobs |= _submit_array(executor, cells, wanted, options, runs, resources)
            except (FailedJobError, FailedSubmissionError, subprocess.SubprocessError) as error:
                raise RelossError(f"Slurm refuses the jobs: {error}") from error


def _submit_array(
    executor: AutoExecutor,
    cells: Sequence[Cell],
    wanted: Sequence[str],
    options: Sequence[str],
    runs: Path,
    resources: Resources,
) -> dict[Cell, str]:
    after = {"dependency": f"afterok:{':'.join(wanted)}", "kill-on-invalid-dep": "yes"} if wanted else {}
    executor.update_parameters(slurm_additional_parameters={"requeue": True, **after, **resources.others})
    with executor.batch():
        submitted = [executor.submit(Job(cell, tuple(options), str(runs), resources)) for cell in cells]
    found = {cell: str(job.job_id) for cell, job in zip(cells, submitted, strict=True)}
    for cell, job in found.items():
        write_note(cell, runs, state="submitted", job=job)
        say(f"job {job:<8} {cell.label}" + (f", after {', '.join(wanted)}" if wanted else ""))
    return found


def _groups(
    phase: Sequence[Cell], plan: Plan, jobs: dict[Cell, str], queued: set[str], runs: Path
) -> dict[tuple[str, ...], list[Cell]]:
    """Return the cells of a phase to be submitted, by the jobs that they wait for; `jobs` takes up the queued ones."""
    groups: dict[tuple[str, ...], list[Cell]] = {}
    for cell in phase:
        job = note_of(cell, runs).get("job")
        if is_done(cell, plan, runs):
            say(f"finished     {cell.label}")
        elif job in queued:
            jobs[cell] = job
            say(f"job {job:<8} {cell.label} is queued already")
        else:
            wanted = tuple(sorted(jobs[need] for need in needs(cell, plan) if need in jobs))
            groups.setdefault(wanted, []).append(cell)
    return groups


def queued_jobs() -> set[str]:
    """Return the user's jobs that wait or run, such as 12 or 13_4.

    Raises:
        RelossError: Slurm does not answer, or is not there.
    """
    words = ["squeue", "--noheader", "--array", "--format=%i", f"--user={os.getuid()}"]
    try:
        asked = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip()
        raise RelossError(f"Slurm does not say which jobs are queued: {said}") from error
    return set(asked.stdout.split())
