import json

import pytest
from processes import TORCHRUN
from small import DIGITS, SMALL

from reloss.errors import UsageError
from reloss.experiment.config import variant
from reloss.experiment.launch import note_of, run_cell, run_local
from reloss.experiment.sweep import Cell, command, needs, parse_seeds, phases
from reloss.experiment.task import tasks


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("0", [0]), ("0-2", [0, 1, 2]), ("0,2,5-7", [0, 2, 5, 6, 7]), ("3,1,1-2", [1, 2, 3]), ("4-4", [4])],
)
def test_parse_seeds(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "1,,2", "0-b", "2-1", "0.5"])
def test_parse_seeds_refuses(text):
    with pytest.raises(UsageError, match="--seeds"):
        parse_seeds(text)


def test_phases_go_from_baseline_over_learning_to_the_rest():
    others, baselines, fits, rest = phases(DIGITS, ["ce", "approx", "reloss"], [0, 1])
    assert others == []
    assert baselines == [Cell(DIGITS, "ce", 0)]
    assert fits == [Cell(DIGITS, "approx", 0, "learn"), Cell(DIGITS, "reloss", 0, "learn")]
    assert rest == [
        Cell(DIGITS, "ce", 1),
        *(Cell(DIGITS, loss, seed) for loss in ("approx", "reloss") for seed in (0, 1)),
    ]


def test_phases_record_a_baseline_that_was_not_asked_for():
    assert phases(DIGITS, ["reloss"], [1]) == [
        [],
        [Cell(DIGITS, "reloss", 1, "baseline")],
        [Cell(DIGITS, "reloss", 1, "learn")],
        [Cell(DIGITS, "reloss", 1)],
    ]
    assert phases(DIGITS, ["ce"], [3]) == [[], [], [], [Cell(DIGITS, "ce", 3)]]


def test_phases_begin_with_the_teacher_that_students_use():
    teacher = Cell("nmt/multi30k_de_en_at", "label_smoothing", 0)
    student = "nmt/multi30k_de_en_nat"
    plan = phases(student, ["nll", "reloss"], [0])
    assert plan == [
        [teacher],
        [Cell(student, "nll", 0)],
        [Cell(student, "reloss", 0, "learn")],
        [Cell(student, "reloss", 0)],
    ]
    assert [needs(cell, plan) for (cell,) in plan] == [[], [teacher], plan[1], [*plan[2], teacher]]
    raw = ("data.distilled=false", "train.from_teacher=false")
    assert phases(student, ["nll"], [0], raw)[0] == []
    of_table = phases("nmt", [], [0])
    assert teacher in of_table[0]
    assert teacher not in of_table[1]


def test_phases_of_a_table_hold_all_its_experiments():
    _, baselines, fits, rest = phases("classification", [], [0, 1])
    names = list(tasks()["classification"].experiments)
    assert [cell.experiment for cell in baselines] == names
    assert len(fits) == 2 * len(names)
    assert len(baselines + rest) == 2 * sum(
        len(make().losses) for make in tasks()["classification"].experiments.values()
    )


@pytest.mark.parametrize(
    ("name", "losses", "message"),
    [
        ("classification/digits", [], "unknown table or experiment.*did you mean classification/digits_cnn"),
        ("clasification", [], "did you mean classification?"),
        (DIGITS, ["reolss"], "unknown loss.*did you mean reloss"),
    ],
)
def test_phases_name_the_nearest(name, losses, message):
    with pytest.raises(UsageError, match=message):
        phases(name, losses, [0])


def test_command():
    assert " ".join(command(Cell(DIGITS, "reloss", 2, settings=("train.epochs=1",)), [])) == (
        "reloss run classification/digits_cnn --loss reloss --seed 2 --set train.epochs=1"
    )
    assert command(Cell(DIGITS, "reloss", 2, "learn"), [])[-2:] == ["--stage", "learn"]


PRINT = (
    *("sweep", DIGITS, "--losses", "ce,reloss", "--seeds", "0-1", "--launcher", "print", "--data", "d"),
    *("--track", "off", "--set", "train.epochs=1", "learn.steps=5"),
)
PHASES = (("ce --seed 0",), ("reloss --seed 0 --stage learn",), ("ce --seed 1", "reloss --seed 0", "reloss --seed 1"))


def phased(start: str, end: str) -> list[str]:
    """The lines that are printed: a comment, then the commands of a phase."""
    comments = ["# when you like, side by side or not:", *["# when those before have ended, side by side or not:"] * 2]
    return [
        line
        for comment, phase in zip(comments, PHASES, strict=True)
        for line in (comment, *(f"{start}{each}{end}" for each in phase))
    ]


def test_print_launcher_prints_plain_commands_and_runs_nothing(cli, tmp_path):
    runs = tmp_path / "runs"
    code, out, _ = cli(*PRINT, "--runs", runs, "--image", "none")
    more = f"--data d --runs {runs} --track off --set train.epochs=1 learn.steps=5"
    assert code == 0
    assert out.splitlines() == phased(f"reloss run {DIGITS} --loss ", f" {more}")
    assert not runs.exists()


def test_print_launcher_prints_lines_of_docker(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = cli(*PRINT, "--runs", "my/own runs", "--image", "reloss:1")
    start = f"docker run --rm --gpus all --ipc host -v d:/data -v '{tmp_path}/my/own runs:/runs' reloss:1 run"
    assert code == 0
    assert out.splitlines() == phased(f"{start} {DIGITS} --loss ", " --track off --set train.epochs=1 learn.steps=5")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("image", ["none", "reloss"])
def test_leave_to_go_on_with_changed_data_is_handed_to_every_run(cli, tmp_path, image):
    code, out, _ = cli(*PRINT, "--runs", tmp_path, "--image", image, "--allow-changed-data")
    assert code == 0
    assert [line.count("--track off --allow-changed-data") for line in out.splitlines() if line[0] != "#"] == [1] * 5


def test_finished_runs_are_skipped_and_a_failing_one_stops_no_other(cli, run_digits, tmp_path):
    record = run_digits()
    summary = record / "summary.json"
    before = summary.stat().st_mtime_ns
    broken = record.parent / "seed1"
    broken.mkdir()
    (broken / "config.yaml").write_text("of another experiment")
    code, _, err = cli(
        "sweep", DIGITS, "--losses", "ce", "--seeds", "0-2", "--slots", "2", "--runs", tmp_path / "runs",
        "--track", "off", "--set", *SMALL,
    )  # fmt: skip
    assert code == 1
    assert "1 of 3 runs failed" in err
    assert f"skip      classification/digits_cnn ce@{variant(SMALL)} seed 0 (finished)" in err
    assert f"FAILED 2  classification/digits_cnn ce@{variant(SMALL)} seed 1" in err
    assert summary.stat().st_mtime_ns == before
    assert json.loads((record.parent / "seed2" / "summary.json").read_text())["status"] == "finished"
    logs = tmp_path / "runs" / "sweep"
    name = f"classification_digits_cnn-ce@{variant(SMALL)}-all-seed"
    assert sorted(path.name for path in logs.iterdir()) == [f"{name}1.json", f"{name}1.log", f"{name}2.log"]
    assert "was made by another config" in (logs / f"{name}1.log").read_text()
    assert "was made by another config" in json.loads((logs / f"{name}1.json").read_text())["reason"]


def test_a_sweep_whose_logs_cannot_be_written_ends(tmp_path):
    plan = phases(DIGITS, ["ce"], range(4), SMALL)
    tmp_path.joinpath("sweep").write_text("in the way")
    assert set(run_local(plan, [], tmp_path, slots=2, gpus=[])) == {cell for phase in plan for cell in phase}


def test_a_run_of_several_processes_that_is_told_to_end_did_not_fail(tmp_path):
    """torchrun then ends with 1, whatever its processes end with."""
    (cell,) = (cell for phase in phases(DIGITS, ["ce"], [0], SMALL) for cell in phase)

    def ends(said):
        def start(words, output, environment):
            output.write(said)
            return 1

        return run_cell(cell, [], tmp_path, {}, start, launcher=TORCHRUN)

    terminated = "reloss: terminated; the same command goes on from the last checkpoint\nERROR torch.distributed\n"
    assert ends(terminated) == 143
    assert note_of(cell, tmp_path) == {}
    assert ends("reloss: process 1: the loss is nan\nERROR\n") == 1
    assert note_of(cell, tmp_path)["reason"] == "process 1: the loss is nan"


def test_slots_are_positive(cli):
    code, _, err = cli("sweep", DIGITS, "--slots", "0")
    assert code == 2
    assert "--slots must be at least 1" in err
