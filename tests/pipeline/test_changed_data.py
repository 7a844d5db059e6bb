"""Data that change between the runs that share a record or a bank."""

import json
from pathlib import Path

import pytest
from small import DIGITS, SMALL

from reloss.runtime.errors import UsageError


def summary(record):
    return json.loads((record / "summary.json").read_text())


def test_data_that_changed_since_the_baseline_are_refused_unless_allowed(run_digits, tmp_path, monkeypatch, cli):
    run_digits(settings=SMALL)
    before = run_digits(seed=1, settings=SMALL)
    (before / "summary.json").write_text(json.dumps({**summary(before), "status": "interrupted"}))
    change_data(monkeypatch, "contents-another")
    message = r"the data changed since {} was recorded: .* now contents-another; restore"
    for loss, seed, path in (("reloss", 0, tmp_path / "runs" / DIGITS / "bank"), ("ce", 1, before)):
        with pytest.raises(UsageError, match=message.format(path)):
            run_digits(loss, seed=seed, settings=SMALL)
    words = ("run", DIGITS, "--loss", "reloss", "--runs", tmp_path / "runs", "--track", "off", "--allow-changed-data")
    code, out, err = cli(*words, "--set", *SMALL)
    assert code == 0
    assert "warning: the data changed since" in err
    results = summary(Path(out.strip()))
    assert (results["data"], results["data_before"]) == ("contents-another", summary(before)["data"])


def change_data(monkeypatch, fingerprint):
    monkeypatch.setattr("reloss_tasks.classification.data.fingerprint", lambda config, root: fingerprint)


def test_a_record_lists_the_fingerprints_of_all_its_data(run_digits, monkeypatch):
    record = run_digits(seed=1)
    first = summary(record)["data"]
    for fingerprint, before in (("contents-b", first), ("contents-b", first), ("contents-c", f"{first}, contents-b")):
        (record / "summary.json").write_text(json.dumps({**summary(record), "status": "interrupted"}))
        change_data(monkeypatch, fingerprint)
        run_digits(seed=1, allow_changed_data=True)
        assert (summary(record)["status"], summary(record)["data"]) == ("finished", fingerprint)
        assert summary(record)["data_before"] == before


def test_a_fingerprint_of_an_earlier_kind_does_not_show_a_change(run_digits, capsys):
    record = run_digits(seed=1)
    (record / "summary.json").write_text(json.dumps({**summary(record), "status": "interrupted", "data": "0a1b"}))
    run_digits(seed=1)
    assert f"note: {record} has a data fingerprint of an earlier kind" in capsys.readouterr().err
    assert summary(record)["data"].startswith("contents-")
    assert "data_before" not in summary(record)
