import json
import os
import signal
import time

import pytest
import submitit
from small import DIGITS

from reloss.runtime.errors import RelossError, UsageError
from reloss.sweep.local import note_of
from reloss.sweep.plan import Cell
from reloss.sweep.slurm import PATIENCE, Job, Resources


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("4:00:00", 240), ("0:01:00", 1), ("1-0", 1440), ("2-03:30", 3090), ("1-02:03:04", 1563)],
)
def test_times_are_those_of_slurm(text, minutes):
    assert Resources.parse([f"time={text}"]).minutes() == minutes


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("time=4:30", "give minutes, H:MM:SS"),
        ("time=0", "at least a minute"),
        ("time=soon", "give minutes"),
        ("gpus=two", "a number is needed"),
        ("nodes=-1", "must not be negative"),
        ("partition", "takes key=value, not 'partition'"),
        ("=x", "takes key=value"),
    ],
)
def test_resources_refuse(setting, message):
    with pytest.raises(UsageError, match=message):
        Resources.parse([setting])


def test_resources_become_options_of_submitit():
    given = ["partition=long", "gpus=4", "cpus=8", "mem=32", "time=1-0", "qos=low", "parallel=2", "grace=30"]
    resources = Resources.parse(given)
    assert resources.options() == {
        "timeout_min": 1440,
        "nodes": 1,
        "tasks_per_node": 1,
        "gpus_per_node": 4,
        "cpus_per_task": 8,
        "mem_gb": 32,
        "slurm_partition": "long",
        "slurm_array_parallelism": 2,
        "slurm_signal_delay_s": 30,
    }
    assert resources.others == {"qos": "low"}
    assert resources.torchrun() == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4"]
    assert Resources.parse(["gpus=1"]).torchrun() == []


def test_several_nodes_meet_at_the_first_one(monkeypatch):
    for name, value in (("SLURM_JOB_ID", "40007"), ("SLURM_NODEID", "1"), ("SLURM_LAUNCH_NODE_IPADDR", "10.0.0.5")):
        monkeypatch.setenv(name, value)
    assert " ".join(Resources.parse(["nodes=2", "processes=3"]).torchrun()) == (
        "-m torch.distributed.run --nnodes=2 --nproc-per-node=3 --node-rank=1 --master-addr=10.0.0.5 "
        "--master-port=20007"
    )


def test_slurm_that_is_not_there_is_said(cli, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, err = cli("sweep", DIGITS, "--launcher", "slurm", "--runs", tmp_path / "runs")
    assert code == 1
    assert "no Slurm here: sbatch is not found; use --launcher local or print" in err


def test_resources_of_slurm_go_with_slurm(cli):
    code, _, err = cli("sweep", DIGITS, "--slurm", "gpus=1")
    assert code == 2
    assert "--slurm goes with --launcher slurm" in err


@pytest.mark.parametrize("told", [False, True])
def test_a_job_waits_for_the_scheduler_only_if_it_was_told_to_end(tmp_path, monkeypatch, told):
    handled, slept = [], []
    monkeypatch.setattr("time.sleep", slept.append)
    before = signal.signal(signal.SIGUSR2, lambda *_: handled.append(True))
    job = Job(Cell(DIGITS, "ce", 0), (), str(tmp_path))

    def start(words, output, environment):
        output.write("reloss: terminated; the same command goes on\nE failed (exitcode: -9) local_rank: 1\n")
        if told:
            os.kill(os.getpid(), signal.SIGUSR2)
        return 1

    monkeypatch.setattr(job, "_start", start)
    try:
        with pytest.raises(RelossError, match="killed by signal 9"):
            job()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert handled == [True] * told
    assert slept == [PATIENCE] * told
    assert note_of(job.cell, tmp_path).get("reason") == (None if told else "killed by signal 9 (out of memory?)")


@pytest.mark.slow
def test_a_job_whose_time_is_over_goes_on_in_the_next(tmp_path, run_digits):
    began = time.monotonic()
    run_digits(settings=("train.epochs=100",), runs=tmp_path / "timed")
    # 28 seconds of training in jobs that are told to end after 22, of which starting takes some; submitit starts 6.
    settings = (f"train.epochs={int(100 * 28 / (time.monotonic() - began))}",)
    runs = tmp_path / "runs"
    executor = submitit.LocalExecutor(tmp_path / "jobs", max_num_timeout=20)
    executor.update_parameters(timeout_min=0.7, signal_delay_s=20)
    cell = Cell(DIGITS, "ce", 0, settings=settings)
    job = executor.submit(Job(cell, ("--runs", str(runs), "--track", "off"), str(runs)))
    assert job.result() == 0
    summary = json.loads((cell.record(runs) / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert "going on from epoch" in (runs / "sweep" / f"{cell.file_name}.log").read_text()
    whole = run_digits(settings=settings, runs=tmp_path / "whole")
    assert summary["scores"] == json.loads((whole / "summary.json").read_text())["scores"]


@pytest.mark.slow
def test_a_job_that_fails_says_why(tmp_path):
    executor = submitit.LocalExecutor(tmp_path / "jobs")
    cell = Cell(DIGITS, "reloss", 0, "learn")
    job = executor.submit(Job(cell, ("--runs", str(tmp_path), "--track", "off"), str(tmp_path)))
    with pytest.raises(Exception, match="no complete bank"):
        job.result()
    note = json.loads((tmp_path / "sweep" / f"{cell.file_name}.json").read_text())
    assert note["state"] == "failed"
    assert "no complete bank" in note["reason"]


@pytest.mark.slow
def test_the_signal_of_the_job_does_not_end_its_run(tmp_path):
    job = Job(Cell(DIGITS, "ce", 0), (), str(tmp_path))
    with (tmp_path / "log").open("w") as output:
        script = "import os, signal; os.kill(os.getpid(), signal.SIGUSR2); print('alive')"
        assert job._start(["python3", "-c", script], output, {"PATH": "/usr/bin:/bin"}) == 0
    assert (tmp_path / "log").read_text() == "alive\n"
    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL
