import json
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from mmpose.registry import MODELS

from reloss.experiment.settings import override
from reloss.experiment.task import tasks
from reloss.runtime.errors import RelossError, Unavailable, UsageError
from reloss_tasks.pose.config import Model
from reloss_tasks.pose.data import check
from reloss_tasks.pose.runner import make_config
from reloss_tasks.pose.training import _naming_missing_weights

TASK = tasks()["pose"]
ANNOTATED = ("data.boxes=annotated",)


@pytest.mark.parametrize(
    ("name", "joints", "size"),
    [
        ("coco_res50_256x192", 17, (64, 48)),
        ("coco_hrnet_w32_256x192", 17, (64, 48)),
        ("coco_hrnet_w48_dark_384x288", 17, (96, 72)),
        ("lsp_resnet18", 14, (32, 24)),
        ("lsp_lite0", 14, (32, 24)),
    ],
)
def test_every_config_builds_a_network_with_its_heatmap_size(persons, name, joints, size):
    config = override(TASK.experiments[f"pose/{name}"](), ["model.pretrained=false", "data.held_out=0"])
    assert config.surrogate_shape == (1, *size)
    mm_config = make_config(config, persons)
    model = MODELS.build(mm_config.model).eval()
    with torch.inference_mode():
        heatmaps = model.head(model.extract_feat(torch.zeros(1, 3, 4 * size[0], 4 * size[1])))
    assert heatmaps.shape == (1, joints, *size)
    assert mm_config.model.head.loss.type == "KeypointMSELoss"
    assert TASK.new_surrogate(override(config, ["surrogate.features=likelihood"])).size == size


@pytest.mark.parametrize("name", ["coco_res50_256x192", "coco_hrnet_w32_256x192", "coco_hrnet_w48_dark_384x288"])
def test_the_defaults_are_the_recipe_of_mmpose(persons, name):
    config = TASK.experiments[f"pose/{name}"]()
    mm_config = make_config(config, persons)
    assert (
        mm_config.train_dataloader.batch_size == mm_config.auto_scale_lr.base_batch_size if "w48" not in name else 256
    )
    assert (mm_config.train_cfg.max_epochs, mm_config.optim_wrapper.optimizer.lr) == (210, 5e-4)
    assert mm_config.param_scheduler[1].milestones == [170, 200]
    assert mm_config.model.backbone.init_cfg.type == "Pretrained"
    assert mm_config.test_dataloader.dataset.bbox_file == str(
        persons / "coco/person_detection_results/COCO_val2017_detections_AP_H_56_person.json"
    )
    assert mm_config.test_evaluator.ann_file == str(persons / "coco/annotations/person_keypoints_val2017.json")


def test_settings_change_mmposes_config(persons):
    settings = ("train.epochs=42", "train.lr=0.002", "train.batch_size=16", "train.precision=bf16", "data.workers=1")
    mm_config = make_config(override(TASK.experiments["pose/coco_res50_256x192"](), [*settings, *ANNOTATED]), persons)
    assert (mm_config.train_cfg.max_epochs, mm_config.train_cfg.val_interval) == (42, 10)
    assert (mm_config.param_scheduler[1].end, mm_config.param_scheduler[1].milestones) == (42, [34, 40])
    assert mm_config.optim_wrapper == {"optimizer": {"type": "Adam", "lr": 0.002}}  # bf16 does not go through mmengine
    assert mm_config.train_dataloader.batch_size == 16
    assert {mm_config[name].num_workers for name in ("train_dataloader", "val_dataloader", "test_dataloader")} == {1}
    assert mm_config.test_dataloader.dataset.bbox_file is None


def test_held_out_persons_are_not_trained_on(persons):
    config = TASK.experiments["pose/lsp_resnet18"]()
    mm_config = make_config(override(config, ["data.held_out=5"]), persons)
    trained, validated, tested = (mm_config[f"{name}_dataloader"].dataset for name in ("train", "val", "test"))
    assert (trained.indices, validated.indices) == (list(range(7)), list(range(7, 12)))
    assert trained.ann_file == validated.ann_file == "annotations/lsp_train.json"
    assert tested.ann_file == "annotations/lsp_val.json"
    assert "indices" not in tested
    with pytest.raises(UsageError, match="leaves none of 12 persons"):
        make_config(override(config, ["data.held_out=12"]), persons)


def test_unsupported_settings_are_named(persons):
    config = TASK.experiments["pose/lsp_resnet18"]()
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="fp16 needs a GPU"):
            make_config(override(config, ["data.held_out=0", "train.precision=fp16"]), persons)
    for name in ("lsp_resnet19.py", "mmpose::body_2d_keypoint/nothing.py"):
        with pytest.raises(UsageError, match=f"no mmpose config {name}"):
            make_config(override(config, [f"model.config={name}"]), persons)
    name = "mmpose::body_2d_keypoint/simcc/coco/simcc_res50_8xb64-210e_coco-256x192.py"
    with pytest.raises(UsageError, match="has no heatmaps"):
        make_config(override(config, [f"model.config={name}"]), persons)


def test_pretrained_weights_that_cannot_be_downloaded_are_named():
    with (
        pytest.raises(
            Unavailable, match=r"weights of a.py cannot be downloaded \(no network\).*model.pretrained=false"
        ),
        _naming_missing_weights(Model(config="a.py", pretrained=True)),
    ):
        raise URLError("no network")


def test_data_are_described_and_missing_files_are_named(persons, tmp_path):
    lsp, coco = (TASK.experiments[f"pose/{name}"]().data for name in ("lsp_resnet18", "coco_res50_256x192"))
    assert check(lsp, persons).endswith("12 images with 12 persons for training, 4 images with 4 persons for test")
    with pytest.raises(RelossError, match=r"boxes .*AP_H_56_person.json are missing.*data.boxes=annotated"):
        check(coco, persons)
    with pytest.raises(RelossError, match=f"{tmp_path}/lsp/annotations/lsp_train.json is missing"):
        check(lsp, tmp_path)
    (tmp_path / "lsp").symlink_to(persons / "lsp")
    labels = json.loads((persons / "lsp/annotations/lsp_val.json").read_text())
    labels["images"][1]["file_name"] = "gone.png"
    (tmp_path / "lsp").unlink()
    for part in ("images", "annotations"):
        (tmp_path / "lsp").mkdir(exist_ok=True)
        (tmp_path / "lsp" / part).mkdir()
    for path in (persons / "lsp/images").iterdir():
        (tmp_path / "lsp/images" / path.name).symlink_to(path)
    Path(tmp_path / "lsp/annotations/lsp_train.json").symlink_to(persons / "lsp/annotations/lsp_train.json")
    (tmp_path / "lsp/annotations/lsp_val.json").write_text(json.dumps(labels))
    with pytest.raises(RelossError, match=r"1 of 4 images of .*lsp_val.json are missing in .*, such as gone.png"):
        check(lsp, tmp_path)
