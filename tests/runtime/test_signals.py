"""Signals to a run with data-loader workers: the run is recorded as interrupted, and no worker outlives it."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small import DIGITS
from waiting import wait_for

from reloss.experiment.metrics_log import read_metrics
from reloss.experiment.run_spec import variant_name
from reloss.runtime.files import read_json
from reloss.runtime.signals import terminable


def test_a_worker_obeys_only_the_sigterm_of_its_parent():
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    with terminable():
        worker.start()
    for option in ("-INT", "-TERM"):
        subprocess.run(["kill", option, str(worker.pid)], check=True)
    worker.join(0.5)
    assert worker.is_alive()
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0


def test_a_worker_is_safe_before_it_is_ready(monkeypatch):
    """SIGTERM from another process arrives while the hooks of the fork still run in the worker."""
    install = signal.signal

    def install_slowly(*arguments):
        time.sleep(0.3)
        return install(*arguments)

    monkeypatch.setattr(signal, "signal", install_slowly)
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    with terminable():
        worker.start()
        subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    worker.join(0.8)
    assert worker.is_alive()
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, set())


def call_excepthook(error: BaseException) -> None:
    sys.excepthook(type(error), error, error.__traceback__)


@pytest.mark.parametrize(
    ("error", "printed"), [(EOFError(), False), (ConnectionResetError(), False), (ValueError("bad"), True)]
)
def test_a_worker_prints_no_error_when_its_parent_hangs_up(capfd, error, printed):
    worker = multiprocessing.get_context("fork").Process(target=call_excepthook, args=(error,))
    with terminable():
        worker.start()
    worker.join(10)
    assert ("Error" in capfd.readouterr().err) == printed


def test_processes_forked_outside_a_run_obey_any_sigterm():
    with terminable():
        pass
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    worker.start()
    subprocess.run(["kill", str(worker.pid)], check=True)
    worker.join(10)
    assert worker.exitcode == -signal.SIGTERM


def running_processes(group: int) -> list[int]:
    """The running processes of a process group."""
    processes = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, process_group = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # the process has just ended
            continue
        if int(process_group) == group and state != "Z":
            processes.append(int(path.parent.name))
    return processes


def ends_within(group: int, seconds: float) -> bool:
    limit = time.monotonic() + seconds
    while running_processes(group) and time.monotonic() < limit:
        time.sleep(0.05)
    return not running_processes(group)


def start_run(start, runs):
    """Start a run with two workers; return it and its record once it is in its third epoch with both workers alive."""
    settings = ("train.epochs=500", "train.batch_size=4", "data.workers=2")
    process = start("run", DIGITS, "--seed", 1, "--runs", runs, "--track", "off", "--set", *settings)
    record = runs / DIGITS / f"ce@{variant_name(settings)}" / "seed1"
    wait_for(
        lambda: len(read_metrics(record / "metrics.jsonl")) > 1 and len(running_processes(process.pid)) == 3, process
    )
    time.sleep(0.1)  # Python drops an exception that a signal handler raises during a fork
    return process, record


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_all_processes_of_a_run_interrupts_it(start, tmp_path, number, code):
    process, record = start_run(start, tmp_path)
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    assert "the same command resumes from the last checkpoint" in output
    assert "Traceback" not in output
    assert read_json(record / "summary.json")["status"] == "interrupted"
    assert ends_within(process.pid, 1)


@pytest.mark.slow
def test_workers_end_when_the_main_process_is_killed(start, tmp_path):
    process, _ = start_run(start, tmp_path)
    process.kill()
    process.wait()
    assert ends_within(process.pid, 30)
