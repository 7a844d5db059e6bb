"""Workers of data loaders, and the signals that reach all processes of a run."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small import DIGITS

from reloss.experiment.metrics_log import read_metrics
from reloss.experiment.run_spec import variant_name
from reloss.runtime.files import read_json
from reloss.runtime.signals import terminable


def test_a_worker_ends_by_the_sigterm_of_its_starter_alone():
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    with terminable():
        worker.start()
    for sent in ("-INT", "-TERM"):
        subprocess.run(["kill", sent, str(worker.pid)], check=True)
    worker.join(0.5)
    assert worker.is_alive()
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0


def complaining(error: BaseException) -> None:
    sys.excepthook(type(error), error, error.__traceback__)


@pytest.mark.parametrize(
    ("error", "said"), [(EOFError(), False), (ConnectionResetError(), False), (ValueError("bad"), True)]
)
def test_a_worker_does_not_complain_that_its_starter_hung_up(capfd, error, said):
    worker = multiprocessing.get_context("fork").Process(target=complaining, args=(error,))
    with terminable():
        worker.start()
    worker.join(10)
    assert ("Error" in capfd.readouterr().err) == said


def test_processes_that_are_forked_outside_of_a_run_end_by_any_sigterm():
    with terminable():
        pass
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    worker.start()
    subprocess.run(["kill", str(worker.pid)], check=True)
    worker.join(10)
    assert worker.exitcode == -signal.SIGTERM


def of_group(group: int) -> list[int]:
    """The processes of a group that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it has just ended
            continue
        if int(its_group) == group and state != "Z":
            found.append(int(path.parent.name))
    return found


def gone(group: int, seconds: float) -> bool:
    limit = time.monotonic() + seconds
    while of_group(group) and time.monotonic() < limit:
        time.sleep(0.05)
    return not of_group(group)


def begin(start, runs):
    """Start a run with two workers; returns it, and its record, when it is in its third epoch and both work."""
    settings = ("train.epochs=500", "train.batch_size=4", "data.workers=2")
    process = start("run", DIGITS, "--seed", 1, "--runs", runs, "--track", "off", "--set", *settings)
    record = runs / DIGITS / f"ce@{variant_name(settings)}" / "seed1"
    limit = time.monotonic() + 120
    while not (len(read_metrics(record / "metrics.jsonl")) > 1 and len(of_group(process.pid)) == 3):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < limit
        time.sleep(0.002)
    time.sleep(0.1)  # Python drops what a signal raises while it forks
    return process, record


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_all_processes_of_a_run_interrupts_it(start, tmp_path, sent, code):
    process, record = begin(start, tmp_path)
    os.killpg(process.pid, sent)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert "the same command goes on from the last checkpoint" in said
    assert "Traceback" not in said
    assert read_json(record / "summary.json")["status"] == "interrupted"
    assert gone(process.pid, 1)


@pytest.mark.slow
def test_workers_end_with_a_main_process_that_was_killed(start, tmp_path):
    process, _ = begin(start, tmp_path)
    process.kill()
    process.wait()
    assert gone(process.pid, 30)
