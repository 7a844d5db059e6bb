"""What each Slurm job of a sweep requests, from `--slurm key=value`. Imports neither torch nor submitit."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from reloss.runtime.errors import UsageError, unknown

TIMES = (
    r"(?P<minutes>\d+)",
    r"(?:(?P<days>\d+)-)?(?P<hours>\d+):(?P<minutes>\d+):\d+",
    r"(?P<days>\d+)-(?P<hours>\d+)(?::(?P<minutes>\d+))?",
)

LEAST = {"nodes": 1, "processes": 1, "parallel": 1, "grace": 1}
"""The smallest values of numbers that must not be 0."""

# As `sbatch --help` and the manual of Slurm 22.05 list them, and newer ones, which an older sbatch refuses:
# container-id, oom-kill-step, resv-ports, segment, stepmgr, tres-bind, tres-per-task.
_SBATCH_OPTIONS = """
    account acctg-freq batch bb bbf begin cluster-constraint clusters comment constraint container container-id
    contiguous core-spec cores-per-socket cpu-freq cpus-per-gpu deadline delay-boot dependency distribution
    exclude exclusive export export-file extra extra-node-info get-user-env gid gpu-bind gpu-freq gpus-per-socket
    gres gres-flags hint hold ignore-pbs licenses mail-type mail-user mcs-label mem-bind mem-per-cpu mem-per-gpu
    mincpus network nice no-kill nodefile nodelist oom-kill-step overcommit oversubscribe power prefer priority
    profile propagate qos reboot reservation resv-ports segment sockets-per-node spread-job stepmgr switches
    thread-spec threads-per-core time-min tmp tres-bind tres-per-task uid use-min-nodes wait-all-nodes wckey
"""
SBATCH_OPTIONS = frozenset(_SBATCH_OPTIONS.split())
"""Long options of sbatch that do not interfere with a sweep."""

SET_BY_THE_SWEEP = {
    **dict.fromkeys(("gpus-per-node", "gpus-per-task"), "gpus"),
    **dict.fromkeys(
        ("ntasks", "ntasks-per-core", "ntasks-per-gpu", "ntasks-per-node", "ntasks-per-socket"), "processes"
    ),
    **{"cpus-per-task": "cpus", "array": "parallel", "signal": "grace"},
    **dict.fromkeys(("requeue", "no-requeue"), "timeouts"),
    **dict.fromkeys(("chdir", "error", "input", "job-name", "kill-on-invalid-dep", "open-mode", "output"), ""),
    **dict.fromkeys(("help", "parsable", "quiet", "test-only", "usage", "verbose", "version", "wait", "wrap"), ""),
}
"""Long options of sbatch that a sweep sets or relies on. Each value is the key that changes the option, or is empty."""


@dataclass(frozen=True)
class Resources:
    """The resources of each job of a sweep, from `--slurm key=value`; other keys are sbatch's own long options.

    Attributes:
        time: time limit in minutes, or in Slurm's notation, such as 4:00:00 or 1-0:00; a run that takes longer is
            requeued.
        partition: partition of the cluster; the default one if empty.
        nodes: nodes per run.
        gpus: GPUs per node; with several, torchrun starts one process per GPU.
        processes: processes per node if no GPU is requested.
        cpus: CPU cores per node; 0: the cluster's default.
        mem: gigabytes of memory per node; 0: the cluster's default.
        parallel: jobs of one array that run at a time.
        grace: seconds between the signal to save a checkpoint and end, and the time limit; at most half of the limit.
        timeouts: how often a run may be requeued because its time is over.
        others: sbatch's long options, without dashes; True for an option without a value.
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
    others: Mapping[str, str | bool] = field(default_factory=dict)

    @classmethod
    def parse(cls, settings: Sequence[str]) -> Resources:
        """Return the resources that settings such as `gpus=4` describe.

        Raises:
            UsageError: a setting without `=`, an unknown key, a key given twice, or a value that does not fit.
        """
        types: dict[str, Any] = {option.name: type(option.default) for option in fields(cls) if option.name != "others"}
        values: dict[str, Any] = {}
        others: dict[str, str | bool] = {}
        for setting in settings:
            key, equals, value = setting.partition("=")
            key = key.lstrip("-")
            if not equals or not key:
                raise UsageError(f"--slurm takes key=value, not '{setting}'")
            if not setting.isprintable():
                raise UsageError(f"--slurm {setting!r} holds a character that cannot be printed")
            name = key.replace("_", "-")
            if key in values or name in others:
                raise UsageError(f"--slurm gives {key} twice; give it once")
            if key in types:
                values[key] = _number(setting, key, value, types[key]) if types[key] is not str else value
            else:
                others[name] = _sbatch_value(setting, name, value, types)
        resources = cls(**values, others=others)
        resources.minutes()
        return resources

    def minutes(self) -> int:
        """Return the time limit in minutes.

        Raises:
            UsageError: `time` is not a time.
        """
        for pattern in TIMES:
            if match := re.fullmatch(pattern, self.time):
                part = {name: int(value or 0) for name, value in match.groupdict().items()}
                minutes = (part.get("days", 0) * 24 + part.get("hours", 0)) * 60 + part.get("minutes", 0)
                if minutes:
                    return minutes
        raise UsageError(f"--slurm time={self.time}: give minutes, H:MM:SS, D-H or D-H:MM, at least a minute")

    def options(self) -> dict[str, Any]:
        """Return the resources as parameters of submitit's executor."""
        minutes = self.minutes()
        parameters: dict[str, Any] = {
            "timeout_min": minutes,
            "nodes": self.nodes,
            "tasks_per_node": 1,
            "slurm_array_parallelism": self.parallel,
            "slurm_signal_delay_s": min(self.grace, minutes * 30),
        }
        optional = {"gpus_per_node": self.gpus, "cpus_per_task": self.cpus, "mem_gb": self.mem}
        parameters |= {name: value for name, value in optional.items() if value}
        return parameters | ({"slurm_partition": self.partition} if self.partition else {})

    def options_after(self, jobs: Sequence[str]) -> dict[str, str | bool]:
        """Return sbatch's own options for a job that waits for Slurm jobs, and for what `dependency` names."""
        if not jobs:
            return dict(self.others)
        dependency = ",".join([f"afterok:{':'.join(jobs)}", *filter(None, [str(self.others.get("dependency", ""))])])
        return {"kill-on-invalid-dep": "yes", **self.others, "dependency": dependency}

    def torchrun(self) -> list[str]:
        """Return the words before `-m reloss.cli` in a job: torchrun's if a run has several processes, else none."""
        processes = self.gpus or self.processes
        if self.nodes == 1:
            return ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] * (processes > 1)
        port = 20000 + int(os.environ["SLURM_JOB_ID"]) % 20000
        return [
            *("-m", "torch.distributed.run", f"--nnodes={self.nodes}", f"--nproc-per-node={processes}"),
            *(f"--node-rank={os.environ['SLURM_NODEID']}", f"--master-addr={os.environ['SLURM_LAUNCH_NODE_IPADDR']}"),
            f"--master-port={port}",
        ]


def _number(setting: str, key: str, text: str, kind: type[int] | type[float]) -> int | float:
    """Return the value of a resource that is a number.

    Raises:
        UsageError: it is no number, or is too small or not finite.
    """
    try:
        number = kind(text)
    except ValueError:
        expected = "a number of gigabytes" if kind is float else "a whole number"
        raise UsageError(f"--slurm {setting}: {expected} is needed, such as {key}=8") from None
    if not math.isfinite(number):
        raise UsageError(f"--slurm {setting}: the number must be finite")
    if number < 0:
        raise UsageError(f"--slurm {setting}: the number must not be negative")
    if number < LEAST.get(key, 0):
        raise UsageError(f"--slurm {setting}: the number must be at least {LEAST[key]}")
    if 0 < number < 1 / 1024:  # Slurm reads 0 megabytes as all memory of a node
        raise UsageError(f"--slurm {setting}: the number is in gigabytes, and must be at least a megabyte")
    return number


def _sbatch_value(setting: str, name: str, value: str, keys: Mapping[str, Any]) -> str | bool:
    """Return the value of an option of sbatch; True if the option stands alone.

    Raises:
        UsageError: sbatch has no such option, the sweep sets it, or it leaves a dependency of the sweep open.
    """
    if name in SET_BY_THE_SWEEP:
        key = SET_BY_THE_SWEEP[name]
        remedy = f"use --slurm {key}=..." if key else "remove it"
        raise UsageError(f"--slurm {setting}: the sweep sets {name} itself; {remedy}")
    if name not in SBATCH_OPTIONS:
        raise unknown("key of --slurm", name, [*keys, *SBATCH_OPTIONS])
    if name == "dependency" and "?" in value:
        raise UsageError(
            f"--slurm {setting}: the sweep adds dependencies of its own, and all must hold; separate them by commas "
            "instead of '?'"
        )
    return value or True
