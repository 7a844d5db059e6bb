import pytest
from small import DIGITS

PRINT = (
    *("sweep", DIGITS, "--losses", "ce,reloss", "--seeds", "0-1", "--launcher", "print", "--data", "d"),
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
    assert out.splitlines() == phased(f"reloss run {DIGITS} --loss ", f"--data d --runs {runs} --track off")
    assert not runs.exists()


def test_print_launcher_prints_lines_of_docker(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = cli(*PRINT, "--runs", "my/own runs", "--image", "reloss:1")
    start = f"docker run --rm --gpus all --ipc host -v d:/data -v '{tmp_path}/my/own runs:/runs' reloss:1 run"
    assert code == 0
    assert out.splitlines() == phased(f"{start} {DIGITS} --loss ", "--track off")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("image", ["none", "reloss"])
def test_permission_for_changed_data_reaches_every_run(cli, tmp_path, image):
    code, out, _ = cli(*PRINT, "--runs", tmp_path, "--image", image, "--allow-changed-data")
    assert code == 0
    assert [line.count("--track off --allow-changed-data") for line in out.splitlines() if line[0] != "#"] == [1] * 5
