"""`reloss forget` removes records, by default failed and damaged ones."""

from contextlib import contextmanager

import pytest
from small import DIGITS

from reloss.experiment.run_spec import RunSpec
from reloss.experiment.status import Status
from reloss.experiment.workspace import Workspace
from reloss.runtime.errors import UsageError
from reloss.runtime.files import write_json
from reloss.sweep.job import Job, write_note


def record(runs, loss, seed, status):
    """Write the summary of a run."""
    facts = {"experiment": DIGITS, "loss": loss, "settings": [], "seed": seed, "protocol": "p", "scores": {}}
    folder = runs / DIGITS / loss / f"seed{seed}"
    write_json(folder / "summary.json", {"status": status, "score": "accuracy", **facts})
    return folder


@pytest.fixture
def runs(tmp_path):
    """Records of every state: seed 0 is finished, 1 failed, 2 damaged, 3 interrupted."""
    for seed, status in enumerate(("finished", "failed", "failed", "interrupted")):
        folder = record(tmp_path, "ce", seed, status)
    (folder.parent / "seed2" / "summary.json").write_text("{")
    return tmp_path


def seeds(runs):
    return sorted(int(path.name.removeprefix("seed")) for path in runs.glob("*/*/*/seed*"))


def test_records_are_listed_and_removed_with_yes_only(cli, runs):
    code, out, err = cli("forget", DIGITS, "--runs", runs)
    assert (code, seeds(runs)) == (0, [0, 1, 2, 3])
    assert out.splitlines()[-1] == "2 runs: 1 failed, 1 damaged"
    assert err == "nothing is removed yet; add --yes to remove these records\n"
    code, again, err = cli("forget", DIGITS, "--runs", runs, "--yes")
    assert (code, again, err, seeds(runs)) == (0, out, "removed\n", [0, 3])
    code, out, _ = cli("table", "classification", "--runs", runs, "--format", "csv")
    assert "failed" not in out


def test_the_states_and_losses_choose(cli, runs):
    record(runs, "reloss", 5, "finished")
    cli("forget", DIGITS, "--runs", runs, "--losses", "ce", "--states", "finished, interrupted", "--yes")
    assert seeds(runs) == [1, 2, 5]
    cli("forget", DIGITS, "--runs", runs, "--losses", "reloss", "--states", "finished", "--yes")
    assert not (runs / DIGITS / "reloss").exists()


def test_a_note_of_a_sweep_is_removed_too(cli, tmp_path):
    job, workspace = Job(RunSpec(DIGITS, "ce", 0)), Workspace(tmp_path)
    write_note(job, workspace, Status.FAILED, reason="out of memory")
    cli("forget", DIGITS, "--runs", tmp_path, "--losses", "ce", "--seeds", "0", "--yes")
    assert not workspace.sweep_note(job.file_name).exists()


def test_a_record_that_another_process_writes_is_kept(cli, runs, monkeypatch):
    @contextmanager
    def refuse(folder):
        raise UsageError(f"{folder} is being written by process 7")
        yield

    monkeypatch.setattr("reloss.commands.forget.locked", refuse)
    folder = runs / DIGITS / "ce" / "seed1"
    code, _, err = cli("forget", DIGITS, "--runs", runs, "--yes")
    assert (code, folder.exists()) == (2, True)
    assert f"{folder} is being written by process 7" in err
