"""The typed config of machine translation: what differs between experiments. Imports no torch.

Models, optimisation and decoding are fairseq's; `arguments.py` turns a config into fairseq's arguments.
"""

import re
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from reloss.experiment.config import DataSection, Experiment, Recording, RequiredRun, Section, TrainSection

RECORD_NAME = re.compile(r"(\w+/\w+)/(\w+)/seed(\d+)")


class Data(DataSection):
    """Which sentence pairs, and their subwords."""

    name: str = Field(description="folder of DATA that holds {train,valid,test}.{source,target}, one sentence per line")
    source: str = Field(description="source language, the ending of its files")
    target: str = Field(description="target language, the ending of its files")
    subwords: int = Field(ge=8, description="size of the sentencepiece BPE vocabulary, learned on both languages")
    lowercase: bool = Field(False, description="lower-case all texts, and score without regard to case")
    distilled: bool = Field(False, description="train on a teacher's translations instead of the references")
    teacher: str = Field("", description="finished record below RUNS to distil from or to take initial weights from")
    workers: int = Field(0, ge=0, description="number of processes that load batches")


class Model(Section):
    """A Transformer, non-autoregressive (with length prediction) or autoregressive."""

    kind: Literal["nat", "at"] = Field(description="nat: non-autoregressive; at: autoregressive")
    layers: int = Field(6, ge=1, description="number of layers of the encoder, and of the decoder")
    width: int = Field(512, ge=4, description="size of the embeddings, a multiple of the number of heads")
    feedforward: int = Field(2048, ge=1, description="hidden size of the feed-forward layers")
    heads: int = Field(8, ge=1, description="number of attention heads")
    dropout: float = Field(ge=0, lt=1, description="dropout probability")
    positions: Literal["learned", "sinusoidal"] = Field("learned", description="position embeddings of a NAT")
    copy_source: bool = Field(False, description="a NAT's decoder starts from evenly spread source embeddings")

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"model.width={self.width} must be a multiple of model.heads={self.heads}")
        return self


class Train(TrainSection):
    """The recipe: Adam."""

    DURATIONS: ClassVar[tuple[str, ...]] = ("updates", "warmup_updates")

    updates: int = Field(ge=1, description="number of updates")
    max_tokens: int = Field(
        ge=1, description="tokens in a batch, shared by all processes; longer sentences are not trained on"
    )
    accumulate: int = Field(1, ge=1, description="batches per update (fairseq's --update-freq)")
    schedule: Literal["inverse_sqrt", "linear"] = Field(
        "inverse_sqrt", description="schedule of the learning rate; linear: down to 0 at the last update"
    )
    warmup_updates: int = Field(ge=0, description="updates in which the learning rate rises linearly")
    weight_decay: float = Field(0.0, ge=0, description="weight decay of Adam")
    clip_norm: float = Field(0.0, ge=0, description="largest norm of the gradient; 0: no clipping")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="smoothing of the likelihood")
    length_weight: float = Field(0.1, ge=0, description="weight of the length loss of a NAT")
    from_teacher: bool = Field(False, description="init scratch starts from those weights of the teacher that fit")


class Decode(Section):
    """How test sentences are translated."""

    beam: int = Field(1, ge=1, description="beam size of an autoregressive model; number of lengths tried by a NAT")
    iterations: int = Field(0, ge=0, description="number of refinements of a NAT's translation")
    max_tokens: int = Field(8000, ge=1, description="tokens in a batch")


class TokenRecording(Recording):
    """What the baseline records in the prediction bank."""

    length: int = Field(
        64,
        ge=1,
        description="number of tokens of a sentence that are recorded; a NAT's bank grows with its square",
    )


class TranslationExperiment(Experiment):
    """An experiment of machine translation."""

    PROTOCOL: ClassVar[tuple[str, ...]] = ("data", "model", "train", "decode")
    OUTSIDE_PROTOCOL: ClassVar[tuple[str, ...]] = ("data.workers",)

    score: str = "sacreBLEU"
    metric: str = "token_bleu"
    data: Data
    model: Model
    train: Train
    decode: Decode = Decode()
    recording: TokenRecording = TokenRecording()

    @property
    def surrogate_kind(self) -> str:
        """The kind of surrogate for translations."""
        return "translation"

    @property
    def surrogate_shape(self) -> tuple[int, ...]:
        """Shape of a sentence's recorded log-probabilities: [T, T] for a NAT, else [T]; see `gold_tokens`."""
        return (self.recording.length,) * (2 if self.model.kind == "nat" else 1)

    def required_runs(self) -> list[RequiredRun]:
        """Return the teacher's run, if the experiment distils from it or takes its weights."""
        teacher = RECORD_NAME.fullmatch(self.data.teacher)
        if teacher is None or not (self.data.distilled or self.train.from_teacher):
            return []
        return [RequiredRun(teacher[1], teacher[2], int(teacher[3]))]
