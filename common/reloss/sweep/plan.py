"""The plan of a sweep: which runs a table or an experiment needs, and which of them wait for which.

Runs share work: all seeds of a loss use one surrogate, all surrogates of an experiment one bank, and a fine-tuned run
starts from a baseline. So a plan lists each shared stage once, in four phases, and knows what every job needs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property

from reloss.experiment.banks import bank_folder, bank_state
from reloss.experiment.config import FITTED_LOSSES, Experiment
from reloss.experiment.record import read_summary
from reloss.experiment.run_spec import RunSpec, check_seed, select_fit_settings
from reloss.experiment.settings import baseline_settings, override, renamed, tuned
from reloss.experiment.status import Status
from reloss.experiment.task import ablations, find_experiment, tasks
from reloss.experiment.workspace import Workspace
from reloss.runtime.errors import RelossError, UsageError, unknown
from reloss.sweep.job import Job

MAX_SEEDS = 1000  # of one sweep; the intervals of a table need fewer

Variants = list[tuple[str, tuple[str, ...]]]
"""Losses, each with the settings of its variant."""

Surrogate = tuple[str, str, tuple[str, ...]]
"""What identifies a surrogate within a plan: experiment, loss, and the settings that decide the fit."""


@dataclass(frozen=True)
class Plan:
    """The jobs of a sweep, in phases; the jobs of one phase can run in parallel.

    Attributes:
        prerequisites: runs of other experiments whose records are used.
        baselines: the recorded baselines, and those that runs fine-tune.
        fits: one fit for each surrogate.
        runs: all other runs.
    """

    prerequisites: list[Job] = field(default_factory=list)
    baselines: list[Job] = field(default_factory=list)
    fits: list[Job] = field(default_factory=list)
    runs: list[Job] = field(default_factory=list)

    @property
    def phases(self) -> tuple[list[Job], ...]:
        """The four phases, in order."""
        return self.prerequisites, self.baselines, self.fits, self.runs

    def __iter__(self) -> Iterator[Job]:
        """Iterate over all jobs, phase by phase."""
        return (job for phase in self.phases for job in phase)

    @cached_property
    def needs(self) -> dict[Job, list[Job]]:
        """The jobs of the plan that must have ended well before a job can start, for each job."""
        return {job: self._needs(job) for job in self}

    def _needs(self, job: Job) -> list[Job]:
        prerequisites = [other for other in _prerequisites(job.run) if other in self.prerequisites]
        if job in self.prerequisites or job in self.baselines:
            return prerequisites
        earlier = [*self.prerequisites, *self.baselines]
        if job in self.fits:
            same = [other for other in earlier if other.run.experiment == job.run.experiment]
            starts = [other for other in same if other.stage == "baseline" or other.run.seed == job.run.seed]
            return starts + [
                fit for run in _first_round(job.run) for fit in self._fits_by_surrogate[_surrogate_of(run)]
            ]
        fits = self._fits_by_surrogate[_surrogate_of(job.run)] + self._fits_by_first_round[job.run]  # these run it
        return fits + prerequisites + [start for start in _fine_tuned_baseline(job.run) if start in earlier]

    @cached_property
    def _fits_by_surrogate(self) -> dict[Surrogate, list[Job]]:
        fits = defaultdict[Surrogate, list[Job]](list)
        for fit in self.fits:
            fits[_surrogate_of(fit.run)].append(fit)
        return fits

    @cached_property
    def _fits_by_first_round(self) -> dict[RunSpec, list[Job]]:
        fits = defaultdict[RunSpec, list[Job]](list)
        for fit in self.fits:
            for run in _first_round(fit.run):
                fits[run].append(fit)
        return fits

    def is_done(self, job: Job, workspace: Workspace) -> bool:
        """Return whether a job has nothing to do: it is finished, or every run that needs it is done."""
        if is_finished(job, workspace):
            return True
        if job.stage == "all":
            return False
        return all(self.is_done(other, workspace) for other in self if job in self.needs[other])


def parse_seeds(text: str) -> list[int]:
    """Return the seeds in a list such as `0-4` or `0,2,5-7`, sorted.

    Raises:
        UsageError: the text is not such a list, or a seed is out of range.
    """
    seeds: set[int] = set()
    for part in text.split(","):
        first, dash, last = (word.strip() for word in part.partition("-"))
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UsageError(f"--seeds takes a list such as 0-4 or 0,2,5-7, not '{text}'")
        for bound in (first, last or first):
            check_seed(int(bound))
        if int(first) > int(last or first):
            raise UsageError(f"--seeds {text}: {first} is larger than {last}; the smaller seed comes first")
        seeds.update(range(int(first), min(int(last or first), int(first) + MAX_SEEDS) + 1))
        if len(seeds) > MAX_SEEDS:
            raise UsageError(f"--seeds {text} names more than {MAX_SEEDS} seeds, the most of one sweep")
    return sorted(seeds)


def parse_losses(text: str) -> list[str]:
    """Return the losses in a comma-separated list, without spaces around them; an empty list for an empty text.

    Raises:
        UsageError: the text names no loss.
    """
    losses = [loss.strip() for loss in text.split(",") if loss.strip()]
    if text and not losses:
        raise UsageError(f"--losses takes a list such as ce,reloss, not '{text}'")
    return losses


def make_plan(name: str, losses: Sequence[str], seeds: Sequence[int], settings: Sequence[str] = ()) -> Plan:
    """Return the plan for a task's table, an experiment or an ablation.

    Args:
        name: name of the task, the experiment or the ablation.
        losses: losses to run; all of each experiment if empty.
        seeds: seeds of every loss.
        settings: changes of the config for all runs; the settings of an ablation's variant override them.

    Raises:
        UsageError: an unknown table, experiment, loss or setting.
    """
    prerequisites: list[Job] = []
    baselines: list[Job] = []
    fits: list[Job] = []
    runs: list[Job] = []
    for experiment, variants in _variants(name, losses).items():
        config = override(find_experiment(experiment)[1], settings)
        variant_runs = [RunSpec.resolve(experiment, loss, 0, _merge(settings, changes)) for loss, changes in variants]
        specs = [replace(run, seed=seed) for run in variant_runs for seed in seeds]
        prerequisites += [job for spec in specs for job in _prerequisites(spec)]
        first = _first_baselines(config, specs, settings)
        baselines += first
        fits += _fits(config, variants, settings)
        runs += [Job(spec) for spec in specs if Job(spec) not in first]
    prerequisites = list(dict.fromkeys(prerequisites))
    rest = ([job for job in dict.fromkeys(phase) if job not in prerequisites] for phase in (baselines, fits, runs))
    return Plan(prerequisites, *rest)


def _first_baselines(config: Experiment, specs: Sequence[RunSpec], settings: Sequence[str]) -> list[Job]:
    """Return the baselines that must run before the other runs of an experiment.

    These are the baselines that runs fine-tune, and the one that records the bank. If only the bank is needed, the
    recorded baseline is a job of the stage `baseline`.
    """
    jobs = list(dict.fromkeys(job for spec in specs for job in _fine_tuned_baseline(spec)))
    recorded = RunSpec.resolve(config.name, config.ordinary_loss, config.recording.seed, settings)
    if recorded in specs and not jobs and not tuned(config, settings):
        return [Job(recorded)]
    needs_bank = any(spec.loss in FITTED_LOSSES for spec in specs)
    if needs_bank and recorded.seed not in [job.run.seed for job in jobs]:
        jobs.append(Job(recorded, "baseline"))
    return jobs


def _fits(config: Experiment, variants: Variants, settings: Sequence[str]) -> list[Job]:
    """Return one fit for each surrogate of the variants; variants that only train differently share one.

    Its seed is that of the bank, so that sweeps over other seeds have the same fit.
    """
    fits = [
        (loss, _merge(settings, select_fit_settings(changes))) for loss, changes in variants if loss in FITTED_LOSSES
    ]
    seed = config.recording.seed
    return [Job(RunSpec.resolve(config.name, loss, seed, changed), "learn") for loss, changed in fits]


def _prerequisites(run: RunSpec) -> list[Job]:
    """Return the runs of other experiments whose records a run uses."""
    return [Job(RunSpec.resolve(*required)) for required in run.load()[1].required_runs()]


def _fine_tuned_baseline(run: RunSpec) -> list[Job]:
    """Return the baseline whose weights a run starts from; an empty list if it does not fine-tune."""
    config = run.load()[1]
    if not config.fine_tunes:
        return []
    settings = baseline_settings(config, run.settings)
    return [Job(RunSpec.resolve(run.experiment, config.ordinary_loss, run.seed, settings))]


def _first_round(run: RunSpec) -> list[RunSpec]:
    """Return the run that a second fit learns from, and which its job trains; an empty list for other fits."""
    return [run.first_round()] if run.loss in FITTED_LOSSES and run.load()[1].refit else []


def _surrogate_of(run: RunSpec) -> Surrogate:
    """Return the surrogate that a run uses or a fit learns."""
    return run.experiment, run.loss, run.fit_settings


def _merge(settings: Sequence[str], changes: Sequence[str]) -> tuple[str, ...]:
    """Return `settings` and `changes`; of a key in both, the change."""
    keys = {_key(change) for change in changes}
    return (*(setting for setting in settings if _key(setting) not in keys), *changes)


def _key(setting: str) -> str:
    return renamed(setting).partition("=")[0]


def _variants(name: str, losses: Sequence[str]) -> dict[str, Variants]:
    """Return the losses and settings to run, by experiment.

    Raises:
        UsageError: an unknown table, experiment or loss, or losses chosen for an ablation.
    """
    chosen: dict[str, Variants] = {}
    if parts := [ablation for ablation in ablations() if ablation.name == name]:
        if losses:
            raise UsageError("the ablation fixes the losses that it compares; drop --losses")
        return {
            experiment: [(variant.loss, variant.settings) for variant in ablation.variants]
            for ablation in parts
            for experiment in ablation.experiments
        }
    for experiment in _experiments(name):
        config = find_experiment(experiment)[1]
        for loss in losses:
            if loss not in config.losses:
                raise unknown(f"loss of {experiment}", loss, config.losses)
        chosen[experiment] = [(loss, ()) for loss in losses or config.losses]
    return chosen


def _experiments(name: str) -> list[str]:
    """Return the experiments of a task, or the one with that name."""
    if name in tasks():
        return list(tasks()[name].experiments)
    experiments = [full for task in tasks().values() for full in task.experiments]
    if name not in experiments:
        raise unknown(
            "table or experiment", name, [*(ablation.name for ablation in ablations()), *tasks(), *experiments]
        )
    return [name]


def is_bank_complete(job: Job, workspace: Workspace) -> bool:
    """Return whether the bank of a job's experiment is complete.

    Raises:
        RelossError: the bank is damaged.
    """
    return bool(bank_state(bank_folder(job.run.load()[1], workspace)).get("complete"))


def is_finished(job: Job, workspace: Workspace) -> bool:
    """Return whether the record or the bank that a job produces is complete.

    A fit counts as not finished: its own command checks that quickly. Something damaged counts as not finished too,
    and the job's command reports the damage.
    """
    with suppress(RelossError):
        if job.stage == "baseline":
            return is_bank_complete(job, workspace)
        return job.stage == "all" and read_summary(workspace.record(job.run)).get("status") == Status.FINISHED
    return False
