"""The typed config of pose estimation: what differs between experiments. Imports no torch.

Networks, codecs, augmentation and schedules come from the mmpose config file that `model.config` names.
"""

from typing import ClassVar, Literal

from pydantic import Field

from reloss.experiment.config import DataSection, Experiment, Section, TrainSection
from reloss.surrogates.options import kind_for


class Data(DataSection):
    """Which persons."""

    name: Literal["coco", "lsp"]
    held_out: int = Field(
        0, ge=0, description="number of training persons, the last ones, to validate on; 0: the test set"
    )
    boxes: Literal["detector", "annotated"] = Field(
        description="boxes of the test persons: from a detector's file (COCO's protocol), or as annotated"
    )
    test_dev: bool = Field(False, description="predict COCO's test-dev images too, for its server to score")
    workers: int = Field(4, ge=0, description="number of processes that load images")


class Model(Section):
    """Which network, by its mmpose config."""

    config: str = Field(description="file in tasks/pose/configs, or a config that mmpose ships, as mmpose::<path>")
    pretrained: bool = Field(description="start from the pretrained backbone weights that the config names")


class Train(TrainSection):
    """The recipe; everything else is the mmpose config's own."""

    DURATIONS: ClassVar[tuple[str, ...]] = ("epochs",)

    epochs: int = Field(ge=1, description="number of epochs; the config's milestones move in proportion")
    batch_size: int = Field(ge=1, description="persons in a batch, over all processes together")
    validate_every: int = Field(10, ge=1, description="epochs between two validations")


class PoseExperiment(Experiment):
    """An experiment of pose estimation."""

    OUTSIDE_PROTOCOL: ClassVar[tuple[str, ...]] = ("data.workers", "data.test_dev")

    metric: str = "heatmap_pck"
    ordinary_loss: str = "mse"
    losses: tuple[str, ...] = ("mse", "ohkm", "location_ce", "approx", "expected", "reloss")
    data: Data
    model: Model
    train: Train

    @property
    def surrogate_kind(self) -> str:
        """`pose` for heatmaps; `pose_ranking` for COCO's average precision, which ranks persons by confidence."""
        return kind_for("pose", self.metric)

    @property
    def surrogate_shape(self) -> tuple[int, ...]:
        """Shape of one joint's heatmap, [1, height, width], from the mmpose config."""
        from reloss_tasks.pose.mmpose_configs import heatmap_size

        return (1, *heatmap_size(self.model.config))
