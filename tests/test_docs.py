"""The code of the tutorial runs as written, block after block; the commands of all pages are commands of today."""

import importlib
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tyro
from test_layering import LAYERS

from reloss.commands.subcommands import COMMANDS
from reloss.experiment.run_spec import RunSpec
from reloss.experiment.task import tasks
from reloss.metric_loss import KINDS

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```python ?(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OUTPUT = re.compile(r"^```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"\d\.\d+")
COMMAND = re.compile(r"^    reloss (.*)$", re.MULTILINE)


def run_page(page: str, capsys: pytest.CaptureFixture[str]) -> dict:
    """Run the Python blocks of a page in the current folder, and compare what they print with its text blocks."""
    text = (DOCS / page).read_text(encoding="utf-8")
    names: dict = {"__name__": "tutorial"}
    capsys.readouterr()
    for file, code in BLOCK.findall(text):
        if file:
            Path(file).write_text(code, encoding="utf-8")
        else:
            exec(compile(code, page, "exec"), names)
    promised, printed = "".join(OUTPUT.findall(text)), capsys.readouterr().out
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", promised)
    assert [*map(float, NUMBER.findall(printed))] == pytest.approx([*map(float, NUMBER.findall(promised))], abs=0.03)
    return names


def test_a_loss_for_your_own_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = run_page("your-own-metric.md", capsys)
    assert names["result"].verdict().startswith("worth training with")
    assert names["comparison"].difference("learned + ordinary").high < 0  # a cost
    assert names["comparison"].best() == "learned + ordinary"
    assert (int(names["labels"].sum()), len(names["labels"])) == (72, 1695)


def test_fitting_step_by_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = run_page("fitting.md", capsys)
    assert names["result"].spearman > 0.9
    assert names["result_of_set"].spearman > 0.7
    assert min(names["learned"]) > 0.9
    assert abs(sum(names["learned"]) - sum(names["ordinary"])) / 3 < 0.03
    assert names["again"].options() == names["result"].surrogate.options()

    (command,) = COMMAND.findall((DOCS / "fitting.md").read_text(encoding="utf-8"))
    code, out, err = cli(*command.split())
    assert code == 0, err
    assert (tmp_path / "mcc-by-command" / "surrogate.safetensors").exists()
    assert '"spearman": 0.9' in out


def test_the_zoo(capsys: pytest.CaptureFixture[str]) -> None:
    names = run_page("zoo.md", capsys)
    assert names["outputs"].grad.abs().sum() > 0


def test_the_page_of_kinds_lists_all_of_them() -> None:
    text = (DOCS / "kinds.md").read_text(encoding="utf-8")
    for kind in KINDS.values():
        assert f"| `{kind.name}` | {kind.title} | {kind.shapes} | {kind.ordinary} |" in text


@pytest.mark.slow
def test_one_case_of_each_kind(capsys: pytest.CaptureFixture[str]) -> None:
    results = run_page("kinds.md", capsys)["results"]
    assert {*results, "signed_labels"} == KINDS.keys()
    for kind, result in results.items():
        assert result.loss.kind.name == kind
        assert result.fit.spearman > 0.8, kind


PAGES = sorted(path for folder in (".", "docs", "results", "tasks/*") for path in ROOT.glob(f"{folder}/*.md"))
CALL = re.compile(r"^    (?:[A-Z_]+=\S+ |torchrun .* -m )?reloss(?:\.cli)? ([a-z].*)$", re.MULTILINE)


def commands(path: Path) -> Iterator[list[str]]:
    """Yield the words after `reloss` of every command in the code blocks of a page, except those with a placeholder."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    for call in CALL.findall(text):
        words = shlex.split(call, comments=True)
        if not any(set(word) & set("<>|") or word in ("...", "RUNS", "OUT") for word in words):
            yield words


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_are_accepted(path: Path) -> None:
    for words in commands(path):
        command = tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="reloss", args=words)  # parsed, not run
        if words[0] in ("run", "show"):
            settings = [setting for group in command.set for setting in group]
            RunSpec.resolve(command.experiment, getattr(command, "loss", None) or "", 0, settings)


@pytest.mark.parametrize("name", ["classification", "pose", "nmt", "mrc", "ablation"])
def test_commands_of_committed_results_are_accepted(name: str) -> None:
    """A reader pastes them to repeat a number, also those with key names of an earlier version."""
    text = (ROOT / "results" / f"{name}.md").read_text(encoding="utf-8")
    for call in set(re.findall(r"`reloss (run [^`]*)`", text)):
        command = tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="reloss", args=shlex.split(call))
        settings = [setting for group in command.set for setting in group]
        RunSpec.resolve(command.experiment, command.loss or "", command.seed, settings)


def test_commands_of_the_pages_are_found() -> None:
    """As many as a reader would count, so that the test above sees something."""
    assert len(list(commands(DOCS / "usage.md"))) > 20
    assert ["list"] in commands(ROOT / "README.md")


def test_a_command_of_an_earlier_version_still_runs() -> None:
    renamed = RunSpec.resolve("mrc/squad_minilm", "reloss", 0, ["learn.output=identity", "structure=points"])
    assert renamed.settings == ("surrogate.output=identity", "surrogate.structure=points")


PATH = re.compile(r"`((?:common|tasks|tests|tools|docker|requirements|benchmarks|results|docs)/[\w./*{}-]*)`")
MODULE = re.compile(
    r"`((?:runtime|ranking|metrics|surrogates|learning|experiment|pipeline|sweep|tracking|report|commands)/[\w./]*)`"
)
METHOD = re.compile(r"`(Record|PredictionBank|SurrogateLoss|MetricsFile|RunSpec|Workspace|Experiment)\.(\w+)`")
CLASSES = {
    "Record": "reloss.experiment.record",
    "PredictionBank": "reloss.learning.bank",
    "SurrogateLoss": "reloss.surrogates.base",
    "MetricsFile": "reloss.experiment.metrics_log",
    "RunSpec": "reloss.experiment.run_spec",
    "Workspace": "reloss.experiment.workspace",
    "Experiment": "reloss.experiment.config",
}


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "docs/concepts.md", "docs/architecture.md"])
def test_pages_name_files_and_methods_that_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert [path for path in PATH.findall(text) if not list(ROOT.glob(path.rstrip("/")))] == []
    core = ROOT / "common" / "reloss"
    assert [path for path in MODULE.findall(text) if not (core / path).exists()] == []
    for owner, method in METHOD.findall(text):
        assert hasattr(getattr(importlib.import_module(CLASSES[owner]), owner), method), f"{owner}.{method}"


def test_floors_are_those_that_are_enforced() -> None:
    block = (DOCS / "architecture.md").read_text(encoding="utf-8").partition("## Floors")[2].partition("\n## ")[0]
    floors = [set(names.split(", ")) for names in re.findall(r"^    (\S+(?:, \S+)*)  ", block, flags=re.MULTILINE)]
    assert floors == list(reversed(LAYERS))


def test_every_package_of_the_core_has_its_purpose_stated() -> None:
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    packages = {path.parent.name for path in (ROOT / "common" / "reloss").glob("*/__init__.py")}
    assert {name for name in packages if f"`{name}`" not in text} == set()


def test_every_moved_module_of_the_changelog_exists() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| [^|]+ \| ([^|]+) \|$", text.partition("### Moved modules")[2], flags=re.MULTILINE)
    modules = {name for row in rows for name in re.findall(r"`(reloss[\w.]*\.\w+)`", row)}
    assert len(modules) > 15
    for name in modules:
        if not name.endswith(".TASK"):
            assert (ROOT / "common" / f"{name.replace('.', '/')}.py").exists(), name
    assert all(task.folder.name in text for task in tasks().values())
