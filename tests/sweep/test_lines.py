import csv
import shlex

import pytest
from small import DIGITS

from reloss.sweep.lines import ENVIRONMENT

PRINT = (
    *("sweep", DIGITS, "--losses", "ce,reloss", "--seeds", "0-1", "--launcher", "print", "--data", "data"),
    *("--track", "off", "--set", "train.epochs=1", "learn.steps=5"),
)
PHASES = (("ce --seed 0",), ("reloss --seed 0 --stage learn",), ("ce --seed 1", "reloss --seed 0", "reloss --seed 1"))


def phased(start: str, options: str) -> list[str]:
    """The lines of a plan: a comment, then the commands of a phase, each with the settings that its loss uses."""
    lines = []
    orders = ["at any time", *["after those before have ended"] * 2]
    for order, phase in zip(orders, PHASES, strict=True):
        lines.append(f"# {order}, in any order or in parallel:")
        for command in phase:
            settings = "train.epochs=1" if command.startswith("ce") else "learn.steps=5 train.epochs=1"
            lines.append(f"{start}{command} {options} --set {settings}")
    return lines


def test_print_launcher_prints_plain_commands_and_runs_nothing(cli, tmp_path):
    runs = tmp_path / "runs"
    code, out, _ = cli(*PRINT, "--runs", runs, "--image", "none")
    assert code == 0
    assert out.splitlines() == phased(f"reloss run {DIGITS} --loss ", f"--data data --runs {runs} --track off")
    assert not runs.exists()


@pytest.fixture
def docker(cli, tmp_path, monkeypatch):
    """Print the lines of docker for a folder of records; return them."""
    monkeypatch.chdir(tmp_path)
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)

    def call(*words: str) -> list[str]:
        code, out, err = cli(*PRINT, "--image", "reloss:1", *words)
        assert code == 0, err
        assert list(tmp_path.iterdir()) == []
        return out.splitlines()

    return call


def test_a_plain_name_is_a_volume_of_docker(docker):
    start = "docker run --rm --gpus all --ipc host -v data:/data -v runs:/runs reloss:1 run"
    assert docker("--runs", "runs") == phased(f"{start} {DIGITS} --loss ", "--track off")


@pytest.mark.parametrize("runs", ["./runs", "runs/", "my/own runs", "own runs", ".runs", "x"])
def test_a_path_is_a_folder_whose_files_belong_to_the_user(docker, tmp_path, runs):
    folder = shlex.quote(f"{tmp_path / runs}")
    volume = shlex.quote(f"{tmp_path / runs}:/runs")
    start = f'docker run --rm --gpus all --ipc host -v data:/data -v {volume} --user "$(id -u):$(id -g)" reloss:1 run'
    lines = docker("--runs", runs)
    assert lines[0] == f"mkdir -p {folder}"  # docker would create it for root
    assert lines[1:] == phased(f"{start} {DIGITS} --loss ", "--track off")


@pytest.mark.parametrize("name", ["12:30", 'a:b, "c"'])
def test_a_folder_with_a_colon_is_mounted_in_the_long_form(docker, tmp_path, name):
    words = shlex.split(docker("--runs", f"./{name}")[2])
    (mount,) = csv.reader([words[words.index("--mount") + 1]])
    assert mount == ["type=bind", f"source={tmp_path / name}", "target=/runs"]


def test_variables_that_are_set_are_passed_on_by_name(docker, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    monkeypatch.setenv("https_proxy", "http://proxy")
    lines = docker("--runs", "runs")
    assert all(" -e WANDB_API_KEY -e https_proxy reloss:1 run " in line for line in lines if line[0] != "#")
    assert "secret" not in str(lines)


@pytest.mark.parametrize("image", ["none", "reloss"])
def test_permission_for_changed_data_reaches_every_run(cli, tmp_path, image):
    code, out, _ = cli(*PRINT, "--runs", tmp_path, "--image", image, "--allow-changed-data")
    assert code == 0
    assert [line.count("--track off --allow-changed-data") for line in out.splitlines() if line[0] not in "#m"] == [
        1
    ] * 5
