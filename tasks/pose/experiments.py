"""The experiments of pose estimation: each function returns one complete config."""

from collections.abc import Callable

from reloss.experiment.config import Recording, Scope, SurrogateSection
from reloss.learning.options import LearnOptions
from reloss.surrogates.options import Features
from reloss_tasks.pose.config import Data, Model, PoseExperiment, Train

TOPDOWN = "mmpose::body_2d_keypoint/topdown_heatmap/coco"
# Heatmaps have no classes, so items cannot be relabelled. A loss that is flat at 0 cannot have a slope of 1 there, so
# there is no penalty.
LEARN = LearnOptions(items=64, steps=300, penalty="off", mixture="shuffled")


def coco_res50_256x192() -> PoseExperiment:
    """COCO with SimpleBaseline (ResNet-50, 256x192), as mmpose trains it. Time and score are not measured.

    reloss run pose/coco_res50_256x192 --loss reloss --seed 0 --data DATA
    """
    return _coco(
        "coco_res50_256x192",
        "td-hm_res50_8xb64-210e_coco-256x192",
        batch_size=512,
        scope=Scope.EXTRA,
        scope_note="the verified numbers belong to HRNet on COCO",
    )


def coco_hrnet_w32_256x192() -> PoseExperiment:
    """COCO val with HRNet-W32 (256x192). The paper states 74.4 AP, and 74.8 with ReLoss; not measured here.

    reloss run pose/coco_hrnet_w32_256x192 --loss reloss --seed 0 --data DATA
    """
    return _coco(
        "coco_hrnet_w32_256x192",
        "td-hm_hrnet-w32_8xb64-210e_coco-256x192",
        batch_size=512,
        scope_note="COCO val, HRNet-W32 256x192",
    )


def coco_hrnet_w48_dark_384x288() -> PoseExperiment:
    """COCO with HRNet-W48 and DARK's unbiased coding (384x288).

    The paper states 76.2 AP on test-dev, and 76.4 with ReLoss. Time and score are not measured here. The score is that
    on val. For test-dev, upload the record's test-dev.keypoints.json to COCO's server; --set data.test_dev=false skips
    these predictions.

    reloss run pose/coco_hrnet_w48_dark_384x288 --loss reloss --seed 0 --data DATA
    """
    return _coco(
        "coco_hrnet_w48_dark_384x288",
        "td-hm_hrnet-w48_dark-8xb32-210e_coco-384x288",
        batch_size=256,
        scope_note="COCO test-dev, DARK HRNet-W48 384x288",
        test_dev=True,
    )


def lsp_resnet18() -> PoseExperiment:
    """Leeds Sports Pose, extended (14 joints), with ResNet-18 and images of 128x96: not in the paper.

    The score is PCK@0.2 relative to the torso, the distance between right shoulder and left hip. 100 training persons
    are held out. Training takes 40 epochs from scratch in bfloat16. Expect 9 to 15 minutes on one core, and PCK 25.7 %
    with loss mse (3 seeds); the mean pose has 3.6 %.

    reloss run pose/lsp_resnet18 --loss reloss --seed 0 --data DATA
    """
    return _lsp(
        "lsp_resnet18",
        "800 persons of LSP, ResNet-18 and 128x96 from scratch; the paper uses COCO",
        pretrained=False,
        train=Train(epochs=40, batch_size=16, lr=1e-3, validate_every=4, precision="bf16"),
        steps=150,
    )


def lsp_lite0() -> PoseExperiment:
    """Leeds Sports Pose, extended (14 joints), with a pretrained EfficientNet-Lite0 and images of 128x96.

    Not in the paper. Data and score are those of `lsp_resnet18`. The backbone starts from ImageNet weights, which are
    installed with the task. The baseline trains for 20 epochs. Compare losses after 20 more epochs from its weights
    (`--set train.init=baseline train.lr=3e-4`, for mse too). Expect 10 minutes for 20 epochs on one idle core, and with
    loss mse PCK 33 to 35 %, or 35 to 36 % after 20 more (first trials with 2 seeds). In bfloat16, depthwise
    convolutions take 10 times as long on many CPUs.

    reloss run pose/lsp_lite0 --loss reloss --seed 0 --data DATA
    """
    return _lsp(
        "lsp_lite0",
        "800 persons of LSP, EfficientNet-Lite0 and 128x96; the paper uses COCO",
        pretrained=True,
        train=Train(epochs=20, batch_size=16, lr=1e-3, validate_every=4),
        steps=300,
        features="expected",
    )


def _lsp(
    name: str,
    scope_note: str,
    *,
    pretrained: bool,
    train: Train,
    steps: int,
    features: Features = "likelihood",
) -> PoseExperiment:
    """Return what the experiments on Leeds Sports Pose share; the mmpose config is NAME_128x96.py."""
    return PoseExperiment(
        name=f"pose/{name}",
        scope=Scope.REDUCED,
        scope_note=scope_note,
        score="PCK",
        data=Data(name="lsp", held_out=100, boxes="annotated", workers=0),
        model=Model(config=f"{name}_128x96.py", pretrained=pretrained),
        train=train,
        recording=Recording(item_size=32, examples=100, max_bytes=256 << 20),
        surrogate=SurrogateSection(features=features),
        learn=LEARN.model_copy(update={"items": 32, "steps": steps}),
    )


def _coco(
    name: str, config: str, batch_size: int, scope_note: str, scope: Scope = Scope.PAPER, test_dev: bool = False
) -> PoseExperiment:
    """Return mmpose's recipe: 210 epochs of Adam, lr 5e-4, a pretrained backbone, test persons from a detector."""
    return PoseExperiment(
        name=f"pose/{name}",
        scope=scope,
        scope_note=scope_note,
        score="AP",
        data=Data(name="coco", boxes="detector", test_dev=test_dev),
        model=Model(config=f"{TOPDOWN}/{config}.py", pretrained=True),
        train=Train(epochs=210, batch_size=batch_size, lr=5e-4),
        recording=Recording(item_size=32, examples=64, max_bytes=8 << 30),
        learn=LEARN,
    )


EXPERIMENTS: dict[str, Callable[[], PoseExperiment]] = {
    f"pose/{make.__name__}": make
    for make in (coco_res50_256x192, coco_hrnet_w32_256x192, coco_hrnet_w48_dark_384x288, lsp_resnet18, lsp_lite0)
}
