"""The typed config of pose estimation: what differs between experiments. Imports no torch.

Networks, codecs, augmentation and schedules are mmpose's, in the config file that `model.config` names.
"""

from typing import ClassVar, Literal

from pydantic import Field

from reloss.experiment.config import Experiment, Section
from reloss.learning.options import LearnOptions
from reloss.runtime.files import short_hash


class Data(Section):
    """Which persons."""

    name: Literal["coco", "lsp"]
    held_out: int = Field(
        0, ge=0, description="training persons, the last ones, that are validated on; with 0 the curve is the test's"
    )
    boxes: Literal["detector", "annotated"] = Field(
        description="of the persons to test on: from a detector's file (COCO's protocol), or as annotated"
    )
    test_dev: bool = Field(False, description="predict COCO's test-dev images too, for its server to score")
    workers: int = Field(4, ge=0, description="processes that load images")


class Model(Section):
    """Which network, by mmpose's config."""

    config: str = Field(description="a file in tasks/pose/configs, or one that mmpose ships, as mmpose::<path>")
    pretrained: bool = Field(description="start from the backbone's weights that the config downloads")


class Train(Section):
    """The recipe; what is not here is the mmpose config's own."""

    epochs: int = Field(ge=1, description="the config's milestones are moved in proportion")
    batch_size: int = Field(ge=1, description="of all processes together")
    lr: float = Field(gt=0)
    validate_every: int = Field(10, ge=1, description="epochs")
    ordinary_weight: float = Field(0.0, ge=0, description="mean squared error added to a learned loss, times this")
    init: Literal["scratch", "baseline"] = Field("scratch", description="baseline: fine-tune its weights of this seed")
    precision: Literal["no", "fp16", "bf16"] = "no"


class PoseExperiment(Experiment):
    """An experiment of pose estimation."""

    TUNED: ClassVar[tuple[str, ...]] = ("metric", "train.lr", "train.init", "train.ordinary_weight")

    metric: str = "heatmap_pck"
    ordinary_loss: str = "mse"
    losses: tuple[str, ...] = ("mse", "ohkm", "approx", "reloss")
    data: Data
    model: Model
    train: Train
    learn: LearnOptions = LearnOptions()

    def protocol(self) -> str:
        """Return a hash of data, model and recipe but for what may be tuned for each loss."""
        return short_hash(
            [self.data.model_dump(exclude={"workers", "test_dev"}), self.model.model_dump(), self.recipe()]
        )
