import os
import signal
import subprocess
from pathlib import Path

import pytest
from processes import TORCHRUN
from small import DIGITS
from waiting import wait_for

from reloss.experiment.run_spec import RunSpec
from reloss.experiment.workspace import Workspace
from reloss.sweep.job import Job, log_of, read_note, run_job
from reloss.sweep.plan import make_plan


def job(experiment, loss, seed, stage="all", settings=()):
    return Job(RunSpec(experiment, loss, seed, settings), stage)


TERMINATED = "reloss: terminated; the same command resumes from the last checkpoint\n"
KILLED = f"{TERMINATED}E api.py:1002] failed (exitcode: -9) local_rank: 1 (pid: 7) of binary: python\nERROR\n"


@pytest.mark.parametrize(
    ("code", "output", "reason"),
    [
        (1, "reloss: process 1: the loss is nan\nERROR\n", "process 1: the loss is nan"),
        (1, KILLED, "killed by signal 9 (out of memory?)"),  # torchrun then terminates the other processes
        (-9, "reloss: resuming from epoch 3\n", "killed by signal 9 (out of memory?)"),
        (-11, "", "killed by signal 11"),
        (1, "no such file\n", "no such file"),
        (1, "", "it printed nothing"),
    ],
)
def test_the_note_on_a_failed_run_has_the_reason(tmp_path, code, output, reason):
    failing, workspace = job(DIGITS, "ce", 0), Workspace(tmp_path)

    def start(words, log, environment):
        log.write(output)
        return code

    assert run_job(failing, [], workspace, {}, start, launcher=TORCHRUN) == code
    log = str(log_of(failing, workspace))
    assert read_note(failing, workspace) == {"state": "failed", "code": code, "reason": reason, "log": log}


@pytest.mark.parametrize("code", [130, 143])
def test_an_interrupted_run_did_not_fail(tmp_path, code):
    interrupted, workspace = job(DIGITS, "ce", 0), Workspace(tmp_path)
    assert run_job(interrupted, [], workspace, {}, lambda *_: code) == code
    assert read_note(interrupted, workspace) == {}


@pytest.mark.slow
def test_a_killed_process_of_several_is_a_failure(tmp_path):
    """torchrun terminates the other processes, so the main one prints that it was terminated."""
    workspace = Workspace(tmp_path)
    (long,) = make_plan(DIGITS, ["ce"], [1], ("train.epochs=500",))
    metrics = workspace.record(long.run) / "metrics.jsonl"

    def start(words, output, environment):
        process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, env=environment)
        wait_for(metrics.exists, process)
        last = max(map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()))
        os.kill(last, signal.SIGKILL)
        return process.wait()

    options = ["--runs", str(tmp_path), "--track", "off"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    assert run_job(long, options, workspace, environment, start, launcher=TORCHRUN) == 1
    assert TERMINATED in log_of(long, workspace).read_text()
    assert read_note(long, workspace)["reason"] == "killed by signal 9 (out of memory?)"
