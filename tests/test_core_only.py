"""Commands where a task's packages are missing: the message names the package and how to install it."""

import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from small import DIGITS

from reloss.commands import doctor
from reloss.experiment import task as task_module
from reloss.experiment.task import find_experiment, tasks
from reloss.runtime.errors import Unavailable

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
FRAMEWORKS = {"classification": "accelerate", "pose": "mmengine", "nmt": "fairseq", "mrc": "transformers"}
DIGITS_NEED = "classification needs the package sklearn, which is not installed: `pip install '.[classification]'`"


@pytest.fixture
def missing(monkeypatch):
    """Make a package missing; modules of tasks that imported it are imported again, until the end of the test."""

    def remove(package: str) -> None:
        for name in [name for name in sys.modules if name.startswith("reloss_tasks.") and name.count(".") > 1]:
            monkeypatch.delitem(sys.modules, name)
        for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, package, None)

    remove.patch = monkeypatch
    return remove


@pytest.mark.parametrize(
    "words", [("data", "check", "digits"), ("run", DIGITS, "--track", "off"), ("demo", "--out", "demo")]
)
def test_commands_name_the_missing_package(missing, cli, tmp_path, monkeypatch, words):
    missing("sklearn")
    monkeypatch.chdir(tmp_path)
    code, out, err = cli(*words)
    assert (code, out, err) == (1, "", f"reloss: {DIGITS_NEED}\n")
    assert not list(tmp_path.rglob("summary.json"))


def test_doctor_names_the_missing_package(missing, tmp_path):
    missing("sklearn")
    assert doctor._describe(*find_experiment(DIGITS), tmp_path) == f"missing: {DIGITS_NEED}"


def test_doctor_names_the_extra_of_each_task_and_each_part(cli, tmp_path, monkeypatch):
    absent = {"mmpose", "transformers", "matplotlib"}
    monkeypatch.setattr(task_module, "is_installed", lambda package: package not in absent)
    monkeypatch.setattr(task_module, "missing_packages", lambda extra: ["transformers"] if extra == "mrc" else [])
    monkeypatch.setattr(doctor, "missing_packages", lambda extra: ["matplotlib"] if extra == "report" else [])
    code, out, _ = cli("doctor", "--data", tmp_path)
    lines = [line[10:] for line in out.splitlines()]
    assert code == 0
    assert "classification: installed" in lines
    assert "mrc: missing transformers: `pip install '.[mrc]'`" in lines
    assert "pose: missing mmpose: `pip install '.[pose]' && pip install --no-deps mmpose==1.1.0`" in lines
    assert "report: missing matplotlib: `pip install '.[report]'`" in lines
    assert "tracking: installed" in lines


def test_the_demo_names_all_packages_that_it_needs(cli, tmp_path, monkeypatch):
    absent = {"classification": ["accelerate", "pillow"], "report": ["matplotlib", "pillow"]}
    monkeypatch.setattr("reloss.runtime.extras.missing_packages", absent.get)
    code, _, err = cli("demo", "--out", tmp_path / "demo")
    assert code == 1
    assert err == "reloss: this needs accelerate, pillow, matplotlib: `pip install '.[classification,report]'`\n"
    assert not (tmp_path / "demo").exists()


def test_a_module_of_the_core_that_is_missing_is_named_with_its_extra(missing, cli, tmp_path):
    for name in [name for name in sys.modules if name.startswith("reloss.report.")]:
        missing.patch.delitem(sys.modules, name)
    missing("matplotlib")
    code, out, err = cli("report", "--out", tmp_path / "report.html", "--runs", tmp_path)
    message = "this needs the package matplotlib, which is not installed: `pip install '.[report]'`"
    assert (code, out, err) == (1, "", f"reloss: {message}\n")


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_training_without_its_framework_is_refused(missing, name):
    missing(FRAMEWORKS[name])
    task = tasks()[name]
    with pytest.raises(Unavailable) as refused:
        task.check_packages()
    assert str(refused.value) == (
        f"{name} needs the package {FRAMEWORKS[name]}, which is not installed: `{task.install}`"
    )


def test_a_run_without_its_framework_leaves_no_record(missing, cli, tmp_path):
    missing("accelerate")
    code, _, err = cli("run", DIGITS, "--track", "off", "--runs", tmp_path / "runs")
    assert code == 1
    assert "classification needs the package accelerate" in err
    assert not (tmp_path / "runs").exists()


def test_a_package_that_is_missing_during_the_run_leaves_no_record(missing, run_digits, tmp_path, monkeypatch):
    from reloss_tasks.classification import training

    def train(run):
        raise ModuleNotFoundError("No module named 'torchvision'", name="torchvision")

    monkeypatch.setattr(training, "train", train)
    with pytest.raises(Unavailable, match="classification needs the package torchvision"):
        run_digits()
    assert not list((tmp_path / "runs").rglob("summary.json"))


def test_a_module_of_ours_that_is_missing_is_no_missing_package(missing):
    missing("reloss_tasks.classification.losses")
    with pytest.raises(ModuleNotFoundError):
        tasks()["classification"].check_packages()


def closure(names: list[str]) -> set[str]:
    """The installed packages that the requirements need, directly or not, and the missing ones."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    waiting, needed = [Requirement(name) for name in names], set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in needed or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        needed.add(name)
        try:
            waiting += map(Requirement, requires(name) or [])
        except PackageNotFoundError:
            continue
    return needed


def test_extras_need_no_package_that_cannot_be_installed():
    """Of the packages that the lock excludes, chumpy cannot be built."""
    assert "chumpy" in closure(["mmpose"])
    for name, extra in EXTRAS.items():
        assert "mmpose" not in extra, name
        assert "chumpy" not in closure([requirement for requirement in extra if "reloss[" not in requirement]), name
    assert closure(["mmpose"]) - {"chumpy", "mmpose"} <= closure(PROJECT["dependencies"] + EXTRAS["pose"])


def test_installing_names_every_extra():
    readme = (ROOT / "README.md").read_text()
    for name, task in tasks().items():
        assert f"'.[{name}]'" in task.install
        assert f"`{name}`" in readme
    assert tasks()["pose"].install.rpartition("&& ")[2] in readme
