import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import submitit
from small import DIGITS
from waiting import wait_for

from reloss.experiment.run_spec import RunSpec
from reloss.experiment.workspace import Workspace
from reloss.runtime.errors import RelossError, UsageError
from reloss.sweep.job import Job, log_of, read_note
from reloss.sweep.plan import make_plan
from reloss.sweep.resources import SBATCH_OPTIONS, SET_BY_THE_SWEEP, Resources
from reloss.sweep.slurm import PATIENCE, SlurmJob, submit


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("4:00:00", 240), ("0:01:00", 1), ("1-0", 1440), ("2-03:30", 3090), ("1-02:03:04", 1563)],
)
def test_times_are_read_in_the_notation_of_slurm(text, minutes):
    assert Resources.parse([f"time={text}"]).minutes() == minutes


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("time=4:30", "give minutes, H:MM:SS"),
        ("time=0", "at least a minute"),
        ("time=soon", "give minutes"),
        ("gpus=two", "a whole number is needed, such as gpus=8"),
        ("mem=32G", "a number of gigabytes is needed, such as mem=8"),
        ("nodes=-1", "must not be negative"),
        ("nodes=0", "must be at least 1"),
        ("processes=0", "must be at least 1"),
        ("parallel=0", "must be at least 1"),
        ("grace=0", "must be at least 1"),
        ("mem=nan", "must be finite"),
        ("mem=inf", "must be finite"),
        ("mem=0.0001", "must be at least a megabyte"),
        ("patition=gpu", "unknown key of --slurm 'patition'; did you mean partition?"),
        ("memory=4", "unknown key of --slurm 'memory'"),
        ("gpus_per_node=4", "the sweep sets gpus-per-node itself; use --slurm gpus=..."),
        ("output=x", "the sweep sets output itself; remove it"),
        ("dependency=afterok:1?singleton", "separate them by commas"),
        ("comment=a\nb", "cannot be printed"),
        ("partition", "takes key=value, not 'partition'"),
        ("=x", "takes key=value"),
    ],
)
def test_resources_refuse(setting, message):
    with pytest.raises(UsageError, match=message):
        Resources.parse([setting])


def test_a_key_given_twice_is_refused():
    for settings in (["gpus=1", "gpus=1"], ["qos=a", "--qos=b"], ["mem_per_cpu=1", "mem-per-cpu=1"]):
        with pytest.raises(UsageError, match="twice; give it once"):
            Resources.parse(settings)


def test_options_of_sbatch_are_passed_on_or_set_by_the_sweep():
    assert SBATCH_OPTIONS.isdisjoint(SET_BY_THE_SWEEP)
    resources = Resources.parse(["mem_per_cpu=4G", "exclusive=", "mail-type=END"])
    assert resources.options_after(["7"]) == {
        "mem-per-cpu": "4G",
        "exclusive": True,
        "mail-type": "END",
        "dependency": "afterok:7",
        "kill-on-invalid-dep": "yes",
    }


@pytest.mark.skipif(shutil.which("sbatch") is None, reason="Slurm is not installed")
def test_every_option_of_the_installed_sbatch_is_known(tmp_path, monkeypatch):
    (tmp_path / "slurm.conf").write_text(
        "ClusterName=x\nSlurmctldHost=localhost\nNodeName=n\nPartitionName=p Nodes=n\n"
    )
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    page = subprocess.run(["sbatch", "--help"], capture_output=True, text=True, check=True).stdout
    options = set(re.findall(r"^ +(?:-\w,? +)?--([a-z][a-z-]+)", page, re.MULTILINE))
    assert len(options) > 80
    assert options - SBATCH_OPTIONS - SET_BY_THE_SWEEP.keys() == {"gpus", "mem", "nodes", "partition", "time"}


def test_a_dependency_is_added_to_those_of_the_sweep():
    resources = Resources.parse(["dependency=singleton,afterany:5"])
    assert resources.options_after(["7", "8_1"])["dependency"] == "afterok:7:8_1,singleton,afterany:5"
    assert resources.options_after([]) == {"dependency": "singleton,afterany:5"}


def test_the_signal_leaves_half_of_a_short_job():
    assert Resources.parse(["time=1"]).options()["slurm_signal_delay_s"] == 30
    assert Resources.parse(["time=60", "grace=300"]).options()["slurm_signal_delay_s"] == 300


@pytest.mark.parametrize("name", ["%j", "a\\b"])
def test_a_folder_that_slurm_would_rename_is_refused(tmp_path, name):
    plan = make_plan(DIGITS, ["ce"], [0])
    with pytest.raises(UsageError, match="choose another folder with --runs"):
        submit(plan, [], Workspace(tmp_path / name), Resources())


def test_submitit_takes_all_resources(tmp_path):
    resources = Resources.parse(["partition=long", "gpus=4", "cpus=8", "mem=0.5", "qos=low", "exclusive="])
    executor = submitit.AutoExecutor(tmp_path, cluster="slurm", slurm_max_num_timeout=resources.timeouts)
    additional = {"requeue": True, **resources.options_after(["3"])}
    executor.update_parameters(**resources.options(), slurm_additional_parameters=additional)
    script = executor._executor._make_submission_file_text("command", "uid")
    lines = {line for line in script.splitlines() if line.startswith("#SBATCH")}
    options = ("dependency=afterok:3", "exclusive", "qos=low", "mem=512MB", "signal=USR2@90", "requeue")
    assert lines >= {f"#SBATCH --{option}" for option in options}


def test_resources_become_options_of_submitit():
    settings = ["partition=long", "gpus=4", "cpus=8", "mem=32", "time=1-0", "qos=low", "parallel=2", "grace=30"]
    resources = Resources.parse(settings)
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


def test_a_missing_slurm_is_reported(cli, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, err = cli("sweep", DIGITS, "--launcher", "slurm", "--runs", tmp_path / "runs")
    assert code == 1
    assert "no Slurm here: sbatch is not found; use --launcher local or print" in err


def test_resources_of_slurm_need_the_launcher_slurm(cli):
    code, _, err = cli("sweep", DIGITS, "--slurm", "gpus=1")
    assert code == 2
    assert "--slurm needs --launcher slurm" in err


@pytest.mark.parametrize("signalled", [False, True])
def test_a_job_waits_for_the_scheduler_only_after_a_signal(tmp_path, monkeypatch, signalled):
    signals, pauses = [], []
    monkeypatch.setattr("reloss.sweep.slurm.time", SimpleNamespace(sleep=pauses.append))  # other threads sleep, too
    before = signal.signal(signal.SIGUSR2, lambda *_: signals.append(True))
    workspace = Workspace(tmp_path)
    slurm_job = SlurmJob(Job(RunSpec(DIGITS, "ce", 0)), (), workspace)

    def start(words, output, environment):
        output.write("reloss: terminated; the same command resumes\nE failed (exitcode: -9) local_rank: 1\n")
        if signalled:
            os.kill(os.getpid(), signal.SIGUSR2)
        return 1

    monkeypatch.setattr(slurm_job, "_start", start)
    try:
        with pytest.raises(RelossError, match="killed by signal 9"):
            slurm_job()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert signals == [True] * signalled
    assert pauses == [PATIENCE] * signalled
    reason = None if signalled else "killed by signal 9 (out of memory?)"
    assert read_note(slurm_job.job, workspace).get("reason") == reason


@pytest.mark.slow
def test_a_job_whose_time_is_over_resumes_in_the_next(tmp_path, run_digits):
    settings = ("train.epochs=100",)
    workspace = Workspace(tmp_path / "runs")
    job = Job(RunSpec(DIGITS, "ce", 0, settings))
    executor = submitit.LocalExecutor(tmp_path / "jobs", max_num_timeout=20)
    executor.update_parameters(timeout_min=10)
    handle = executor.submit(SlurmJob(job, ("--runs", str(workspace.runs), "--track", "off"), workspace))
    # submitit's process gets the signal that its time is over while the job trains, however long its start takes.
    log = log_of(job, workspace)
    wait_for(lambda: log.exists() and "epoch 3/100" in log.read_text())
    controller = handle._process.pid
    os.kill(int(Path(f"/proc/{controller}/task/{controller}/children").read_text()), signal.SIGUSR2)
    assert handle.result() == 0
    summary = json.loads((workspace.record(job.run) / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert re.search(r"resuming from epoch \d+", log.read_text())
    whole = run_digits(settings=settings, runs=tmp_path / "whole")
    assert summary["scores"] == json.loads((whole / "summary.json").read_text())["scores"]


@pytest.mark.slow
def test_a_failed_job_has_a_reason(tmp_path):
    executor = submitit.LocalExecutor(tmp_path / "jobs")
    job, workspace = Job(RunSpec(DIGITS, "reloss", 0), "learn"), Workspace(tmp_path)
    handle = executor.submit(SlurmJob(job, ("--runs", str(tmp_path), "--track", "off"), workspace))
    with pytest.raises(Exception, match="no complete bank"):
        handle.result()
    note = read_note(job, workspace)
    assert note["state"] == "failed"
    assert "no complete bank" in note["reason"]


@pytest.mark.slow
def test_the_signal_for_the_job_does_not_end_its_run(tmp_path):
    slurm_job = SlurmJob(Job(RunSpec(DIGITS, "ce", 0)), (), Workspace(tmp_path))
    with (tmp_path / "log").open("w") as output:
        script = "import os, signal; os.kill(os.getpid(), signal.SIGUSR2); print('alive')"
        assert slurm_job._start(["python3", "-c", script], output, {"PATH": "/usr/bin:/bin"}) == 0
    assert (tmp_path / "log").read_text() == "alive\n"
    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL
