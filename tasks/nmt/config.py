"""The typed config of machine translation: what differs between experiments. Imports no torch.

Models, optimisation and decoding are fairseq's; `commands.py` says how a config becomes fairseq's arguments.
"""

from typing import ClassVar, Literal

from pydantic import Field

from reloss.experiment.config import Experiment, Recording, Section
from reloss.learning.options import LearnOptions
from reloss.runtime.files import short_hash


class Data(Section):
    """Which sentence pairs, and their subwords."""

    name: str = Field(description="folder of DATA that holds {train,valid,test}.{source,target}, a sentence a line")
    source: str
    target: str
    subwords: int = Field(ge=8, description="of the sentencepiece BPE that is learned on both languages together")
    lowercase: bool = Field(False, description="texts are lower-cased, and scored without regard to case")
    distilled: bool = Field(False, description="targets to train on are a teacher's translations")
    teacher: str = Field("", description="record in RUNS, finished, to distil from or to begin with")
    workers: int = Field(0, ge=0, description="processes that load batches")


class Model(Section):
    """A Transformer, non-autoregressive (with length prediction) or autoregressive."""

    kind: Literal["nat", "at"]
    layers: int = Field(6, ge=1, description="of the encoder, and of the decoder")
    width: int = Field(512, ge=1)
    feedforward: int = Field(2048, ge=1)
    heads: int = Field(8, ge=1)
    dropout: float = Field(ge=0, lt=1)
    positions: Literal["learned", "sinusoidal"] = Field("learned", description="embeddings of a NAT's places")
    copy_source: bool = Field(False, description="a NAT's decoder begins with source embeddings, evenly spread")


class Train(Section):
    """The recipe."""

    updates: int = Field(ge=1)
    max_tokens: int = Field(
        ge=1, description="of a batch; of several processes each has a share, and no longer sentences are trained on"
    )
    accumulate: int = Field(1, ge=1, description="batches of one update (fairseq's --update-freq)")
    lr: float = Field(gt=0)
    schedule: Literal["inverse_sqrt", "linear"] = Field("inverse_sqrt", description="linear: down to 0 at the end")
    warmup_updates: int = Field(ge=0)
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: float = Field(0.0, ge=0, description="0: off")
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    length_weight: float = Field(0.1, ge=0, description="of the length loss of a non-autoregressive model")
    ordinary_weight: float = Field(0.0, ge=0, description="label-smoothed NLL added to any other loss, times this")
    init: Literal["scratch", "baseline"] = Field("scratch", description="baseline: fine-tune its weights of this seed")
    from_teacher: bool = Field(False, description="scratch begins with the teacher's weights as far as they fit")
    precision: Literal["no", "fp16", "bf16"] = "no"


class Decode(Section):
    """How test sentences are translated."""

    beam: int = Field(1, ge=1, description="of an autoregressive model; a non-autoregressive one: lengths tried")
    iterations: int = Field(0, ge=0, description="refinements of a non-autoregressive translation")
    max_tokens: int = Field(8000, ge=1)


class TokenRecording(Recording):
    """What the baseline leaves in the prediction bank."""

    length: int = Field(64, ge=1, description="tokens of a sentence that are recorded")


class TranslationExperiment(Experiment):
    """An experiment of machine translation."""

    TUNED: ClassVar[tuple[str, ...]] = ("metric", "train.lr", "train.init", "train.ordinary_weight")

    score: str = "sacreBLEU"
    metric: str = "token_bleu"
    data: Data
    model: Model
    train: Train
    decode: Decode = Decode()
    recording: TokenRecording = TokenRecording()
    learn: LearnOptions = LearnOptions()

    def protocol(self) -> str:
        """Return a hash of data, model and recipe but for what may be tuned for each loss."""
        data = self.data.model_dump(exclude={"workers"})
        return short_hash([data, self.model.model_dump(), self.recipe(), self.decode.model_dump()])
