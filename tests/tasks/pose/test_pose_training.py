import json
import shutil

import pytest
import torch
from logged import check_logged
from PIL import Image
from processes import recorders
from safetensors.torch import load_file
from small import run_small

from reloss.experiment.metrics_log import read_metrics
from reloss.experiment.predictions import read_predictions
from reloss.learning import PredictionBank
from reloss.metrics import heatmap_pck
from reloss.runtime.errors import RelossError, UsageError
from reloss.runtime.files import read_json
from reloss.surrogates import PoseReLoss
from reloss_tasks.pose import hooks, pictures, training
from reloss_tasks.pose.hooks import RecordHook


def metrics(record):
    return [{**entry, "seconds": None} for entry in read_metrics(record / "metrics.jsonl")]


def weights(record):
    return load_file(record / "checkpoint" / "weights.safetensors")


def test_a_run_with_an_unknown_config_leaves_no_record(run_lsp, tmp_path):
    with pytest.raises(UsageError, match=r"no mmpose config lsp_resnet19.py"):
        run_lsp("mse", "model.config=lsp_resnet19.py")
    assert not list((tmp_path / "runs").rglob("summary.json"))


def test_the_whole_pipeline(run_lsp, tmp_path):
    record = run_lsp("reloss")
    home = tmp_path / "runs" / "pose" / "lsp_resnet18"
    (baseline,) = home.glob("mse@*/seed0")
    for folder in (baseline, record):
        summary = read_json(folder / "summary.json")
        assert summary["status"] == "finished"
        assert summary["scores"].keys() == {"PCK", "validation_PCK", "mean_pose_PCK"}
        assert all(0 <= value <= 1 for value in summary["scores"].values())
        first, second, *rest = metrics(folder)
        assert (first["epoch"], first["step"], first["train_loss"] > 0) == (1, 2, True)
        assert first["train_loss_kpt"] == first["train_loss"]  # measurements of mmpose are logged too
        assert 0 <= first["train_acc_pose"] <= 1
        assert (second["epoch"], second["step"], second.keys() - {"seconds"}) == (
            *(1, 2),
            {"step", "epoch", "train_loss", "validation_PCK"},
        )
        assert second["train_loss"] == first["train_loss"]  # for the panel of one against the other
        assert [entry["epoch"] for entry in rest] == [2, 2]
        assert rest[-1]["validation_PCK"] == pytest.approx(summary["scores"]["validation_PCK"])
        assert not any("surrogate" in name or "loss" in name for name in weights(folder))
        check_logged(folder)
    bank = PredictionBank.open(home / "bank")
    outputs, targets = bank.items(torch.arange(len(bank)))
    assert outputs.shape == targets.shape == (8, 2, 14, 32, 24)  # 2 epochs of 8 persons, 2 in an item
    hidden = targets.amax((-2, -1)) == 0
    assert 0 < hidden.sum() < hidden.numel() / 2
    assert read_json(record / "environment.json")["versions"]["xtcocotools"] == "1.14.3"
    surrogate = PoseReLoss.from_pretrained(home / read_json(record / "summary.json")["surrogate"]["folder"])
    assert surrogate.size == (32, 24)


def test_validation_predictions_come_from_the_network(run_lsp):
    record = run_lsp()
    outputs, targets = read_predictions(record)
    assert outputs.shape == targets.shape == (2, 4, 14, 32, 24)
    assert torch.equal(targets[0], targets[1])
    assert not torch.equal(outputs[0], outputs[1])
    assert heatmap_pck(targets, targets).tolist() == [1, 1]


@pytest.mark.parametrize("when", ["in an epoch", "before a validation"])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(run_lsp, tmp_path, monkeypatch, when):
    whole = run_lsp(runs=tmp_path / "whole")
    begin = RecordHook.before_train_epoch

    def interrupted(self, runner):
        if runner.epoch == 1:
            self.run.record.log(99, epoch=99)
            raise KeyboardInterrupt
        begin(self, runner)

    def stopped(self, runner, metrics=None):
        raise KeyboardInterrupt

    patch = {"in an epoch": ("before_train_epoch", interrupted), "before a validation": ("after_val_epoch", stopped)}
    with monkeypatch.context() as patched:
        patched.setattr(RecordHook, *patch[when])
        with pytest.raises(KeyboardInterrupt):
            run_lsp()
    (record,) = (tmp_path / "runs" / "pose" / "lsp_resnet18").glob("mse@*/seed0")
    assert read_json(record / "summary.json")["status"] == "interrupted"
    assert run_lsp() == record
    assert metrics(record) == metrics(whole)
    assert weights(record).keys() == weights(whole).keys()
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(record).items())
    banks = [PredictionBank.open(folder.parents[1] / "bank") for folder in (record, whole)]
    assert len(banks[0]) == len(banks[1]) == 8
    for ours, theirs in zip(*(bank.items(torch.arange(8)) for bank in banks), strict=True):
        assert torch.equal(ours, theirs)
    kept = sorted(path.name for path in (record / "checkpoint").rglob("*.pth"))
    assert kept == ["epoch_1.pth", "epoch_2.pth"]


@pytest.mark.slow
def test_learned_weights_resume(run_lsp, tmp_path, monkeypatch):
    settings = ("expected", "train.ordinary_weight=learned", "train.init=baseline")
    whole = run_lsp(*settings, runs=tmp_path / "whole")
    begin = RecordHook.before_train_epoch

    def interrupted(self, runner):
        if runner.epoch == 1 and self.run.loss == "expected":
            raise KeyboardInterrupt
        begin(self, runner)

    with monkeypatch.context() as patched:
        patched.setattr(RecordHook, "before_train_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_lsp(*settings)
    record = run_lsp(*settings)
    assert metrics(record) == metrics(whole)
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(record).items())
    assert not any("uncertainty" in name for name in weights(record))
    logged = [entry["ordinary_weight"] for entry in metrics(record) if "ordinary_weight" in entry]
    assert len(set(logged)) == 2


def test_a_missing_bank_is_recorded_again(run_lsp):
    record = run_lsp()
    bank = record.parents[1] / "bank"
    before = PredictionBank.open(bank).items(torch.arange(8))
    shutil.rmtree(bank)
    kept = weights(record)
    assert run_lsp() == record
    again = PredictionBank.open(bank)
    assert again.meta["complete"]
    assert all(torch.equal(*pair) for pair in zip(again.items(torch.arange(8)), before, strict=True))
    assert all(torch.equal(value, kept[name]) for name, value in weights(record).items())


def test_a_damaged_checkpoint_is_named(run_lsp, tmp_path):
    record = run_lsp("mse", "train.epochs=1")
    (checkpoint,) = (record / "checkpoint").rglob("*.pth")
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(RelossError, match=r"epoch_1.pth is damaged; remove .*last_checkpoint to train .* scratch"):
        training._has_checkpoint(record)


def test_the_checkpoint_before_a_damaged_one_is_used(run_lsp, capsys):
    record = run_lsp("mse", "train.epochs=2", "train.validate_every=1")
    kept, entries = weights(record), metrics(record)
    (last,) = (record / "checkpoint").rglob("epoch_2.pth")
    last.write_bytes(last.read_bytes()[:1000])
    (record / "summary.json").unlink()
    run_lsp("mse", "train.epochs=2", "train.validate_every=1")
    output = capsys.readouterr().err
    assert f"checkpoint {last} is damaged" in output
    assert "resuming from epoch 1/2" in output
    assert metrics(record) == entries
    assert all(torch.equal(value, kept[name]) for name, value in weights(record).items())


def test_the_checkpoint_before_one_whose_metrics_are_lost_is_used(run_lsp):
    record = run_lsp()
    kept, entries = weights(record), metrics(record)
    path = record / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2]) + lines[2][:20])  # of two epochs, each with its validation
    (record / "summary.json").unlink()
    assert run_lsp() == record
    assert metrics(record) == entries
    assert all(torch.equal(value, kept[name]) for name, value in weights(record).items())
    path.write_text("")
    (record / "summary.json").unlink()
    with pytest.raises(RelossError, match=r"metrics.jsonl has no line of epoch 1, but the checkpoint is from epoch 2"):
        run_lsp()


def test_seeds_differ(run_lsp):
    first, second = (run_lsp(seed=seed) for seed in (0, 1))
    assert metrics(first)[0]["train_loss"] != metrics(second)[0]["train_loss"]


def test_bfloat16_trains_on_a_cpu(run_lsp):
    whole, half = (run_lsp("mse", "train.epochs=1", f"train.precision={name}") for name in ("no", "bf16"))
    (exact, *_), (rounded, *_) = metrics(whole), metrics(half)
    assert rounded["train_loss"] != exact["train_loss"]
    assert rounded["train_loss"] == pytest.approx(exact["train_loss"], rel=0.01)
    assert all(value.dtype != torch.bfloat16 for value in weights(half).values())


@pytest.mark.slow
def test_two_processes_measure_what_one_process_measures(persons, narrow, tmp_path, finish):
    settings = (
        narrow,
        "train.precision=no",
        "train.epochs=2",
        "train.batch_size=4",
        "train.validate_every=1",
        "data.held_out=4",
    )
    learn = ("recording.item_size=2", "learn.steps=4", "learn.items=2", "learn.validation_fraction=0.5")
    homes = [tmp_path / name / "pose" / "lsp_resnet18" for name in ("one", "two")]
    for home, processes in zip(homes, (1, 2), strict=True):
        where = ("--data", persons, "--runs", home.parents[1], "--track", "off")
        words = ("run", "pose/lsp_resnet18", "--loss", "reloss", *where, "--set", *settings, *learn)
        finish(*words, processes=processes)
    for loss in ("mse", "reloss"):
        one, two = (next(home.glob(f"{loss}@*/seed0")) for home in homes)
        assert [entry["epoch"] for entry in metrics(two)] == [1, 1, 2, 2]
        # Each step trains on other persons, with other augmentation.
        assert metrics(two)[0]["train_loss"] == pytest.approx(metrics(one)[0]["train_loss"], rel=0.1)
        ours, theirs = (read_json(folder / "summary.json")["scores"] for folder in (two, one))
        assert ours == pytest.approx(theirs, abs=0.1)
    banks = [PredictionBank.open(home / "bank") for home in homes]
    assert [bank.steps().bincount().tolist() for bank in banks] == [[2] * 4, [2] * 4]
    assert recorders(homes[1]) == [0, 1]
    (record,) = homes[0].glob("reloss@*/seed0")
    scores = read_json(record / "summary.json")["scores"]
    where = ("--data", persons, "--runs", homes[0].parents[1], "--track", "off", "--stage", "evaluate")
    finish("run", "pose/lsp_resnet18", "--loss", "reloss", *where, "--set", *settings, *learn, processes=2)
    assert read_json(record / "summary.json")["scores"] == pytest.approx(scores, abs=1e-6)


def test_logged_metrics_are_the_mean_over_the_processes(run_lsp, tmp_path, monkeypatch):
    (alone, _) = metrics(run_lsp("mse", "train.epochs=1", runs=tmp_path / "alone", stage="baseline"))

    def all_reduce(value, op):
        """The mean with another process, whose values are all 3."""
        assert op == "mean"
        value.add_(3).div_(2)

    monkeypatch.setattr(hooks, "all_reduce", all_reduce)
    (of_two, _) = metrics(run_lsp("mse", "train.epochs=1", runs=tmp_path / "two", stage="baseline"))
    measured = [name for name in alone if name.startswith("train_")]
    assert len(measured) >= 3
    for name in measured:
        assert of_two[name] == pytest.approx((alone[name] + 3) / 2, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["ohkm", "location_ce", "approx"])
def test_other_losses_train(run_lsp, loss):
    summary = read_json(run_lsp(loss, "train.epochs=1") / "summary.json")
    assert summary["status"] == "finished"


def test_fine_tuning_starts_from_the_baseline(run_lsp):
    tuned = run_lsp("reloss", "train.init=baseline", "train.lr=1e-12", "train.epochs=1")
    (baseline,) = (tuned.parents[1]).glob("mse@*/seed0")
    start, end = weights(baseline), weights(tuned)
    trained = [name for name in start if name.endswith(("conv1.weight", "final_layer.weight"))]
    assert trained
    for name in trained:
        assert (start[name] - end[name]).abs().max() < 1e-9


@pytest.mark.parametrize(
    ("loss", "settings"),
    [
        ("expected", ()),
        pytest.param("reloss", ("surrogate.features=expected", "train.ordinary_weight=1"), marks=pytest.mark.slow),
    ],
)
def test_losses_over_expected_hits_train(run_lsp, loss, settings):
    record = run_lsp(loss, "train.init=baseline", *settings)
    summary = read_json(record / "summary.json")
    card = read_json(record.parents[1] / summary["surrogate"]["folder"] / "surrogate.json")
    assert (summary["status"], card["class"], card["features"]) == ("finished", "ExpectedPose", "expected")
    assert card["options"]["metric"] == ("heatmap_pck" if loss == "expected" else None)


def test_a_loss_that_is_not_finite_stops_the_run(run_lsp, tmp_path):
    with pytest.raises(RelossError, match=r"the loss of step \d+ is not finite: training diverged"):
        run_lsp("ohkm", "train.lr=1e30")
    (record,) = (tmp_path / "runs" / "pose" / "lsp_resnet18").glob("ohkm@*/seed0")
    assert read_json(record / "summary.json")["status"] == "failed"


def test_standard_output_is_only_the_record(persons, narrow, tmp_path, cli):
    words = ("--data", persons, "--runs", tmp_path, "--track", "off", "--set", narrow, "train.epochs=1")
    settings = ("data.held_out=4", "recording.item_size=2", "train.batch_size=4")
    code, out, err = cli("run", "pose/lsp_resnet18", *words, *settings)
    assert code == 0, err
    assert out.splitlines() == [str(next((tmp_path / "pose" / "lsp_resnet18").glob("mse@*/seed0")))]
    assert "epoch 1/1: loss" in err


@pytest.mark.slow
def test_coco_end_to_end_with_cocos_evaluation(persons, tmp_path, capfd):
    settings = (
        *("model.pretrained=false", "data.boxes=annotated", "data.workers=0", "train.epochs=1"),
        *("train.batch_size=4", "train.validate_every=1", "recording.item_size=2", "data.test_dev=true"),
    )
    record = run_small("pose/coco_res50_256x192", "mse", settings, data=persons, runs=tmp_path)
    scores = json.loads((record / "summary.json").read_text())["scores"]
    assert {"AP", "AP_50", "AP_75", "AP_(M)", "AP_(L)", "AR"} <= scores.keys()
    assert 0 <= scores["AP"] <= 1
    check_logged(record)
    assert "Average Precision  (AP) @[ IoU=0.50:0.95" in capfd.readouterr().err
    submission = read_json(record / "test-dev.keypoints.json")
    images = read_json(persons / "coco/annotations/image_info_test-dev2017.json")["images"]
    assert sorted(person["image_id"] for person in submission) == [image["id"] for image in images]
    for person in submission:
        assert person.keys() >= {"image_id", "category_id", "keypoints", "score"}
        assert len(person["keypoints"]) == 3 * 17


def test_persons_are_drawn_next_to_those_of_the_baseline(run_lsp, monkeypatch):
    drawn = []
    draw = pictures._draw
    monkeypatch.setattr(pictures, "_draw", lambda *arguments: (drawn.append(arguments), draw(*arguments)))
    record = run_lsp("reloss", "train.epochs=1")
    with Image.open(record / "persons.png") as image:
        assert image.info["Description"] == "Validation persons with their joints: truth, mse, reloss"
    _, (images, columns, visible, _, path) = drawn  # the first call is the baseline's
    assert path == record / "persons.png"
    assert list(columns) == ["truth", "mse", "reloss"]
    outputs, targets = read_predictions(record)
    assert torch.equal(columns["truth"], targets[-1])
    assert torch.equal(columns["reloss"], outputs[-1])
    assert not torch.equal(columns["mse"], columns["reloss"])
    assert images.shape == (4, 3, 128, 96)
    assert visible.sum() == (targets[-1].amax((-2, -1)) > 0).sum()
    # Each true joint has a disc in its own colour: (255, 0, 128) in RGB for the first joint.
    x, y = (pictures.decode_heatmaps(targets[-1])[0, 0] * 4).round().long().tolist()
    red, green, _ = images[0, :, y, x].flip(0)
    assert int(red) - int(green) > 60
    # A damaged baseline is skipped and does not stop the run.
    (predictions,) = record.parents[1].glob("mse@*/seed0/predictions/0001.safetensors")
    predictions.write_bytes(b"")
    shutil.rmtree(record)
    with Image.open(run_lsp("reloss", "train.epochs=1") / "persons.png") as image:
        assert image.info["Description"] == "Validation persons with their joints: truth, reloss"
