"""The files that build the image and the conda environment agree; `make docker-test` builds and uses the image."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from reloss.commands.subcommands import COMMANDS
from reloss.experiment.task import tasks
from reloss.sweep.lines import ENVIRONMENT
from reloss.sweep.plan import make_plan
from tools.render_results import put_between

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
CONDA = (ROOT / "environment.yml").read_text()


def arguments(text: str) -> dict[str, str]:
    return dict(re.findall(r"^ARG (\w+)=(\S+)$", text, flags=re.MULTILINE))


def test_version_and_base_image_are_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert arguments(DOCKERFILE)["VERSION"] == project["version"]
    base = arguments(DOCKERFILE)["BASE_IMAGE"]
    for service in COMPOSE["services"].values():
        assert service["build"]["args"]["BASE_IMAGE"] == f"${{BASE_IMAGE:-{base}}}"
    assert f"BASE_IMAGE={base}@sha256:..." in (ROOT / "docs" / "docker.md").read_text()


def test_every_experiment_has_its_line(cli) -> None:
    rows = json.loads(cli("list", "--json")[1])
    pages = {"docs/docker.md": rows}
    for task in {row["task"] for row in rows}:
        pages[f"tasks/{task}/README.md"] = [row for row in rows if row["task"] == task]
    for page, listed in pages.items():
        lines = re.findall(r"^docker run .* reloss run (\S+) --loss (\S+) --seed 0$", (ROOT / page).read_text(), re.M)
        assert lines == [(row["name"], "reloss") for row in listed], page
        assert all("reloss" in row["losses"] for row in listed)


def test_lines_go_between_markers_alone() -> None:
    page = "a\n<!-- docker: begin, written by `make results` -->\nold\n<!-- docker: end -->\nb\n"
    assert put_between(page, "docker", "new") == page.replace("old", "new")
    with pytest.raises(ValueError, match="no '<!-- results: begin"):
        put_between(page, "results", "new")


def test_compose_file_follows_the_specification() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, ROOT / "docker" / "compose.yaml"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_services_of_compose_run_commands_that_exist() -> None:
    tables = {*tasks(), "ablation"}
    assert COMPOSE["services"].keys() == tables | {"demo", "data", "table", "report"}
    for name, service in COMPOSE["services"].items():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["volumes"] == ["data:/data", "runs:/runs"]
        assert service["environment"] == dict.fromkeys(ENVIRONMENT)  # passed on from outside, never written here
        words = [*service.get("entrypoint", ["reloss"])[1:], *shlex.split(service["command"])]
        assert words[0] in COMMANDS
        assert ("deploy" in service) == (name in tables)
        if name in tables:
            assert words == ["sweep", name, "--seeds", "0-2"]
            assert any(make_plan(name, [], [0]))
            (device,) = service["deploy"]["resources"]["reservations"]["devices"]
            assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}


def test_volumes_of_compose_are_those_of_the_documented_lines() -> None:
    assert COMPOSE["volumes"] == {name: {"name": name} for name in ("data", "runs")}
    page = (ROOT / "docs" / "docker.md").read_text()
    assert set(re.findall(r"-v (\w+):/(\w+)", page)) == {(name, name) for name in ("data", "runs")}
    assert all(name in page for name in ENVIRONMENT if name.isupper())


def test_conda_brings_python_and_pip_the_lock() -> None:
    environment = yaml.safe_load(CONDA)
    assert environment.keys() == {"name", "channels", "dependencies"}
    *conda, pip = environment["dependencies"]
    bootstrap = (ROOT / "requirements" / "bootstrap.in").read_text()
    build_tools = [line for line in bootstrap.splitlines() if not line.startswith(("#", "uv"))]
    assert conda == ["python=3.11", "pip", *build_tools]
    assert pip == {"pip": ["-r requirements/lock.txt", "-r requirements/mrc-encoder.txt"]}


def test_documented_conda_command_installs_the_lock_unresolved(tmp_path: Path) -> None:
    """As conda does it: the `pip` lines in a file, with the variables of the command. All is installed already."""
    (variables,) = re.findall(r"((?:PIP_\w+=\w+ )+)conda env create --file environment.yml", CONDA)
    named = {**os.environ, **dict(pair.split("=") for pair in variables.split())}
    lines = yaml.safe_load(CONDA)["dependencies"][-1]["pip"]
    file = tmp_path / "condaenv.requirements.txt"
    file.write_text("".join(line.replace("-r ", f"-r {ROOT}/") + "\n" for line in lines))
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "--quiet", "--report", "-", "-r", file]
    done = subprocess.run(pip, env=named, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["install"] == []
    # The meaning of the variables, read by pip's own parser.
    parse = "from pip._internal.commands import create_command as c; o, _ = c('install').parse_args([]); "
    code = parse + "print(bool(o.ignore_dependencies), bool(o.build_isolation))"
    done = subprocess.run([sys.executable, "-c", code], env=named, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]
