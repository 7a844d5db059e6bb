import json
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml
from small import DIGITS

import reloss
from reloss.cli import main
from reloss.commands.experiments import list_experiments, render_experiments
from reloss.experiment.task import Task, tasks
from reloss.learning import LearnOptions, PredictionBank
from reloss.learning.options import MIXTURES
from reloss.runtime.errors import RelossError, UsageError
from reloss.runtime.signals import Terminated
from reloss.surrogates import ClassificationReLoss
from reloss_tasks.classification.experiments import KEEL_SETS


def test_version(cli):
    assert cli("--version") == (0, f"reloss {reloss.__version__}\n", "")
    assert "`reloss --version` prints the version" in " ".join(cli("--help")[1].split())


def test_the_package_is_a_command():
    command = [sys.executable, "-m", "reloss", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"reloss {reloss.__version__}\n", "")


def test_list_names_every_experiment(cli):
    code, out, _ = cli("list", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert code == 0
    assert rows.keys() == {name for task in tasks().values() for name in task.experiments}
    assert rows[DIGITS] == {
        "name": DIGITS,
        "task": "classification",
        "data": "digits",
        "losses": ["ce", "label_smoothing", "approx", "reloss", "expected"],
        "scope": "extra",
        "scope_note": "a smoke test",
        "missing_packages": [],
        "missing_data": None,
    }
    code, out, _ = cli("list")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines() if line] == list(rows)


def test_list_reports_what_can_run_here(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(Task, "missing_packages", lambda task: ["mmpose"] if task.name == "pose" else [])
    (tmp_path / "multi30k").mkdir()
    code, out, err = cli("list", "--data", tmp_path)
    states = dict(re.findall(r"^(\S+)  +(ready|no data|no packages)  ", out, re.MULTILINE))
    assert code == 0
    assert states[DIGITS] == states["nmt/multi30k_de_en_nat"] == "ready"
    assert states["classification/cifar10_cnn"] == states["mrc/squad_minilm"] == "no data"
    assert states["pose/lsp_resnet18"] == "no packages"
    pose, data = err.splitlines()
    assert pose.startswith("no packages: pose needs mmpose: `pip install '.[pose]'")
    assert data == f"no data: not in {tmp_path} (--data); `reloss data check EXPERIMENT` reports what belongs where"
    rows = {row["name"]: row for row in json.loads(cli("list", "--json", "--data", tmp_path)[1])}
    assert rows["classification/cifar10_cnn"]["missing_data"] == f"{tmp_path}/cifar-10-batches-py"
    assert rows["pose/lsp_resnet18"]["missing_packages"] == ["mmpose"]


def test_the_list_fits_a_terminal(tmp_path):
    rows = list_experiments(tmp_path)
    lines = render_experiments(rows, 80).splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) < 3.5 * len(rows)
    assert [line.split()[0] for line in lines if line[:1].strip()] == [row["name"] for row in rows]
    assert lines.count("") == 3  # between the four tasks


def test_show_takes_set_repeatedly_and_with_several_values(cli):
    plain = yaml.safe_load(cli("show", DIGITS)[1])
    words = ("--set", "train.epochs=3", "train.lr=0.5", "--set", "learn.fidelity=released")
    changed = yaml.safe_load(cli("show", DIGITS, *words)[1])
    assert (plain["train"]["epochs"], plain["train"]["lr"], plain["learn"]["calibrate"]) == (20, 0.05, True)
    assert (changed["train"]["epochs"], changed["train"]["lr"], changed["learn"]["calibrate"]) == (3, 0.5, False)


@pytest.mark.parametrize("name", [name for task in tasks().values() for name in task.experiments])
def test_what_show_prints_is_the_whole_config(cli, name):
    shown = yaml.safe_load(cli("show", name)[1])
    config = next(task for task in tasks().values() if name in task.experiments).experiments[name]()
    assert type(config).model_validate(shown) == config


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (["lisst"], ["unknown command 'lisst'; did you mean list?"]),
        (["LIST"], ["unknown command 'LIST'; did you mean list?"]),
        (["rnu"], ["unknown command 'rnu'; did you mean run?"]),
        (["swep", DIGITS], ["unknown command 'swep'; did you mean sweep?"]),
        (
            ["x"],
            ["unknown command 'x'; valid: compare, completion, dashboard, data, demo, diagnose,"],
        ),
        ([], ["list", "show"]),
        (["show"], ["EXPERIMENT"]),
        (["show", "classification/digit_cnn"], ["'classification/digit_cnn'", "classification/digits_cnn"]),
        (["run", "classification/cifar10_resnet21"], ["classification/cifar10_resnet20"]),
        (["run", DIGITS, "--loss", "reolss"], ["unknown loss of classification/digits_cnn 'reolss'", "reloss?"]),
        (["run", DIGITS, "--set", "train.epoch=3"], ["unknown config key 'train.epoch'; did you mean train.epochs?"]),
        (["run", DIGITS, "--set", "learn.steps=!!int x"], ["learn.steps", "valid integer", "'!!int x'"]),
        (["run", DIGITS, "--set", "data.name=x"], ["--set: data.name must be one of", "imagenet, not x"]),
        (
            ["run", DIGITS, "--set", "model.name=a\nb"],
            ["model.name holds a character that cannot be printed"],
        ),
        (["run", DIGITS, "--runs", "a\udc80"], ["'a\\udc80' is not UTF-8"]),
        (["run", DIGITS, "--set", "train.epochs=many"], ["train.epochs", "valid integer", "'many'"]),
        (["run", DIGITS, "--set", "train.precision=fp61"], ["'no', 'fp16' or 'bf16'"]),
        (["run", DIGITS, "--stage", "trian"], ["train"]),
        (["run", DIGITS, "--sed", "3"], ["--seed"]),
        (["run", DIGITS, "--seed", "one"], ["one"]),
        (["run", DIGITS, "--set", "model.name=resnet21"], ["unknown model 'resnet21'", "resnet20"]),
        (["table", "clasification"], ["unknown table 'clasification'", "did you mean classification"]),
        (["table", "correlations"], ["unknown table 'correlations'", "did you mean correlation"]),
        (["table", "nmt", "--format", "html"], ["md"]),
        (["report"], ["--out"]),
        (["sweep", DIGITS, "--seeds", "a-b"], ["0-4 or 0,2,5-7", "'a-b'"]),
        (["sweep", DIGITS, "--seeds", "0-999999999"], ["names more than 1000 seeds"]),
        (["sweep", DIGITS, "--losses", ","], ["--losses takes a list such as ce,reloss, not ','"]),
        (["status", "classification", "--runs", "nosuch"], ["no folder of records at nosuch; name it with --runs"]),
        (["forget", DIGITS, "--states", "faild"], ["unknown state 'faild'; did you mean failed?"]),
        (["data", "check", "cifar01"], ["unknown data set or experiment 'cifar01'", "cifar10"]),
        (["data", "fecth", "cifar10"], ["fetch"]),
        (["demo", "--seeds", "0"], ["--seeds must be at least 1"]),
    ],
)
def test_misspelt_words_get_the_nearest(cli, tmp_path, monkeypatch, words, messages):
    monkeypatch.chdir(tmp_path)
    code, out, err = cli(*words, *(["--track", "off"] if words[:1] == ["run"] else []))
    assert code == 2
    assert "Traceback" not in out + err
    for message in messages:
        assert message in " ".join((out + err).split())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [([], "{data}: run `reloss data fetch cifar10 --data {data}`"), (["data.format=folder"], "{data}/cifar10/train")],
)
def test_missing_data_names_the_expected_path(cli, tmp_path, settings, expected):
    data = tmp_path / "empty"
    words = ["--data", data, "--runs", tmp_path / "runs", "--track", "off"]
    code, out, err = cli("run", "classification/cifar10_resnet20", *words, *(["--set", *settings] if settings else []))
    assert code == 1
    assert out == ""
    assert expected.format(data=data) in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("debug", [False, True])
def test_an_unexpected_exception_is_one_line(cli, monkeypatch, debug):
    def examine(data):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("reloss.commands.doctor.examine", examine)
    monkeypatch.delenv("RELOSS_DEBUG", raising=False)
    if debug:
        monkeypatch.setenv("RELOSS_DEBUG", "1")
    code, out, err = cli("doctor")
    assert code == 1
    assert out == ""
    assert err.splitlines()[-1] == "reloss: ZeroDivisionError: by zero (RELOSS_DEBUG=1 shows where)"
    assert ("Traceback" in err) == debug
    assert (len(err.splitlines()) == 1) == (not debug)


class SomethingElse(Exception):
    """An error that nobody expected."""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("no such thing"), 2),
        (RelossError("no data"), 1),
        (SomethingElse(), 1),
        (KeyboardInterrupt(), 130),
        (BrokenPipeError(), 141),
        (Terminated(), 143),
    ],
)
def test_the_exit_code_tells_how_a_command_ended(error, code, monkeypatch):
    """The table in docs/usage.md."""

    def examine(data):
        raise error

    monkeypatch.setattr("reloss.commands.doctor.examine", examine)
    monkeypatch.setattr("os.dup2", lambda *descriptors: None)
    monkeypatch.setattr("sys.stdout", SimpleNamespace(fileno=lambda: 1, flush=lambda: None))
    with pytest.raises(SystemExit) as ended:
        main(["doctor"])
    assert ended.value.code == code


@pytest.mark.parametrize("words", [["status", DIGITS], ["sync"], ["table", "pose"], ["pack"], ["report", "--out", "x"]])
def test_an_error_of_the_operating_system_names_the_path(cli, words):
    runs = "a" * 300
    code, _, err = cli(*words, *([runs, "packed"] if words == ["pack"] else ["--runs", runs]))
    assert code == 1
    assert err == f"reloss: {runs}: File name too long; make it usable, or name another path\n"


def test_ctrl_c_reports_how_to_resume(cli, monkeypatch):
    def examine(data):
        raise KeyboardInterrupt

    monkeypatch.setattr("reloss.commands.doctor.examine", examine)
    code, _, err = cli("doctor")
    assert code == 130
    assert err == "reloss: interrupted; the same command resumes from the last checkpoint\n"


LEARN = ("--set", "steps=60", "items=16", "seed=1")


def test_learn_outside_any_task(cli, improving_bank, tmp_path):
    bank, out_folder = improving_bank(), tmp_path / "surrogate"
    words = ("learn", "--bank", bank.path, "--metric", "accuracy", "--out", out_folder, *LEARN)
    code, out, _ = cli(*words)
    assert code == 0
    fit = json.loads(out)
    card = json.loads((out_folder / "surrogate.json").read_text())
    assert card["fit"] == fit
    assert card["metric"] == "accuracy"
    assert card["bank"] == bank.fingerprint()
    assert (card["learn"]["steps"], card["learn"]["items"]) == (60, 16)
    assert fit["validation_items"] == 24
    assert fit["spearman"] > 0.9  # the bank goes from chance to good: 0.972 measured
    surrogate = ClassificationReLoss.from_pretrained(out_folder)
    good, bad = surrogate(5 * torch.eye(5), torch.arange(5)), surrogate(-5 * torch.eye(5), torch.arange(5))
    assert good < bad
    before = (out_folder / "surrogate.safetensors").stat().st_mtime_ns
    code, again, err = cli(*words)
    assert (code, json.loads(again)) == (0, card["fit"])
    assert f"already finished: {out_folder}" in err
    for other in (["--set", "learning_rate=0.02"], ["--kind", "set"], ["--metric", "macro_f1"]):
        code, _, err = cli(*words, *other)
        assert code == 2
        assert f"{out_folder} already holds a surrogate of another fit; choose another --out" in err
    assert (out_folder / "surrogate.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (["--metric", "acuracy"], 2, "unknown metric 'acuracy'; did you mean accuracy"),
        (
            ["--kind", "clasification"],
            2,
            "unknown kind of surrogate 'clasification'; did you mean classification?",
        ),
        (["--set", "step=3"], 2, "unknown config key 'step'; did you mean steps"),
        (["--bank", "nowhere"], 1, "no prediction bank at nowhere: record one with `reloss run"),
    ],
)
def test_learn_refuses(cli, tmp_path, change, code, message):
    PredictionBank.create(tmp_path / "bank")
    words = {"--bank": tmp_path / "bank", "--metric": "accuracy", "--out": tmp_path / "surrogate"}
    words |= {change[0]: change[1]}
    found, _, err = cli("learn", *(word for pair in words.items() for word in pair))
    assert found == code
    assert message in err
    assert not (tmp_path / "surrogate").exists()


def test_the_help_of_learn_names_every_option_of_the_fit(cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    code, out, _ = cli("learn", "--help")
    assert code == 0
    said = " ".join(line.strip("│ ") for line in out.splitlines())
    defaults = LearnOptions()
    for name, field in LearnOptions.model_fields.items():
        value = getattr(defaults, name)
        assert f"{name}={'null' if value is None else value}" in said
        assert " ".join(field.description.split()) in said
    assert "penalty=auto (auto, item, example, one_sided, off)" in said
    assert f"({', '.join(MIXTURES)})" in said


def test_learn_gives_the_same_surrogate_again(cli, improving_bank, tmp_path):
    bank = improving_bank()
    weights = []
    for name in "ab":
        torch.manual_seed(ord(name))
        code, _, _ = cli("learn", "--bank", bank.path, "--metric", "accuracy", "--out", tmp_path / name, *LEARN)
        assert code == 0
        weights.append((tmp_path / name / "surrogate.safetensors").read_bytes())
    assert weights[0] == weights[1]


METRIC = "def score(outputs, targets):\n    return (outputs.argmax(-1) == targets).float().mean(-1) * {factor}\n"


def test_learn_detects_what_a_finished_fit_no_longer_stands_for(cli, improving_bank, tmp_path, monkeypatch):
    module, out_folder = tmp_path / "some_metric.py", tmp_path / "surrogate"
    module.write_text(METRIC.format(factor=1))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # it would outlive an edit within one second
    bank = improving_bank(steps=40, item_size=8)
    words = ("learn", "--bank", bank.path, "--metric", "some_metric:score", "--out", out_folder)
    words += ("--set", "steps=2", "items=8", "pool=8")

    def learn():
        sys.modules.pop("some_metric", None)
        return cli(*words)

    assert learn()[0] == 0
    weights = out_folder / "surrogate.safetensors"
    learned = weights.read_bytes()
    assert "already finished" in learn()[2]

    module.write_text(METRIC.format(factor=2))
    code, _, err = learn()
    assert (code, "(different: code of the metric" in err) == (2, True)
    module.write_text(METRIC.format(factor=1))

    weights.unlink()
    code, _, err = learn()
    assert (code, "has lost its surrogate.safetensors; fitting again" in err) == (0, True)
    assert weights.read_bytes() == learned
    weights.write_bytes(learned[:-1])
    code, _, err = learn()
    assert code == 1
    assert f"is damaged: its checksum differs from the one in surrogate.json; remove {out_folder}" in err

    shutil.rmtree(bank.path)
    again = PredictionBank.create(bank.path, item_size=8)
    for step in range(40):
        again.append(torch.eye(8), torch.arange(8) % 5, step)
    again.finish()
    code, _, err = learn()
    assert (code, "(different: bank)" in err) == (2, True)


def test_learn_needs_enough_items(cli, improving_bank, tmp_path):
    bank = improving_bank(steps=3)
    code, _, err = cli("learn", "--bank", bank.path, "--metric", "accuracy", "--out", tmp_path / "surrogate", *LEARN)
    assert code == 1
    assert "holds 3 items, too few to learn from and to hold out 20%" in err


def test_data_check_digits(cli, tmp_path):
    for name in ("digits", DIGITS):
        code, out, _ = cli("data", "check", name, "--data", tmp_path)
        assert code == 0
        assert out == "digits: 1078 train, 270 validation, 449 test images of 10 classes\n"


def test_data_fetch_imagenet_says_the_layout(cli, tmp_path):
    code, _, err = cli("data", "fetch", "imagenet", "--data", tmp_path)
    assert code == 2
    assert "image-net.org" in err
    for split in ("train", "val"):
        assert f"{tmp_path}/imagenet/{split}/CLASS/*.JPEG" in err
    assert list(tmp_path.iterdir()) == []


def test_doctor(cli, tmp_path):
    code, out, _ = cli("doctor", "--json", "--data", tmp_path)
    found = json.loads(out)
    assert code == 0
    assert found.keys() == {"commit", "image", "versions", "devices", "tasks", "extras", "data", "wandb"}
    assert found["tasks"] == dict.fromkeys(tasks(), "installed")
    assert found["extras"] == dict.fromkeys(("report", "slurm", "tensorboard", "tracking"), "installed")
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert "not installed" not in found["versions"].values()
    images, persons = {"digits", "cifar10", "cifar100", "imagenet"}, {"coco", "lsp"}
    texts = {"multi30k", "iwslt14_de_en", "wmt14_en_de", "wmt16_en_ro"}
    questions = {"squad", "squad2", "cmrc2018", "drcd", "dureader_robust"}
    tables = set(KEEL_SETS.values())
    assert found["data"].keys() == images | {"noisy_digits"} | tables | persons | texts | questions
    assert found["data"]["digits"].startswith("digits: 1078 train")
    assert found["data"]["imagenet"].startswith("missing: ")
    assert found["data"]["squad"].startswith(f"missing: {tmp_path}")
    assert len(found["devices"]["gpus"]) == torch.cuda.device_count()
    assert "offline: WANDB_API_KEY is not set" in found["wandb"]
    code, out, _ = cli("doctor", "--data", tmp_path)
    assert code == 0
    assert found["versions"]["torch"] in out
    assert found["commit"] in out
    assert out.count("squad: ") == 1
    assert "digits: digits" not in out
    (shared,) = [line for line in out.splitlines() if "yeast5" in line]  # one line for all sets from one source
    assert "yeast4, yeast5, yeast6: missing: no " in shared
    assert "keel/NAME.dat" in shared


def test_doctor_never_prints_the_key(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "secret" * 7)
    _, out, err = cli("doctor", "--json", "--data", tmp_path)
    assert "online: WANDB_API_KEY is set" in json.loads(out)["wandb"]
    assert "secret" not in out + err


def test_table_without_records(cli, tmp_path):
    code, _, err = cli("table", "classification", "--runs", tmp_path / "runs")
    assert code == 2
    assert f"no folder of records at {tmp_path / 'runs'}; name it with --runs" in err


def test_a_reader_that_has_enough_is_no_failure():
    process = subprocess.Popen(
        [sys.executable, "-m", "reloss.cli", "list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141


@pytest.mark.parametrize("setting", ["output=identity", "input=probability"])
def test_learn_refuses_options_that_expected_features_lack(cli, improving_bank, tmp_path, setting):
    words = (
        "--kind",
        "classification",
        "--metric",
        "accuracy",
        "--bank",
        improving_bank().path,
        "--out",
        tmp_path / "out",
    )
    code, _, err = cli("learn", *words, "--set", "features=expected", setting)
    assert code == 2
    assert f"surrogate.{setting.partition('=')[0]} is an option of surrogate.features=likelihood" in err
