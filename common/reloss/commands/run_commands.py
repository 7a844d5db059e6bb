"""The subcommands that describe and run experiments, with their arguments. Heavy imports wait for the call."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg

from reloss.commands import arguments
from reloss.commands.arguments import DATA, RUNS, Experiment, Name, Settings, Track, flat, print_json, terminal_width

LearnSettings = Annotated[
    UseAppendAction[tuple[tuple[str, ...], ...]],
    arg(metavar="KEY=VALUE ...", help_behavior_hint=lambda default: _describe_learn_settings()),
]


def _describe_learn_settings() -> str:
    """Return every option as `name=default` with its description, one paragraph each; loads no torch."""
    from reloss.experiment.config import SurrogateSection
    from reloss.learning.options import describe_options

    network = [f"{name}={field.default}: {field.description}" for name, field in SurrogateSection.model_fields.items()]
    return "\n".join(["", *network, describe_options()])


@dataclass
class List:
    """List the experiments by task: name, whether it can run here, data, losses, and how it relates to the paper.

    ready: packages and data are there. Below the list, standard error reports what the others lack.

    Example: reloss list --data data
    """

    json: bool = False
    """Print JSON."""
    data: arguments.Data = DATA

    def __call__(self) -> None:
        from reloss.commands.experiments import list_experiments, remedies, render_experiments
        from reloss.runtime.progress import say

        rows = list_experiments(self.data)
        if self.json:
            print_json(rows)
            return
        print(render_experiments(rows, terminal_width()), flush=True)
        for line in remedies(rows, self.data):
            say(line)


@dataclass
class Show:
    """Print the whole resolved config of an experiment as YAML.

    Example: reloss show classification/cifar10_resnet20 --set train.epochs=30
    """

    experiment: Experiment
    """Name of the experiment; `reloss list` prints all names."""
    set: Settings = ()
    """Changes of the config, such as train.epochs=30 data.format=folder."""

    def __call__(self) -> None:
        from reloss.experiment.config import to_yaml
        from reloss.experiment.settings import override
        from reloss.experiment.task import find_experiment

        print(to_yaml(override(find_experiment(self.experiment)[1], flat(self.set))), end="")


@dataclass
class Run:
    """Run an experiment: baseline, learn, train, evaluate. Finished stages are skipped, interrupted ones resume.

    Example: reloss run classification/digits_cnn --loss reloss --seed 0
    """

    experiment: Experiment
    """Name of the experiment; `reloss list` prints all names."""
    loss: str = ""
    """One of the experiment's losses; by default its ordinary loss."""
    seed: int = 0
    """Seed of initialisation, data order and augmentation."""
    stage: Literal["all", "baseline", "learn", "train", "evaluate"] = "all"
    """Run one stage. train also fits the surrogate if needed; evaluate scores the final weights again."""
    set: Settings = ()
    """Changes of the config, such as train.epochs=30; they name the record's variant."""
    data: arguments.Data = DATA
    runs: arguments.Runs = RUNS
    track: Track = "wandb"
    resume: Literal["auto", "never"] = "auto"
    """auto: resume from the last checkpoint; never: refuse to touch a record that exists."""
    allow_changed_data: bool = False
    """Continue although the data changed since the record or the bank was written."""
    device: arguments.Device = ""
    dry_run: FlagCreatePairsOff[bool] = False
    """Only print the steps, which of them are finished, where their results go, and what is missing."""

    def __call__(self) -> None:
        from reloss.runtime.device import choose_device

        choose_device(self.device)
        from reloss.commands.dry_run import dry_run
        from reloss.experiment.run_spec import RunSpec
        from reloss.experiment.workspace import Workspace
        from reloss.pipeline.stages import run
        from reloss.runtime import distributed

        spec = RunSpec.resolve(self.experiment, self.loss, self.seed, flat(self.set))
        workspace = Workspace(self.runs, self.data)
        if self.dry_run:
            dry_run(spec, workspace, self.stage, self.track, self.resume)
            return
        record = run(
            spec,
            workspace,
            stage=self.stage,
            track=self.track,
            resume=self.resume,
            allow_changed_data=self.allow_changed_data,
        )
        if distributed.is_main():
            print(record)


@dataclass
class Learn:
    """Fit a surrogate on recorded predictions, outside any task. A finished fit is skipped.

    Example: reloss learn --bank runs/classification/digits_cnn/bank --metric accuracy --out surrogate
    """

    bank: Path
    """Folder of a prediction bank."""
    metric: str
    """Name of the metric, or where to import it from, such as my_metrics:kappa."""
    out: Path
    """Folder for the surrogate; an interrupted fit in it resumes."""
    kind: str = "classification"
    """Kind of surrogate: classification (class logits, each example alone), set (a whole batch), pose (heatmaps),
    translation (log-probabilities of the reference's tokens) or reading (start and end logits)."""
    lower_is_better: bool = False
    """A smaller value of the metric is a better prediction."""
    set: LearnSettings = ()
    """Options of the network and of the fit, such as fidelity=released steps=200. All options and their defaults:"""
    device: arguments.Device = ""

    def __call__(self) -> None:
        from reloss.runtime.device import choose_device

        choose_device(self.device)
        from reloss.commands.learn import learn
        from reloss.runtime import distributed

        fit = learn(self.bank, self.metric, self.out, self.kind, not self.lower_is_better, flat(self.set))
        if distributed.is_main():
            print_json(fit)


@dataclass
class Sweep:
    """Run a table, an experiment or the ablation over losses and seeds, on this machine or on a Slurm cluster.

    Finished runs are skipped and failed runs are tried again. A failing run does not stop the others. `reloss status`
    shows the state of every run.

    Example: reloss sweep classification/digits_cnn --losses ce,reloss --seeds 0-4 --slots 2
    """

    name: Name
    """A task, an experiment, or an ablation: ablation or rare_ablation."""
    losses: str = ""
    """Comma-separated losses; by default all losses of the experiment."""
    seeds: str = "0-2"
    """Seeds, such as 0-4 or 0,2,5."""
    launcher: Literal["local", "slurm", "print"] = "local"
    """local: processes on this machine; slurm: one job per run; print: only print the commands."""
    slots: int = 1
    """Number of runs at a time on this machine, which share its GPUs."""
    slurm: Settings = ()
    """Resources of each Slurm job, such as partition=long time=12:00:00 gpus=1 cpus=8 mem=32; see docs/scaling.md."""
    image: str = "reloss"
    """Image of the `docker run` lines that --launcher print prints; none: print plain commands."""
    set: Settings = ()
    """Changes of the config, for all runs."""
    data: arguments.Data = DATA
    runs: arguments.Runs = RUNS
    track: Track = "wandb"
    allow_changed_data: bool = False
    """Continue although the data changed since a record or the bank was written."""
    device: Annotated[
        str,
        arg(
            metavar="cpu|cuda|cuda:N",
            help="With --launcher local, the device of all runs; by default the GPUs are shared out, or the "
            "processor is used if there is none.",
        ),
    ] = ""

    def __call__(self) -> None:
        from reloss.runtime.device import choose_device
        from reloss.runtime.errors import UsageError

        if self.device and self.launcher != "local":
            raise UsageError("--device needs --launcher local; for Slurm, request GPUs with --slurm gpus=1")
        choose_device(self.device)
        from reloss.commands.launch import launch
        from reloss.experiment.workspace import Workspace
        from reloss.sweep.plan import make_plan, parse_losses, parse_seeds
        from reloss.tracking.trackers import check_track

        check_track(self.track)
        plan = make_plan(self.name, parse_losses(self.losses), parse_seeds(self.seeds), flat(self.set))
        options = ["--track", self.track, *(["--allow-changed-data"] if self.allow_changed_data else [])]
        workspace = Workspace(self.runs, self.data)
        launch(plan, workspace, self.launcher, options, slots=self.slots, slurm=flat(self.slurm), image=self.image)


@dataclass
class Status:
    """Show the state of the runs of a table, an experiment or the ablation, and why some failed.

    Example: reloss status classification/digits_cnn --losses ce,reloss --seeds 0-4
    """

    name: Name
    """A task, an experiment, or an ablation: ablation or rare_ablation."""
    losses: str = ""
    """Comma-separated losses; by default all losses of the experiment."""
    seeds: str = ""
    """Seeds of a sweep, such as 0-4; by default every record that exists."""
    set: Settings = ()
    """Settings of a sweep; needs --seeds."""
    runs: arguments.Runs = RUNS
    json: bool = False
    """Print JSON."""

    def __call__(self) -> None:
        from reloss.commands.status import print_status, read_status
        from reloss.experiment.workspace import Workspace

        rows = read_status(self.name, self.losses, self.seeds, flat(self.set), Workspace(self.runs))
        print_json([row.as_json() for row in rows]) if self.json else print_status(rows)


@dataclass
class Forget:
    """Remove the records of runs, by default failed and damaged ones, so that no table counts them.

    Lists what it removes, and removes it with --yes. Banks and surrogates stay.

    Example: reloss forget classification/digits_cnn --states failed --yes
    """

    name: Name
    """A task, an experiment, or an ablation: ablation or rare_ablation."""
    losses: str = ""
    """Comma-separated losses; by default all losses of the experiment."""
    seeds: str = ""
    """Seeds of a sweep, such as 0-4; by default every record that exists."""
    set: Settings = ()
    """Settings of a sweep; needs --seeds."""
    states: str = "failed,damaged"
    """Comma-separated states as in `reloss status`: failed, damaged, interrupted, killed, finished."""
    runs: arguments.Runs = RUNS
    yes: FlagCreatePairsOff[bool] = False
    """Remove the records; without this option, they are only listed."""

    def __call__(self) -> None:
        from reloss.commands.forget import find_records, forget
        from reloss.commands.status import print_status
        from reloss.experiment.workspace import Workspace
        from reloss.runtime.progress import say

        workspace = Workspace(self.runs)
        rows = find_records(self.name, self.losses, self.seeds, flat(self.set), self.states, workspace)
        print_status(rows)
        if self.yes:
            forget(rows, workspace)
            say("removed")
        elif rows:
            say("nothing is removed yet; add --yes to remove these records")


@dataclass
class Data:
    """Check the data of an experiment, or fetch them if they can be downloaded.

    Example: reloss data fetch cifar10 --data data
    """

    action: Positional[Literal["check", "fetch"]]
    """check: report what is there; fetch: download, then check."""
    name: Name
    """A data set, such as cifar10, or an experiment."""
    data: arguments.Data = DATA
    set: Settings = ()
    """Changes of the config, such as data.format=folder."""

    def __call__(self) -> None:
        from reloss.commands.data import check_data, fetch_data

        if self.action == "fetch":
            fetch_data(self.name, self.data, flat(self.set))
        print(check_data(self.name, self.data, flat(self.set)))
