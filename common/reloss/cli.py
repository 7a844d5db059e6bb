"""The command `reloss`. Heavy imports wait until a subcommand needs them."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg

from reloss.runtime.errors import RelossError, UsageError

Name = Annotated[Positional[str], arg(metavar="NAME")]
Experiment = Annotated[Positional[str], arg(metavar="EXPERIMENT")]
Settings = Annotated[UseAppendAction[tuple[tuple[str, ...], ...]], arg(metavar="KEY=VALUE ...")]
LearnSettings = Annotated[
    UseAppendAction[tuple[tuple[str, ...], ...]],
    arg(metavar="KEY=VALUE ...", help_behavior_hint=lambda default: _options_of_the_fit()),
]
DATA = Path(os.environ.get("RELOSS_DATA", "data"))
RUNS = Path(os.environ.get("RELOSS_RUNS", "runs"))


def _flat(settings: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    """Return the settings of all `--set` options in one tuple."""
    return tuple(setting for group in settings for setting in group)


def _options_of_the_fit() -> str:
    """Return the help of all of them."""
    from reloss.learning.options import describe_options

    return f"\n{describe_options()}"


def _losses(text: str) -> list[str]:
    """Return the losses of a comma-separated list."""
    return [loss for loss in text.split(",") if loss]


@dataclass
class List:
    """List the experiments: name, task, data, losses, paper table.

    Example: reloss list --json
    """

    json: bool = False
    """Print JSON."""

    def __call__(self) -> None:
        from reloss.experiment.task import tasks

        rows = []
        for task in tasks().values():
            for make in task.experiments.values():
                config: Any = make()
                row = {"name": config.name, "task": task.name, "data": config.data.name, "losses": list(config.losses)}
                rows.append({**row, "scope": config.scope, "scope_note": config.scope_note})
        if self.json:
            print(json.dumps(rows, indent=2))
            return
        width = max(len(row["name"]) for row in rows)
        for row in rows:
            losses = ", ".join(row["losses"])
            print(f"{row['name']:<{width}}  {row['data']:<9} {losses}; {row['scope']}: {row['scope_note']}")


@dataclass
class Show:
    """Print the whole resolved config of an experiment as YAML.

    Example: reloss show classification/cifar10_resnet20 --set train.epochs=30
    """

    experiment: Experiment
    set: Settings = ()
    """Changes, such as train.epochs=30 data.format=folder."""

    def __call__(self) -> None:
        from reloss.experiment.config import to_yaml
        from reloss.experiment.settings import override
        from reloss.experiment.task import find_experiment

        print(to_yaml(override(find_experiment(self.experiment)[1], _flat(self.set))), end="")


@dataclass
class Run:
    """Run an experiment: baseline, learn, train, evaluate. What is finished is not done again.

    Example: reloss run classification/digits_cnn --loss reloss --seed 0
    """

    experiment: Experiment
    loss: str | None = None
    """One of the experiment's losses; its ordinary one by default."""
    seed: int = 0
    stage: Literal["all", "baseline", "learn", "train", "evaluate"] = "all"
    set: Settings = ()
    """Changes of the config, such as train.epochs=30; they name the record's variant."""
    data: Path = DATA
    """Folder of the data sets (RELOSS_DATA)."""
    runs: Path = RUNS
    """Folder of the records (RELOSS_RUNS)."""
    track: Literal["wandb", "off"] = "wandb"
    """Mirror metrics to W&B: offline, or online where WANDB_API_KEY is set."""
    resume: Literal["auto", "never"] = "auto"
    """auto: resume from the last checkpoint; never: refuse to touch a record that exists."""
    allow_changed_data: bool = False
    """Continue although the data changed since the record or the bank was written."""

    def __call__(self) -> None:
        from reloss.experiment.run_spec import RunSpec
        from reloss.experiment.workspace import Workspace
        from reloss.pipeline.stages import run
        from reloss.runtime import distributed

        folder = run(
            RunSpec.resolve(self.experiment, self.loss or "", self.seed, _flat(self.set)),
            Workspace(self.runs, self.data),
            stage=self.stage,
            track=self.track,
            resume=self.resume,
            allow_changed_data=self.allow_changed_data,
        )
        if distributed.is_main():
            print(folder)


@dataclass
class Learn:
    """Fit a surrogate on recorded predictions, outside any task. What is finished is not done again.

    Example: reloss learn --bank runs/classification/digits_cnn/bank --metric accuracy --out surrogate
    """

    bank: Path
    """Folder of a prediction bank."""
    metric: str
    """Name of the metric to rank as, or where to import it from, such as my_metrics:kappa."""
    out: Path
    """Folder for the surrogate; an interrupted fit in it goes on."""
    kind: str = "classification"
    """Kind of surrogate: classification (class logits, one by one), set (of a whole batch), pose (heatmaps),
    translation (log-probabilities of gold tokens) or reading (start and end logits)."""
    lower_is_better: bool = False
    """Whether a smaller value of the metric is a better prediction."""
    set: LearnSettings = ()
    """Options of the fit, such as fidelity=released steps=200; with their defaults these:"""

    def __call__(self) -> None:

        from reloss.experiment.config import SurrogateSection
        from reloss.experiment.seeds import seed_everything
        from reloss.experiment.settings import override
        from reloss.learning import LearnOptions, PredictionBank
        from reloss.metrics import METRICS, get_metric
        from reloss.pipeline.fitting import learn
        from reloss.runtime import distributed
        from reloss.runtime.files import read_json
        from reloss.runtime.progress import say
        from reloss.surrogates import build, find_kind

        get_metric(self.metric)
        if self.lower_is_better and self.metric in METRICS:
            raise UsageError(f"of {self.metric} higher is better; drop --lower-is-better")
        network = [each for each in _flat(self.set) if each.partition("=")[0] in SurrogateSection.model_fields]
        options = override(LearnOptions(), [each for each in _flat(self.set) if each not in network])
        section = override(SurrogateSection(), network).with_fidelity(options.fidelity)
        surrogate_class, bank = find_kind(self.kind).__name__, PredictionBank.open(self.bank)
        asked = {
            **{"class": surrogate_class, "metric": self.metric, "higher_is_better": not self.lower_is_better},
            **{"learn": options.model_dump(mode="json"), "bank": bank.fingerprint()},
        }
        if (self.out / "surrogate.json").exists():
            card = read_json(self.out / "surrogate.json")
            if not isinstance(card, dict) or {name: card.get(name) for name in asked} != asked:
                raise UsageError(f"{self.out} holds a surrogate of another fit already; choose another --out")
            say(f"finished already: {self.out}")
            print(json.dumps(card["fit"], indent=2))
            return
        distributed.start()
        seed_everything(options.seed)
        try:
            surrogate = build(self.kind, bank.output_shape(), fidelity=options.fidelity, **section.model_dump())
        except ValueError as error:
            raise RelossError(f"--kind {self.kind} does not go with the bank {self.bank}: {error}") from error
        fit = learn(surrogate, bank, self.metric, options, self.out, not self.lower_is_better)
        if distributed.is_main():
            print(json.dumps(fit, indent=2))


@dataclass
class Table:
    """Print a table: of a task (published beside ours over n seeds, paired differences, commands, records), of the
    `ablation`, or the `correlation`, how well each loss ranks. Damaged records are named and left out.

    Example: reloss table classification --format md
    """

    name: Name
    runs: Path = RUNS
    """Folder of the records (RELOSS_RUNS)."""
    format: Literal["md", "csv", "tex", "json"] = "md"
    tuned: str = ""
    """A score such as accuracy: compare each loss at the learning rate that is best for it on the validation split."""

    def __call__(self) -> None:
        from reloss.report.tables import read_table
        from reloss.runtime.progress import say

        table = read_table(self.name, self.runs, self.tuned, damaged=[])
        print(table.render(self.format))
        for message in table.skipped:
            say(f"skipped: {message}")


@dataclass
class Report:
    """Write one page, whole in itself, of all that the records hold: tables, curves, pictures, where numbers come from.

    Example: reloss report --runs runs --out report.html
    """

    out: Path
    """The HTML file."""
    runs: Path = RUNS
    """Folder of the records (RELOSS_RUNS)."""

    def __call__(self) -> None:
        from reloss.report.page import write_report

        size = write_report(self.runs, self.out)
        print(f"{self.out} ({size / 1e6:.1f} MB, needs no network)")


@dataclass
class Pack:
    """Pack finished and failed runs into a few files that can be committed; every command with --runs reads them.

    Runs with the same name are replaced, all others stay. Weights, predictions and data are not packed.

    Example: reloss pack runs results/records/main
    """

    runs: Annotated[Positional[Path], arg(metavar="RUNS")]
    """Folder of the records to pack."""
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """Folder of the packed records, created if missing."""

    def __call__(self) -> None:
        from reloss.commands.pack import pack
        from reloss.runtime.progress import say

        packed = pack(self.runs, self.out)
        for message in packed.damaged:
            say(f"skipped: {message}")
        print(f"{self.out}: packed {packed.runs} runs and {packed.surrogates} surrogates")


@dataclass
class Diagnose:
    """Rank the checkpoints of all finished runs of an experiment with its ordinary loss and every learned one.

    Example: reloss diagnose classification/digits_cnn
    """

    experiment: Experiment
    runs: Path = RUNS
    """Folder of the records (RELOSS_RUNS)."""
    out: Path | None = None
    """Folder for diagnostics.json, curves.png and checkpoints.png; RUNS/EXPERIMENT/diagnostics by default."""
    json: bool = False
    """Print JSON."""

    def __call__(self) -> None:
        from reloss.report.diagnosis import write_diagnosis

        out = self.out or self.runs / self.experiment / "diagnostics"
        print(write_diagnosis(self.experiment, self.runs, out).render("json" if self.json else "md"))


@dataclass
class Sweep:
    """Run a table, an experiment or the ablation over losses and seeds, here or on a Slurm cluster.

    What is finished is skipped, what failed is tried again; a failing run leaves the others be. `reloss status` shows
    where they are.

    Example: reloss sweep classification/digits_cnn --losses ce,reloss --seeds 0-4 --slots 2
    """

    name: Name
    losses: str = ""
    """Comma-separated; all of the experiment's by default."""
    seeds: str = "0-2"
    """Such as 0-4 or 0,2,5."""
    launcher: Literal["local", "slurm", "print"] = "local"
    """local: processes on this machine; slurm: a job per run; print: only the commands."""
    slots: int = 1
    """Runs at a time on this machine; its GPUs are shared out over them."""
    slurm: Settings = ()
    """What each job asks for, such as partition=long time=12:00:00 gpus=1 cpus=8 mem=32 (GB); see docs/scaling.md."""
    image: str = "reloss"
    """Whose `docker run` lines --launcher print prints; `none` prints plain commands."""
    set: Settings = ()
    """Changes of the config, for all runs."""
    data: Path = DATA
    runs: Path = RUNS
    track: Literal["wandb", "off"] = "wandb"
    allow_changed_data: bool = False
    """Continue although the data changed since a record or the bank was written."""

    def __call__(self) -> None:
        from reloss.experiment.workspace import Workspace
        from reloss.runtime.progress import say
        from reloss.runtime.signals import terminable
        from reloss.sweep.plan import make_plan, parse_seeds

        if self.slots < 1:
            raise UsageError("--slots must be at least 1")
        if self.slurm and self.launcher != "slurm":
            raise UsageError("--slurm goes with --launcher slurm")
        common = ["--track", self.track, *(["--allow-changed-data"] if self.allow_changed_data else [])]
        options = ["--data", str(self.data), "--runs", str(self.runs), *common]
        plan = make_plan(self.name, _losses(self.losses), parse_seeds(self.seeds), _flat(self.set))
        workspace = Workspace(self.runs, self.data)
        if self.launcher == "print":
            from reloss.sweep.lines import docker_lines, plain_lines

            plain = self.image == "none"
            lines = (
                plain_lines(plan, options, workspace) if plain else docker_lines(plan, self.image, workspace, common)
            )
            print("\n".join(lines))
        elif self.launcher == "slurm":
            from reloss.sweep.slurm import Resources, submit

            submit(plan, options, workspace, Resources.parse(_flat(self.slurm)))
        else:
            from reloss.sweep.estimate import estimate
            from reloss.sweep.local import check, run_local, visible_gpus

            say(estimate(plan, workspace, self.slots))
            with terminable():
                failed = run_local(plan, options, workspace, self.slots, visible_gpus())
            check(failed, plan, workspace)


@dataclass
class Status:
    """Show where the runs of a table, an experiment or the ablation are, and why some failed.

    Example: reloss status classification/digits_cnn --losses ce,reloss --seeds 0-4
    """

    name: Name
    losses: str = ""
    """Comma-separated, as of the sweep; all of the experiment's by default."""
    seeds: str = ""
    """As of the sweep, such as 0-4; by default every record that is there is shown."""
    set: Settings = ()
    """As of the sweep; goes with --seeds."""
    runs: Path = RUNS
    """Folder of the records (RELOSS_RUNS)."""
    json: bool = False
    """Print JSON."""

    def __call__(self) -> None:
        from reloss.experiment.workspace import Workspace
        from reloss.runtime.progress import say
        from reloss.sweep.plan import make_plan, parse_seeds
        from reloss.sweep.status import of_plan, of_records, render

        workspace = Workspace(self.runs)
        losses, settings = _losses(self.losses), _flat(self.set)
        if not self.runs.exists():
            say(f"note: there is no folder {self.runs}; --runs says where the records are")
        if settings and not self.seeds:
            raise UsageError("--set says which sweep is meant, and needs its --seeds")
        if self.seeds:
            rows = of_plan(make_plan(self.name, losses, parse_seeds(self.seeds), settings), workspace)
        else:
            rows = of_records(make_plan(self.name, losses, [0]), losses, workspace)
        print(json.dumps([row.as_json() for row in rows], indent=2) if self.json else render(rows))


@dataclass
class Data:
    """Check an experiment's data, or fetch them where they are free to download.

    Example: reloss data fetch cifar10 --data data
    """

    action: Positional[Literal["check", "fetch"]]
    name: Name
    """A data set such as cifar10, or an experiment."""
    data: Path = DATA
    """Folder of the data sets (RELOSS_DATA)."""
    set: Settings = ()
    """Changes of the config, such as data.format=folder."""

    def __call__(self) -> None:
        from reloss.experiment.settings import override
        from reloss.experiment.task import tasks
        from reloss.runtime.errors import unknown

        known: dict[str, Any] = {}
        for task in tasks().values():
            for make in task.experiments.values():
                config: Any = make()
                known.setdefault(config.data.name, (task, config))
                known[config.name] = (task, config)
        if self.name not in known:
            raise unknown("data set or experiment", self.name, known)
        task, config = known[self.name]
        config = override(config, _flat(self.set))
        if self.action == "fetch":
            task.fetch_data(config, self.data)
        print(task.check_data(config, self.data))


@dataclass
class Sync:
    """Upload the runs that W&B recorded offline, each once, and the results tables where they changed.

    Example: WANDB_API_KEY=... reloss sync --runs runs
    """

    runs: Path = RUNS
    """Folder of the records (RELOSS_RUNS)."""
    deadline: float = 300.0
    """Seconds that the upload of one run may take."""

    def __call__(self) -> None:
        from reloss.commands.upload_tables import upload_tables
        from reloss.experiment.workspace import Workspace
        from reloss.tracking.sync import has_key, sync

        if self.deadline <= 0:
            raise UsageError("--deadline must be more than 0")
        if has_key() and self.runs.is_dir():
            upload_tables(Workspace(self.runs))
        sync(self.runs, self.deadline)


@dataclass
class Dashboard:
    """Build the W&B report of each task, baseline and ReLoss side by side; print what it holds, or push it.

    Example: reloss dashboard classification --print
    """

    names: Annotated[Positional[tuple[str, ...]], arg(metavar="[NAME ...]")] = ()
    """Tasks or experiments; all by default."""
    push: FlagCreatePairsOff[bool] = False
    """Write it to W&B, as a new report a task."""
    print: FlagCreatePairsOff[bool] = False
    """Print it as JSON; needs no key and no network."""

    def __call__(self) -> None:
        from reloss.tracking.dashboards import dashboards, push, specs

        if self.push == self.print:
            raise UsageError("choose one of --push and --print")
        if self.push:
            for address in push(self.names):
                print(address)
        else:
            print(json.dumps(specs(dashboards(self.names, entity="")), indent=2))


@dataclass
class Doctor:
    """Print versions, devices, which data are found, and the state of W&B.

    Example: reloss doctor --json
    """

    json: bool = False
    data: Path = DATA
    """Folder of the data sets (RELOSS_DATA)."""

    def __call__(self) -> None:
        from reloss.commands.doctor import examine, render

        found = examine(self.data)
        print(json.dumps(found, indent=2) if self.json else render(found))


@dataclass
class Demo:
    """Run the whole line on scikit-learn's digits: baseline, surrogate, training, table, figures, report. Minutes.

    Example: reloss demo --out demo
    """

    out: Path = Path("demo")
    """Folder for records, table, figures and report.html; what is finished there is not done again."""
    seeds: int = 3

    def __call__(self) -> None:
        from reloss.commands.demo import demo

        if self.seeds < 1:
            raise UsageError("--seeds must be at least 1")
        demo(self.out, self.seeds)


COMMANDS: dict[str, Callable[..., Any]] = {
    command.__name__.lower(): command
    for command in (
        *(List, Show, Run, Learn, Table, Report, Pack, Diagnose, Sweep, Status),
        *(Data, Sync, Dashboard, Doctor, Demo),
    )
}


@dataclass
class _Failure:
    debug: bool = field(default_factory=lambda: bool(os.environ.get("RELOSS_DEBUG")))

    def report(self, error: BaseException) -> int:
        """Print one line about `error` (and the traceback where RELOSS_DEBUG is set); returns the exit code."""
        if self.debug:
            traceback.print_exception(error)
        if isinstance(error, RelossError):
            print(f"reloss: {error}", file=sys.stderr)
            return error.exit_code
        print(f"reloss: {type(error).__name__}: {error} (RELOSS_DEBUG=1 shows where)", file=sys.stderr)
        return 1


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exits with 2 for wrong usage, 1 for a failure, 130 or 143 when interrupted."""
    command = tyro.extras.subcommand_cli_from_dict(
        COMMANDS, prog="reloss", description="Losses learned to rank as an evaluation metric does.", args=arguments
    )
    try:
        command()
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at exit
        sys.exit(141)
    except KeyboardInterrupt:
        print("reloss: interrupted; the same command resumes from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        sys.exit(_Failure().report(error))
    except BaseException as error:
        if type(error).__name__ != "Terminated":
            raise
        from reloss.runtime.progress import MAIN

        if MAIN:
            print("reloss: terminated; the same command resumes from the last checkpoint", file=sys.stderr)
        sys.exit(143)


if __name__ == "__main__":
    main()
