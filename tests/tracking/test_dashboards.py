import json
import sys

import pytest
import wandb
from logged import check_logged, panels
from small import DIGITS
from wandb_server import wandb_server

from reloss.experiment.task import find_experiment, tasks


@pytest.fixture(autouse=True)
def _fresh_settings():
    """Forget the address of the server, which W&B reads once per process."""
    yield
    wandb.teardown()


def test_print_needs_no_key_and_no_network(cli, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    code, out, err = cli("dashboard", "--print")
    assert code == 0, err
    reports = json.loads(out)
    assert [report["displayName"] for report in reports] == [f"{name}: ordinary losses and ReLoss" for name in tasks()]
    for task, report in zip(tasks().values(), reports, strict=True):
        headings = [block["children"][0]["text"] for block in report["spec"]["blocks"] if block["type"] == "heading"]
        assert headings == list(task.experiments)


@pytest.mark.parametrize("name", [full for task in tasks().values() for full in task.experiments])
def test_each_experiment_shows_its_own_score(name):
    config = find_experiment(name)[1]
    named = panels(name)
    assert {f"validation_{config.score}", "train_loss", "step", f"summary:{config.score}"} == named["trainings"]
    assert {"step", "spearman", "spearman_synthetic", "objective"} <= named["fits"]


def test_it_shows_the_finished_runs_of_the_experiment(cli):
    _, out, _ = cli("dashboard", DIGITS, "--print")
    grids = [block for block in json.loads(out)[0]["spec"]["blocks"] if block["type"] == "panel-grid"]
    found = [
        {each["key"]["name"]: each["value"] for each in grid["metadata"]["runSets"][0]["filters"]["filters"]}
        for grid in grids
    ]
    assert found == [
        {"group": DIGITS, "state": "finished", "stage": stages} for stages in (["baseline", "train"], ["learn"])
    ]
    groups = [each["name"] for each in grids[0]["metadata"]["runSets"][0]["grouping"]]
    assert groups == ["loss.value", "variant.value"]


@pytest.mark.parametrize("loss", ["reloss", "approx"])
def test_its_metrics_are_logged_and_logged_metrics_are_documented(run_digits, loss):
    check_logged(run_digits(loss))


def test_push_writes_one_report_per_task(cli, monkeypatch):
    with wandb_server() as server:
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setenv("WANDB_BASE_URL", server.address)
        code, out, err = cli("dashboard", DIGITS, "nmt", "--push")
        assert code == 0, err
        assert len(out.splitlines()) == 2
        assert all(line.startswith(f"{server.address}/team/reloss/reports/") for line in out.splitlines())
        assert [(view["entityName"], view["projectName"]) for view in server.views] == [("team", "reloss")] * 2
        assert DIGITS in server.views[0]["spec"]
        assert server.unknown == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "choose one of --push and --print"),
        (("--push", "--print"), "choose one of --push and --print"),
        (("classificaton", "--print"), "unknown task or experiment 'classificaton'; did you mean classification"),
        (("--push",), "there is no W&B key: set WANDB_API_KEY, or call `wandb login`; --print needs none"),
    ],
)
def test_wrong_usage(cli, words, message, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    code, _, err = cli("dashboard", *words)
    assert code == 2
    assert message in err


def test_push_reports_a_missing_server(cli, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    code, _, err = cli("dashboard", DIGITS, "--push")
    assert code == 1
    assert "does not answer" in err


def test_a_missing_package_is_reported_with_the_remedy(cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    code, _, err = cli("dashboard", "--print")
    assert code == 1
    assert "wandb-workspaces is not installed" in err
