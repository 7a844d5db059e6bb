"""The typed config of image classification. Imports no torch."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from reloss.experiment.config import Experiment, Section
from reloss.learning.options import LearnOptions
from reloss.runtime.files import short_hash


class Data(Section):
    """Which images, and how many of them."""

    name: Literal["digits", "cifar10", "cifar100", "imagenet"]
    format: Literal["sklearn", "torchvision", "folder"] = Field(
        description="torchvision: as it downloads them; folder: NAME/{train,test or val}/<class>/*; sklearn: the digits"
    )
    image_size: int = Field(ge=8, description="pixels a side, after cropping")
    per_class: int | None = Field(None, ge=1, description="training images a class; all by default")
    test_per_class: int | None = Field(None, ge=1)
    validation_fraction: float = Field(
        0.0, ge=0, lt=1, description="of the training images, held out; with 0 the curve is that of the test images"
    )
    positive_class: int | None = Field(None, ge=0, description="this class against the rest: targets become 0 or 1")
    negatives_per_positive: int | None = Field(
        None,
        ge=1,
        description="of a positive class, images are left out everywhere until there are so many of the rest",
    )
    workers: int = Field(4, ge=0, description="processes that load images")

    @model_validator(mode="after")
    def _thins_a_positive_class(self) -> Self:
        if self.negatives_per_positive is not None and self.positive_class is None:
            raise ValueError("data.negatives_per_positive goes with data.positive_class")
        return self


class Model(Section):
    """Which network. Of a positive class, it has one output: the logit."""

    name: str = Field(
        description="digits_cnn, cifar_cnn, resnet20, resnet32, resnet56 (CIFAR's), or a name of torchvision's"
    )


class Train(Section):
    """The recipe."""

    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1, description="of all processes together")
    lr: float = Field(gt=0)
    momentum: float = Field(0.9, ge=0)
    weight_decay: float = Field(ge=0)
    schedule: Literal["cosine", "step"] = "cosine"
    milestones: tuple[int, ...] = Field((), description="epochs after which schedule step multiplies lr by gamma")
    gamma: float = 0.1
    warmup_epochs: int = Field(0, ge=0)
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="of the loss of that name")
    focal_gamma: float = Field(2.0, ge=0, description="of the loss focal")
    focal_alpha: float = Field(0.25, ge=0, le=1, description="weight of the positive class in the loss focal")
    ap_temperature: float = Field(0.5, gt=0, description="of the comparisons in the loss smooth_ap")
    ordinary_weight: float = Field(0.0, ge=0, description="cross-entropy added to a learned loss, times this")
    init: Literal["scratch", "baseline"] = Field("scratch", description="baseline: fine-tune its weights of this seed")
    precision: Literal["no", "fp16", "bf16"] = "no"
    clip_norm: float | None = Field(None, gt=0)


class ClassificationExperiment(Experiment):
    """An experiment of image classification."""

    TUNED: ClassVar[tuple[str, ...]] = (
        "metric",  # several may teach losses that are compared with one baseline
        "train.lr",
        "train.init",
        "train.ordinary_weight",
    )

    score: str = "accuracy"
    metric: str = "accuracy"
    ordinary_loss: str = "ce"
    losses: tuple[str, ...] = ("ce", "label_smoothing", "approx", "reloss")
    data: Data
    model: Model
    train: Train
    learn: LearnOptions = LearnOptions()

    def protocol(self) -> str:
        """Return a hash of data, model and recipe but for what may be tuned for each loss."""
        return short_hash([self.data.model_dump(), self.model.model_dump(), self.recipe()])
