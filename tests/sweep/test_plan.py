import json
import shutil

import pytest
from small import DIGITS, SMALL

from reloss.experiment.config import FITTED_LOSSES
from reloss.experiment.run_spec import MAX_SEED, RunSpec
from reloss.experiment.task import tasks
from reloss.experiment.workspace import Workspace
from reloss.runtime.errors import UsageError
from reloss.sweep.estimate import estimate
from reloss.sweep.job import Job
from reloss.sweep.plan import Plan, make_plan, parse_losses, parse_seeds


def job(experiment, loss, seed, stage="all", settings=()):
    return Job(RunSpec(experiment, loss, seed, settings), stage)


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("0", [0]),
        ("0-2", [0, 1, 2]),
        ("0,2,5-7", [0, 2, 5, 6, 7]),
        ("3,1,1-2", [1, 2, 3]),
        ("4-4", [4]),
        (" 0, 2 - 3", [0, 2, 3]),
    ],
)
def test_parse_seeds(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "1,,2", "0-b", "2-1", "0.5", "²", "0-999999999"])
def test_parse_seeds_refuses(text):
    with pytest.raises(UsageError, match="--seeds"):
        parse_seeds(text)


def test_parse_seeds_refuses_a_seed_out_of_range():
    with pytest.raises(UsageError, match=f"a seed is a whole number from 0 to {MAX_SEED}"):
        parse_seeds(f"0-{MAX_SEED + 1}")


def test_a_list_of_losses_names_one():
    assert parse_losses("ce, reloss") == ["ce", "reloss"]
    assert parse_losses("") == []
    with pytest.raises(UsageError, match="--losses takes a list such as ce,reloss, not ' ,'"):
        parse_losses(" ,")


def test_a_plan_goes_from_the_baseline_over_the_fits_to_the_other_runs():
    plan = make_plan(DIGITS, ["ce", "approx", "reloss"], [0, 1])
    assert plan.prerequisites == []
    assert plan.baselines == [job(DIGITS, "ce", 0)]
    assert plan.fits == [job(DIGITS, "approx", 0, "learn"), job(DIGITS, "reloss", 0, "learn")]
    assert plan.runs == [
        job(DIGITS, "ce", 1),
        *(job(DIGITS, loss, seed) for loss in ("approx", "reloss") for seed in (0, 1)),
    ]


def test_a_plan_records_a_baseline_that_was_not_requested():
    assert make_plan(DIGITS, ["reloss"], [1]) == Plan(
        baselines=[job(DIGITS, "ce", 0, "baseline")],
        fits=[job(DIGITS, "reloss", 0, "learn")],
        runs=[job(DIGITS, "reloss", 1)],
    )
    assert make_plan(DIGITS, ["ce"], [3]) == Plan(runs=[job(DIGITS, "ce", 3)])


def test_sweeps_over_other_seeds_and_losses_share_the_bank_and_the_fits():
    first, second = make_plan(DIGITS, ["reloss"], [1]), make_plan(DIGITS, ["approx", "reloss"], [2, 3])
    assert first.baselines == second.baselines
    assert set(first.fits) <= set(second.fits)


def test_the_settings_of_an_ablation_override_those_of_the_sweep():
    plan = make_plan("ablation", [], [0], ["learn.penalty=off", "train.epochs=1"])
    learned = [job.run.settings for job in plan.runs if job.run.loss == "reloss"]
    for settings in learned:
        keys = [setting.partition("=")[0] for setting in settings]
        assert len(keys) == len(set(keys))
        assert "train.epochs=1" in settings
    assert any("learn.penalty=item" in settings for settings in learned)


def test_the_ablation_of_rare_classes():
    plan = make_plan("rare_ablation", [], [0, 1], ["train.lr=0.03"])
    experiments = {job.run.experiment for job in plan}
    assert "classification/rare_digit_mlp" in experiments
    assert len([name for name in experiments if name.startswith("classification/keel_")]) == 12
    of_one = [job for job in plan.runs if job.run.experiment == "classification/keel_yeast4"]
    assert {job.run.seed for job in of_one} == {0, 1}
    second = [
        fit for fit in plan.fits if "refit=true" in fit.run.settings and fit.run.experiment == of_one[0].run.experiment
    ]
    assert len(second) == 2  # from scratch and fine-tuned: they learn from other runs
    for fit in second:
        (first,) = [need for need in plan.needs[fit] if need in plan.fits]
        assert not any(setting.startswith("refit") for setting in first.run.settings)
        assert fit in plan.needs[next(job for job in of_one if job.run == fit.run.first_round())]


def test_a_bank_and_a_fit_are_done_when_every_run_that_needs_them_is(tmp_path, run_digits):
    plan = make_plan(DIGITS, ["reloss"], [1], SMALL)
    workspace = Workspace(tmp_path / "runs")
    assert [plan.is_done(job, workspace) for job in plan] == [False, False, False]
    record = run_digits("reloss", seed=1)
    shutil.rmtree(workspace.bank(DIGITS))
    assert [plan.is_done(job, workspace) for job in plan] == [True, True, True]
    shutil.rmtree(record)
    assert [plan.is_done(job, workspace) for job in plan] == [False, False, False]


def test_a_plan_begins_with_the_teacher_that_students_need():
    teacher = job("nmt/multi30k_de_en_at", "label_smoothing", 0)
    student = "nmt/multi30k_de_en_nat"
    plan = make_plan(student, ["nll", "reloss"], [0])
    assert plan == Plan(
        [teacher], [job(student, "nll", 0)], [job(student, "reloss", 0, "learn")], [job(student, "reloss", 0)]
    )
    assert [plan.needs[job] for job in plan] == [[], [teacher], plan.baselines, [*plan.fits, teacher]]
    without_teacher = ("data.distilled=false", "train.from_teacher=false")
    assert make_plan(student, ["nll"], [0], without_teacher).prerequisites == []
    table = make_plan("nmt", [], [0])
    assert teacher in table.prerequisites
    assert teacher not in table.baselines


def test_the_plan_of_a_table_has_all_its_experiments():
    plan = make_plan("classification", [], [0, 1])
    names = list(tasks()["classification"].experiments)
    assert [job.run.experiment for job in plan.baselines] == names
    losses = [loss for make in tasks()["classification"].experiments.values() for loss in make().losses]
    assert len(plan.fits) == sum(loss in FITTED_LOSSES for loss in losses)
    assert len(plan.baselines + plan.runs) == 2 * len(losses)


@pytest.mark.parametrize(
    ("name", "losses", "message"),
    [
        ("classification/digits", [], "unknown table or experiment.*did you mean classification/digits_cnn"),
        ("clasification", [], "did you mean classification?"),
        (DIGITS, ["reolss"], "unknown loss.*did you mean reloss"),
    ],
)
def test_a_misspelt_name_is_reported_with_the_nearest(name, losses, message):
    with pytest.raises(UsageError, match=message):
        make_plan(name, losses, [0])


@pytest.mark.parametrize(
    ("settings", "rest"),
    [
        ((), "; the rest takes a minute or less in 1 processes"),
        (("train.epochs=300",), ""),  # no time is known for these settings
    ],
)
def test_an_estimate_from_the_times_of_the_ablation(tmp_path, settings, rest):
    plan = make_plan(DIGITS, ["ce"], [0, 1], settings)
    assert estimate(plan, Workspace(tmp_path), 1) == f"2 runs, 0 finished{rest}"


def test_an_estimate_from_finished_runs(tmp_path, run_digits):
    path = run_digits() / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "wall_seconds": 114.0}))
    workspace = Workspace(tmp_path / "runs")
    plan = make_plan(DIGITS, ["ce"], [0, 1, 2], SMALL)
    assert estimate(plan, workspace, 2) == "3 runs, 1 finished; the rest takes about 2 minutes in 2 processes"
    assert estimate(Plan(baselines=plan.baselines), workspace, 1) == "1 runs, 1 finished"
