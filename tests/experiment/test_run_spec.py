import pytest
from hypothesis import given
from hypothesis import strategies as st
from small import DIGITS, SMALL

from reloss.experiment.run_spec import MAX_SEED, RunSpec, variant_name
from reloss.experiment.workspace import Workspace
from reloss.runtime.errors import UsageError

SETTINGS = st.lists(st.text(st.characters(categories=("L", "N", "P")), min_size=1), max_size=30)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ([], ""),
        (["train.epochs=3"], "train.epochs=3"),
        (["train.lr=0.1", "data.per_class=5"], "data.per_class=5,train.lr=0.1"),
        (["train.milestones=[1, 2]"], "train.milestones=[1,2]"),
        (["model.name=a/b"], "model.name=a_b"),
    ],
)
def test_a_variant_is_named_after_its_settings(settings, name):
    assert variant_name(settings) == name


@given(settings=SETTINGS, data=st.data())
def test_a_variant_is_one_short_folder_in_any_order(settings, data):
    name = variant_name(settings)
    assert len(name.encode()) <= 100
    assert "/" not in name
    assert variant_name(data.draw(st.permutations(settings))) == name


@pytest.mark.parametrize("letter", ["a", "ä", "漢", "🙂"])
def test_long_variants_differ_and_are_limited_in_bytes(letter):
    keys = [f"train.{letter}{number}=0" for number in range(20)]
    first, second = variant_name([*keys, "z=1"]), variant_name([*keys, "z=2"])
    assert first != second
    for name in (first, second):
        assert 96 <= len(name.encode()) <= 100  # cut between two characters


def test_the_names_of_a_run():
    run = RunSpec(DIGITS, "reloss", 2, ("train.lr=0.2", "train.epochs=1"))
    assert run.loss_with_variant == "reloss@train.epochs=1,train.lr=0.2"
    assert run.label() == f"{DIGITS} {run.loss_with_variant} seed 2"
    assert run.label("learn") == f"{DIGITS} {run.loss_with_variant} learn"
    assert run.file_name("learn") == f"classification_digits_cnn-{run.loss_with_variant}-learn-seed2"
    assert RunSpec(DIGITS, "ce", 0).loss_with_variant == "ce"


def test_the_command_of_a_run():
    run = RunSpec(DIGITS, "reloss", 2, ("train.epochs=1", "learn.steps=5"))
    assert " ".join(run.command(options=["--track", "off"])) == (
        f"reloss run {DIGITS} --loss reloss --seed 2 --track off --set train.epochs=1 learn.steps=5"
    )
    assert RunSpec(DIGITS, "reloss", 2).command("learn")[-2:] == ["--stage", "learn"]


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1])
def test_a_seed_out_of_range_is_refused(cli, seed, tmp_path):
    with pytest.raises(UsageError, match=f"a seed is a whole number from 0 to {MAX_SEED}, not {seed}"):
        RunSpec(DIGITS, "ce", seed)
    runs = tmp_path / "runs"
    code, _, err = cli("run", DIGITS, "--seed", seed, "--runs", runs, "--track", "off", "--set", *SMALL)
    assert (code, runs.exists()) == (2, False)
    assert f"a seed is a whole number from 0 to {MAX_SEED}" in err


def test_resolve_checks_names_and_settings():
    assert RunSpec.resolve(DIGITS).loss == "ce"
    for arguments, message in (
        (("classification/digit",), "unknown experiment"),
        ((DIGITS, "hinge"), f"unknown loss of {DIGITS} 'hinge'"),
        ((DIGITS, "ce", 0, ("train.epoch=1",)), "unknown config key"),
        ((DIGITS, "ce", 0, ("train.epochs=x",)), "train.epochs"),
    ):
        with pytest.raises(UsageError, match=message):
            RunSpec.resolve(*arguments)


def test_the_folders_of_a_workspace(tmp_path):
    workspace = Workspace(tmp_path, tmp_path / "data")
    run = RunSpec(DIGITS, "ce", 3, ("train.lr=0.2",))
    home = tmp_path / DIGITS
    assert workspace.record(run) == home / "ce@train.lr=0.2" / "seed3"
    workspace.record(run).mkdir(parents=True)
    workspace.surrogate(DIGITS, "0123").mkdir(parents=True)
    assert workspace.records(DIGITS) == [workspace.record(run)]
    assert workspace.surrogates(DIGITS) == [home / "surrogates" / "0123"]
    assert (workspace.bank(DIGITS), workspace.diagnostics(DIGITS)) == (home / "bank", home / "diagnostics")
    assert workspace.sweep_note("job") == tmp_path / "sweep" / "job.json"
    assert [workspace.sweep_log("job", node).name for node in (0, 1)] == ["job.log", "job.node1.log"]


def test_settings_that_resolve_to_the_same_values_are_the_same_run():
    run = RunSpec.resolve(DIGITS, "reloss", 0, ("train.lr=0.20", "learn.steps=5"))
    assert run == RunSpec.resolve(DIGITS, "reloss", 0, ("learn.steps=5", "train.lr=2e-1"))
    assert run.fit_settings == ("learn.steps=5",)
    config = RunSpec.resolve(DIGITS).load()[1]
    assert RunSpec.resolve(DIGITS, "ce", 0, (f"train.lr={config.train.lr}", "learn.steps=5")) == RunSpec.resolve(DIGITS)
    with pytest.raises(UsageError, match=r"train\.lr is given twice"):
        RunSpec.resolve(DIGITS, "ce", 0, ("train.lr=0.1", "train.lr=0.2"))
