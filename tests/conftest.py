import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from forked import Forked
from processes import reloss_in_two_processes
from safetensors.torch import load_file
from small import DIGITS, SMALL, run_small
from torch import Tensor

from reloss.cli import main
from reloss.learning import PredictionBank

RELEASED = Path(__file__).parent / "fixtures" / "released"

torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """Exempt all imported modules from garbage collection: frameworks collect in every run, half a second each time."""
    gc.freeze()


@pytest.fixture
def test_data() -> Path:
    """The folder of downloaded data; there is no default, so that a test never reads data by accident."""
    folder = os.environ.get("RELOSS_TEST_DATA")
    if folder and Path(folder).is_dir():
        return Path(folder)
    reason = f"RELOSS_TEST_DATA is {folder or 'unset'}: set it to the folder of test data"
    if os.environ.get("RELOSS_REQUIRE_DATA") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture
def released() -> Callable[[str], dict[str, Tensor]]:
    """Loads a file of numbers that the authors' code computed."""
    return lambda name: load_file(RELEASED / f"{name}.safetensors")


@pytest.fixture
def improving_bank(tmp_path: Path) -> Callable[..., PredictionBank]:
    """Records a bank of synthetic logits whose margin, hence accuracy, grows with the step from chance to good."""

    def record(steps: int = 120, item_size: int = 32, classes: int = 5, name: str = "bank") -> PredictionBank:
        generator = torch.Generator().manual_seed(0)
        bank = PredictionBank.create(tmp_path / name, item_size=item_size)
        for step in range(steps):
            targets = torch.randint(classes, (item_size,), generator=generator)
            noise = torch.randn(item_size, classes, generator=generator)
            margin = 3 * step / steps * torch.nn.functional.one_hot(targets, classes)
            bank.append(noise + margin, targets, step)
        bank.finish()
        return bank

    return record


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a key in the developer's environment from sending a test's run to W&B."""
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run_digits(tmp_path: Path) -> Callable[..., Path]:
    """Run the digits experiment at a small size; return the record."""

    def start(loss: str = "ce", seed: int = 0, settings: tuple[str, ...] = SMALL, **more: object) -> Path:
        folders = {"data": tmp_path / "data", "runs": tmp_path / "runs"}
        return run_small(DIGITS, loss, settings, seed=seed, **{**folders, **more})  # type: ignore[arg-type]

    return start


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Calls the command line in this process; returns exit code, standard output and standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `reloss` with the given words in a process of its own, which does not outlive the test."""
    started: list[subprocess.Popen[str]] = []

    def launch(*words: object, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        command = [sys.executable, *launcher, "-m", "reloss.cli", *map(str, words)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield launch
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def finish(
    start: Callable[..., subprocess.Popen[str]], cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> Callable[..., str]:
    """Runs `reloss` to its end, which must be a good one; returns what it printed.

    It runs in this process, in two processes that are forked from it, or by a launcher such as torchrun.
    """

    def run(*words: object, launcher: tuple[str, ...] = (), processes: int = 1) -> str:
        if processes == 2:
            return reloss_in_two_processes([str(word) for word in words], tmp_path)
        if not launcher:  # importing the frameworks again would take most of the time
            code, out, err = cli(*words)
            assert code == 0, err
            return out + err
        process = start(*words, launcher=launcher)
        printed, _ = process.communicate(timeout=240)
        assert process.returncode == 0, printed
        return printed

    return run


@pytest.fixture
def fork(tmp_path: Path) -> Iterator[Callable[..., Forked]]:
    """As `start`, but quick: the process is forked from one that has imported everything."""
    forked: list[Forked] = []

    def launch(*words: object) -> Forked:
        forked.append(Forked([str(word) for word in words], tmp_path / f"output-{len(forked)}.txt"))
        return forked[-1]

    yield launch
    for process in forked:
        if process.poll() is None:
            process.kill()
