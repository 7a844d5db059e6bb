"""The subcommands that read results, and those that look at the installation, with their arguments."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from reloss.commands import arguments
from reloss.commands.arguments import DATA, RUNS, Experiment, Name, print_json, terminal_width


@dataclass
class Table:
    """Print a table of the records: a task's results, the `ablation`, or the `correlation` of losses with the metric.

    Example: reloss table classification/digits_cnn --columns variant,score,n
    """

    name: Name
    """A task, such as classification; an experiment, such as classification/digits_cnn; ablation, or correlation."""
    runs: arguments.Runs = RUNS
    format: Literal["auto", "md", "csv", "tex", "json"] = "auto"
    """Markdown, CSV, LaTeX (booktabs) or JSON; auto: a table that fits the terminal, and Markdown if there is none."""
    tuned: str = ""
    """A score such as accuracy: compare each loss at its best learning rate on the validation split."""
    pool: str = ""
    """With --tuned, a pattern of experiments such as 'keel_*': one table over all of them."""
    columns: str = ""
    """Names of the columns to show, such as variant,score,n; a wrong name lists the valid ones."""
    all: FlagCreatePairsOff[bool] = False
    """On a terminal, show the rows that were not run, too. The formats always hold every row."""

    def __call__(self) -> None:
        import sys

        from rich.console import Console

        from reloss.report.tables import choose_columns, read_table, table_layout
        from reloss.report.terminal import print_table
        from reloss.runtime.progress import say

        fitted = self.format == "auto" and sys.stdout.isatty()
        table = read_table(self.name, self.runs, self.tuned, self.pool, damaged=[], with_variants=fitted)
        if fitted:
            layout = table_layout(self.name, self.tuned, self.pool)
            print_table(table, layout, Console(highlight=False), self.columns, self.all)
        else:
            format = "md" if self.format == "auto" else self.format
            print((choose_columns(table, self.columns, format) if self.columns else table).render(format))
        for message in table.skipped:
            say(f"skipped: {message}")


@dataclass
class Compare:
    """Print the difference between two variants of an experiment, paired by seed, with its 95 % interval.

    Example: reloss compare classification/digits_cnn:reloss classification/digits_cnn:ce
    """

    first: Annotated[Positional[str], arg(metavar="A")]
    """EXPERIMENT:LOSS[@SETTINGS], as the folder of its runs is called, or a beginning that is unique."""
    second: Annotated[Positional[str], arg(metavar="B")]
    """The variant to compare A with, of the same experiment."""
    runs: arguments.Runs = RUNS
    json: bool = False
    """Print JSON."""

    def __call__(self) -> None:
        from reloss.experiment.records import read_runs
        from reloss.report.comparison import compare
        from reloss.report.tables import existing
        from reloss.runtime.progress import say
        from reloss.runtime.text import printable

        damaged: list[str] = []
        pair = compare(self.first, self.second, read_runs(existing(self.runs), damaged))
        print_json(pair.data()) if self.json else print(printable(pair.text()))
        for message in damaged:
            say(f"skipped: {message}")


@dataclass
class Report:
    """Write one self-contained HTML page about all records: tables, curves, pictures, and the source of every number.

    Example: reloss report --runs runs --out report.html
    """

    out: Path
    """The HTML file to write."""
    runs: arguments.Runs = RUNS
    watch: FlagCreatePairsOff[bool] = False
    """Write the page again every 15 seconds, for an open browser to load, until Ctrl-C; for a sweep that runs."""

    def __call__(self) -> None:
        from reloss.report.page import watch_report, write_report
        from reloss.runtime.progress import say

        if self.watch:
            say(f"{self.out.absolute().as_uri()} follows {self.runs}; Ctrl-C stops")
            watch_report(self.runs, self.out)
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
class Zoo:
    """List the losses that are fitted already, for `reloss.load(NAME)`; with a name, print the card of one.

    Example: reloss zoo f1
    """

    name: Annotated[Positional[str], arg(metavar="[NAME]")] = ""
    """A loss such as f1; all by default."""
    json: bool = False
    """Print JSON."""

    def __call__(self) -> None:
        import sys

        from rich.console import Console

        from reloss.commands.zoo import LAYOUT, card_data, zoo_data, zoo_note, zoo_table, zoo_text
        from reloss.report.terminal import print_table
        from reloss.runtime.text import fitted

        if self.json:
            print_json(card_data(self.name) if self.name else zoo_data())
        elif self.name:
            print(fitted(zoo_text(self.name), terminal_width()))
        elif sys.stdout.isatty():
            print_table(zoo_table(), LAYOUT, Console(highlight=False))
            print(fitted(zoo_note(), terminal_width()))
        else:
            print(zoo_table().plain())


@dataclass
class Diagnose:
    """Rank the checkpoints of all finished runs of an experiment by its ordinary loss and by every learned loss.

    Example: reloss diagnose classification/digits_cnn
    """

    experiment: Experiment
    """Name of the experiment."""
    runs: arguments.Runs = RUNS
    out: Path | None = None
    """Folder for diagnostics.json, curves.png and checkpoints.png; RUNS/EXPERIMENT/diagnostics by default."""
    json: bool = False
    """Print JSON."""

    def __call__(self) -> None:
        from reloss.experiment.workspace import Workspace
        from reloss.report.diagnosis import write_diagnosis

        out = self.out or Workspace(self.runs).diagnostics(self.experiment)
        print(write_diagnosis(self.experiment, self.runs, out).render("json" if self.json else "md"))


@dataclass
class Sync:
    """Upload the runs that Weights & Biases recorded offline, and the results tables if they changed.

    Example: WANDB_API_KEY=... reloss sync --runs runs
    """

    runs: arguments.Runs = RUNS
    deadline: float = 300.0
    """Seconds that the upload of one run may take."""

    def __call__(self) -> None:
        from reloss.commands.sync import sync
        from reloss.experiment.workspace import Workspace

        sync(Workspace(self.runs), self.deadline)


@dataclass
class Dashboard:
    """Build a Weights & Biases report per task, with the ordinary and the learned losses side by side.

    Example: reloss dashboard classification --print
    """

    names: Annotated[Positional[tuple[str, ...]], arg(metavar="[NAME ...]")] = ()
    """Tasks or experiments; all by default."""
    push: FlagCreatePairsOff[bool] = False
    """Upload it, as one new report per task."""
    print: FlagCreatePairsOff[bool] = False
    """Print it as JSON; needs no key and no network."""

    def __call__(self) -> None:
        from reloss.runtime.errors import UsageError
        from reloss.tracking.dashboards import dashboards, push, specs

        if self.push == self.print:
            raise UsageError("choose one of --push and --print")
        if self.push:
            print("\n".join(push(self.names)))
        else:
            print_json(specs(dashboards(self.names, entity="")))


@dataclass
class Doctor:
    """Report versions, devices, which data are there, and the state of Weights & Biases.

    Example: reloss doctor --json
    """

    json: bool = False
    """Print JSON."""
    data: arguments.Data = DATA

    def __call__(self) -> None:
        from reloss.commands.doctor import INDENT, examine, render
        from reloss.runtime.text import fitted

        report = examine(self.data)
        print_json(report) if self.json else print(fitted(render(report), terminal_width(), INDENT))


@dataclass
class Demo:
    """Learn a loss for F1 on a rare digit and compare it with its rivals, in minutes: table, figures, report.

    Example: reloss demo --out demo
    """

    out: Path = Path("demo")
    """Folder for records, table, figures and report.html; finished runs in it are skipped."""
    seeds: int = 10
    """Number of seeds."""

    def __call__(self) -> None:
        from reloss.runtime.extras import require

        require("classification", "report")
        from reloss.commands.demo import demo

        demo(self.out, self.seeds)
