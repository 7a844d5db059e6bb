"""The package: its extras agree with the lock, and its wheel works in an environment of its own."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import reloss
from reloss.experiment.task import tasks
from reloss.runtime import extras

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
LOCKED = dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", (ROOT / "requirements" / "lock.txt").read_text(), re.MULTILINE))


@pytest.mark.parametrize("name", ["core", *EXTRAS])
def test_the_lock_holds_every_requirement_in_a_version_that_it_admits(name):
    for requirement in map(Requirement, PROJECT["dependencies"] if name == "core" else EXTRAS[name]):
        if requirement.name == "reloss":
            assert requirement.extras == EXTRAS.keys() - {"all"}
            continue
        locked = LOCKED[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(locked), f"{requirement} of {name}: the lock has {locked}"
        assert requirement.specifier, f"{requirement} of {name} has no bound"


def test_every_module_of_an_extra_is_installed_by_it():
    """`markupsafe` comes with jinja2."""
    distributions = {"PIL": "pillow", "wandb_workspaces": "wandb-workspaces", "markupsafe": "jinja2"}
    for module, extra in extras.EXTRA_OF.items():
        names = {Requirement(text).name for text in EXTRAS[extra]}
        assert distributions.get(module, module) in names, module


def test_extras_are_those_of_the_tasks_and_of_the_core():
    assert EXTRAS.keys() == {*tasks(), *extras.EXTRA_OF.values(), "all"}


def test_the_package_states_its_version_and_pythons():
    assert PROJECT["version"] == reloss.__version__
    versions = [text.rpartition(" ")[2] for text in PROJECT["classifiers"] if re.search(r":: 3\.\d", text)]
    assert versions == ["3.11", "3.12", "3.13"]


METADATA = [
    "torch>=2.11",
    "wandb>=0.19; extra == 'tracking'",
    'no-such-package ; extra == "tracking"',
    "b; extra == 'c'",
]


def test_missing_packages_are_those_of_the_extra(monkeypatch):
    monkeypatch.setattr(extras, "requires", lambda name: METADATA)
    assert extras.missing_packages("tracking") == ["no-such-package"]
    assert extras.missing_packages("c") == ["b"]
    assert extras.missing_packages("unknown") == []


def test_nothing_is_known_without_an_installed_package(monkeypatch):
    def requires(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(extras, "requires", requires)
    assert extras.missing_packages("tracking") == []


UV = Path(sys.executable).with_name("uv")
SETTINGS = {"index-url": "UV_DEFAULT_INDEX", "extra-index-url": "UV_INDEX", "find-links": "UV_FIND_LINKS"}


def uv(*words, **environment):
    """Run uv with pip's configuration, as requirements/install.sh does."""
    lines = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    configured = dict(re.findall(r"^[^.]*\.([\w-]+)='(.*)'$", lines.stdout, re.MULTILINE))
    passed = {SETTINGS[name]: value for name, value in configured.items() if name in SETTINGS}
    environment = {**passed, **os.environ, "UV_INDEX_STRATEGY": "unsafe-best-match", **environment}
    return subprocess.run([UV, *map(str, words)], capture_output=True, text=True, env=environment, check=False)


def cpu_torch() -> list[str]:
    """A constraint to the CPU build of torch, a tenth of the CUDA build, where pip is configured to offer one."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    folders = os.environ.get("PIP_FIND_LINKS", "").split()
    builds = [path.name.split("-")[1] for folder in folders for path in Path(folder).glob(f"torch-*+cpu-{tag}-*.whl")]
    return [f"torch=={build}" for build in builds[:1]] or [f"torch=={LOCKED['torch']}"]


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """The folder of the programs of an environment that holds the wheel and what it requires, nothing else."""
    if not UV.exists():
        pytest.skip("uv is not installed")
    folder = tmp_path_factory.mktemp("package")
    source, wheels, environment = folder / "source", folder / "wheels", folder / "environment"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    for name in ("common", "tasks"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    for name in ("LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, source)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        wheels,
        source,
    ]
    subprocess.run(build, capture_output=True, check=True)
    (wheel,) = wheels.glob("*.whl")
    assert uv("venv", "--python", sys.executable, environment).returncode == 0
    (folder / "constraints.txt").write_text("\n".join(cpu_torch()))
    python = environment / "bin" / "python"
    done = uv("pip", "install", "--python", python, "--constraints", folder / "constraints.txt", wheel)
    if done.returncode != 0:
        assert re.search("error sending request|Could not connect|dns error|no index", done.stderr), done.stderr
        pytest.skip(f"no package index can be reached: {done.stderr.strip().splitlines()[-1]}")
    return environment / "bin"


def run(clean, *words, folder):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "RELOSS_"))}
    done = subprocess.run([clean / words[0], *words[1:]], capture_output=True, text=True, cwd=folder, env=environment)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_the_wheel_works_in_an_environment_of_its_own(clean, tmp_path):
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    record, learn, take = block.splitlines()
    (tmp_path / "example.py").write_text(EXAMPLE.format(record=record, learn=learn, take=take))
    code, out, err = run(clean, "python", "example.py", folder=tmp_path)
    assert code == 0, err
    assert out.splitlines()[-1] == "torch.Size([]) True"

    assert run(clean, "reloss", "--version", folder=tmp_path)[:2] == (0, f"reloss {reloss.__version__}\n")
    code, out, _ = run(clean, "reloss", "list", folder=tmp_path)
    assert code == 0
    assert "classification/digits_cnn" in out

    code, out, _ = run(clean, "reloss", "doctor", folder=tmp_path)
    assert code == 0
    assert re.search(r"mrc: missing accelerate, transformers, tokenizers: `pip install '\.\[mrc\]'`", out)
    assert re.search(r"report: missing matplotlib, pillow: `pip install '\.\[report\]'`", out)
    assert "pip install --no-deps mmpose==1.1.0" in out

    code, _, err = run(clean, "reloss", "demo", folder=tmp_path)
    missing = "accelerate, pillow, scikit-learn, torchvision, matplotlib"
    assert (code, err) == (1, f"reloss: this needs {missing}: `pip install '.[classification,report]'`\n")


EXAMPLE = """
import torch
from torch import nn

import reloss

metric = "f1"
{record}
generator = torch.Generator().manual_seed(0)
for step in range(40):
    targets = (torch.rand(16, generator=generator) < 0.3).float()
    criterion(torch.randn(16, generator=generator) + step / 10 * (targets - 0.5), targets)
{learn}
{take}
value = loss(torch.randn(8), torch.ones(8))
print(value.shape, bool(torch.isfinite(value)))
"""
