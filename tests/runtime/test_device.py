"""`--device` chooses what PyTorch sees, before it looks."""

import os
import subprocess
import sys

import pytest
import torch
from small import DIGITS

from reloss.runtime.device import choose_device
from reloss.runtime.errors import UsageError
from reloss.sweep.local import visible_gpus


@pytest.fixture
def gpus(monkeypatch):
    """Make PyTorch find a GPU if the variable names one of `count`."""

    def install(count, visible=None):
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES")

        def is_available():
            names = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
            return names[0].isdigit() and int(names[0]) < count

        monkeypatch.setattr(torch.cuda, "is_available", is_available)

    return install


@pytest.mark.parametrize(
    ("visible", "device", "expected"),
    [
        (None, "", None),
        (None, "cuda", None),
        (None, "cpu", ""),
        (None, "cuda:1", "1"),
        ("2,3", "cuda:1", "3"),
        ("2,3", "cuda", "2,3"),
        ("2,3", "cpu", ""),
    ],
)
def test_the_variable_names_the_gpu(gpus, visible, device, expected):
    gpus(4, visible)
    choose_device(device)
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == expected


@pytest.mark.parametrize(("count", "device"), [(0, "cuda"), (2, "cuda:2"), (0, "cuda:0")])
def test_a_gpu_that_is_not_there_is_refused(gpus, count, device):
    gpus(count)
    with pytest.raises(UsageError, match=f"there is no GPU {device} here"):
        choose_device(device)


def test_a_number_outside_the_visible_ones_is_refused(gpus):
    gpus(4, "3")
    with pytest.raises(UsageError, match="there is no GPU cuda:1 here"):
        choose_device("cuda:1")


def test_wrong_names_and_numbers_under_torchrun_are_refused(gpus, monkeypatch):
    gpus(2)
    for name in ("gpu", "cuda:", "cuda:-1", "CPU"):
        with pytest.raises(UsageError, match=f"takes cpu, cuda or cuda:N, such as cuda:1, not '{name}'"):
            choose_device(name)
    monkeypatch.setenv("WORLD_SIZE", "2")
    choose_device("cuda")
    with pytest.raises(UsageError, match="torchrun gives each process a GPU of its own"):
        choose_device("cuda:1")


def test_the_commands_take_a_device(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    runs = ("--runs", tmp_path / "runs")
    learn = ("learn", "--bank", "b", "--metric", "f1", "--out", tmp_path / "runs")
    for words in (("run", DIGITS, *runs), learn, ("sweep", DIGITS, *runs)):
        code, _, err = cli(*words, "--device", "cuda:7")
        assert (code, "there is no GPU cuda:7 here" in err) == (2, True)
    assert not (tmp_path / "runs").exists()


def test_the_slots_of_a_sweep_share_the_chosen_gpus(gpus):
    for device, expected in (("", ["2", "3"]), ("cuda", ["2", "3"]), ("cuda:1", ["3"]), ("cpu", [])):
        gpus(4, "2,3")
        choose_device(device)
        assert visible_gpus() == expected


def test_a_sweep_takes_a_device_on_this_machine_only(cli, tmp_path):
    for launcher in ("slurm", "print"):
        code, out, err = cli("sweep", DIGITS, "--launcher", launcher, "--device", "cpu", "--runs", tmp_path / "runs")
        assert (code, out) == (2, "")
        assert "--device needs --launcher local; for Slurm, request GPUs with --slurm gpus=1" in err


def test_torch_is_not_loaded_before_the_choice():
    code = "import sys; from reloss.commands import run_commands; from reloss.runtime import device; "
    code += "device.choose_device('cpu'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
