"""The typed config of the toy task. Imports no torch."""

from pydantic import Field

from reloss.experiment.config import DataSection, Experiment, Section, TrainSection


class Data(DataSection):
    """Which points."""

    distance: float = Field(gt=0, description="distance between neighbouring class centres, in standard deviations")
    examples: int = Field(ge=8, description="number of points in each of the three splits")


class Model(Section):
    """Which network."""

    classes: int = Field(ge=2, description="number of classes, hence of outputs")


class Train(TrainSection):
    """The recipe: plain SGD."""

    epochs: int = Field(ge=1, description="number of epochs")
    batch_size: int = Field(ge=1, description="points in a batch")


class ToyExperiment(Experiment):
    """An experiment of the toy task."""

    score: str = "accuracy"
    metric: str = "accuracy"
    ordinary_loss: str = "ce"
    losses: tuple[str, ...] = ("ce", "approx", "reloss")
    data: Data
    model: Model
    train: Train

    @property
    def surrogate_kind(self) -> str:
        """The kind of surrogate for class logits."""
        return "classification"
