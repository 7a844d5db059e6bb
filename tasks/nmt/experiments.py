"""The experiments of machine translation: each function returns one complete config."""

from collections.abc import Callable

from reloss.experiment.config import Scope
from reloss.learning.options import LearnOptions
from reloss_tasks.nmt.config import Data, Decode, Model, TokenRecording, Train, TranslationExperiment

PAPER = "non-autoregressive translation (the paper's models and scores are not available here)"
NOT_IN_PAPER = "the paper improves non-autoregressive translation"
LOSSES = {"nat": ("nll", "bon", "expected", "approx", "reloss"), "at": ("label_smoothing", "approx", "reloss")}
# The targets contain the hypothesis, so items are mixtures of recorded checkpoints.
LEARN = LearnOptions(items=32, steps=300, mixture="checkpoints")


def wmt14_en_de_nat() -> TranslationExperiment:
    """WMT14 English-German with a base-sized NAT, 300,000 updates of 64,000 tokens, on distilled targets.

    The recipe follows fairseq's examples/nonautoregressive_translation, including dropout 0.3. The targets are
    translations by nmt/wmt14_en_de_at, which is trained first if its record is missing; --set data.distilled=false
    trains on the references. Time and score are not measured.

    reloss run nmt/wmt14_en_de_nat --loss reloss --seed 0 --data DATA
    """
    return _large("wmt14", "en", "de", "nat", subwords=40_000, updates=300_000, accumulate=8, dropout=0.3)


def wmt14_en_de_at() -> TranslationExperiment:
    """WMT14 English-German with the base Transformer of Vaswani et al. (2017), 100,000 updates: the teacher.

    Time and score are not measured.

    reloss run nmt/wmt14_en_de_at --loss reloss --seed 0 --data DATA
    """
    return _large("wmt14", "en", "de", "at", subwords=40_000, updates=100_000, accumulate=4, dropout=0.1)


def wmt16_en_ro_nat() -> TranslationExperiment:
    """WMT16 English-Romanian with a base-sized NAT, 300,000 updates of 32,000 tokens, on the references.

    --set data.distilled=true trains on translations by nmt/wmt16_en_ro_at, which is trained first if its record is
    missing. Time and score are not measured.

    reloss run nmt/wmt16_en_ro_nat --loss reloss --seed 0 --data DATA
    """
    return _large("wmt16", "en", "ro", "nat", subwords=40_000, updates=300_000, accumulate=4, dropout=0.3)


def wmt16_en_ro_at() -> TranslationExperiment:
    """WMT16 English-Romanian with a base Transformer, 100,000 updates of 32,000 tokens: the teacher.

    Time and score are not measured.

    reloss run nmt/wmt16_en_ro_at --loss reloss --seed 0 --data DATA
    """
    return _large("wmt16", "en", "ro", "at", subwords=40_000, updates=100_000, accumulate=4, dropout=0.3)


def iwslt14_de_en_nat() -> TranslationExperiment:
    """IWSLT14 German-English with a small NAT (6 + 6 layers, width 256), 100,000 updates, on the references.

    --set data.distilled=true trains on translations by nmt/iwslt14_de_en_at, which is trained first if its record is
    missing. Time and score are not measured.

    reloss run nmt/iwslt14_de_en_nat --loss reloss --seed 0 --data DATA
    """
    return _iwslt14("nat", updates=100_000)


def iwslt14_de_en_at() -> TranslationExperiment:
    """IWSLT14 German-English with a small Transformer (6 + 6 layers, width 256), 50,000 updates: the teacher.

    Time and score are not measured.

    reloss run nmt/iwslt14_de_en_at --loss reloss --seed 0 --data DATA
    """
    return _iwslt14("at", updates=50_000)


def multi30k_de_en_nat() -> TranslationExperiment:
    """Multi30k German-English (29,000 captions, lower-cased) with a small NAT, sized for one CPU core.

    The teacher is nmt/multi30k_de_en_at, which is trained first if its record is missing. The targets are its
    translations, and training starts from those of its weights that fit; --set data.distilled=false
    train.from_teacher=false trains without a teacher. Expect 12 to 19 minutes per run on one core of a busy machine,
    plus once 19 minutes for the teacher and 4 for its translations. Expect sacreBLEU 25.6 with loss nll (three seeds);
    copying the source gives 0.7.

    reloss run nmt/multi30k_de_en_nat --loss reloss --seed 0 --data DATA
    """
    return _multi30k("nat", Train(updates=4000, lr=1e-3, from_teacher=True, **{**SMALL, "max_tokens": 1000}))


def multi30k_de_en_at() -> TranslationExperiment:
    """Multi30k German-English (29,000 captions, lower-cased) with a small autoregressive Transformer: the teacher.

    Expect 19 minutes on one core of a busy machine, and sacreBLEU 36.1 with loss label_smoothing (seed 0).

    reloss run nmt/multi30k_de_en_at --loss reloss --seed 0 --data DATA
    """
    return _multi30k("at", Train(updates=2000, lr=2e-3, **SMALL))


SMALL = {
    **{"max_tokens": 2000, "schedule": "linear", "warmup_updates": 300},
    **{"weight_decay": 0.01, "clip_norm": 5.0, "precision": "bf16"},
}


def _multi30k(kind: str, train: Train) -> TranslationExperiment:
    """Return the model for Multi30k, small enough for one CPU core."""
    return TranslationExperiment(
        name=f"nmt/multi30k_de_en_{kind}",
        scope=Scope.REDUCED,
        scope_note="29,000 captions and a small model",
        ordinary_loss=LOSSES[kind][0],
        losses=LOSSES[kind],
        data=Data(
            name="multi30k",
            source="de",
            target="en",
            subwords=2000,
            lowercase=True,
            distilled=kind == "nat",
            teacher="nmt/multi30k_de_en_at/label_smoothing/seed0" if kind == "nat" else "",
        ),
        model=Model(
            kind=kind,
            layers=3,
            width=192,
            feedforward=384,
            heads=4,
            dropout=0.2 if kind == "at" else 0.1,
            positions="sinusoidal" if kind == "nat" else "learned",
            copy_source=kind == "nat",
        ),
        train=train,
        decode=Decode(beam=4 if kind == "at" else 1),
        recording=TokenRecording(item_size=32, length=40, examples=512, max_bytes=32 << 20),
        learn=LEARN,
    )


def _iwslt14(kind: str, updates: int) -> TranslationExperiment:
    """Return the small model for IWSLT14, on lower-cased texts."""
    config = _large("iwslt14", "de", "en", kind, subwords=10_000, updates=updates, accumulate=1, dropout=0.3)
    return config.model_copy(
        update={
            "model": Model(kind=kind, layers=6, width=256, feedforward=1024, heads=4, dropout=0.3),
            "data": config.data.model_copy(update={"lowercase": True}),
        }
    )


def _large(
    name: str, source: str, target: str, kind: str, subwords: int, updates: int, accumulate: int, dropout: float
) -> TranslationExperiment:
    """Return the recipe of fairseq's examples for NAT and Transformer: Adam, inverse square root schedule.

    A batch has 8,000 tokens, and an update `accumulate` batches.
    """
    return TranslationExperiment(
        name=f"nmt/{name}_{source}_{target}_{kind}",
        scope=Scope.PAPER if kind == "nat" else Scope.EXTRA,
        scope_note=PAPER if kind == "nat" else NOT_IN_PAPER,
        ordinary_loss=LOSSES[kind][0],
        losses=LOSSES[kind],
        data=Data(
            name=f"{name}_{source}_{target}",
            source=source,
            target=target,
            subwords=subwords,
            distilled=kind == "nat" and name == "wmt14",
            teacher=f"nmt/{name}_{source}_{target}_at/label_smoothing/seed0" if kind == "nat" else "",
            workers=4,
        ),
        model=Model(kind=kind, dropout=dropout),
        train=Train(
            updates=updates,
            max_tokens=8000,
            accumulate=accumulate,
            lr=5e-4 if kind == "nat" else 7e-4,
            warmup_updates=10_000 if kind == "nat" else 4000,
            weight_decay=0.01 if kind == "nat" else 0.0,
            precision="fp16",
        ),
        decode=Decode(beam=4 if kind == "at" else 1),
        recording=TokenRecording(
            item_size=64,
            length=64 if kind == "nat" else 128,
            examples=1024,
            max_bytes=(2 if kind == "nat" else 1) << 30,
        ),
        learn=LEARN.model_copy(update={"items": 64, "steps": 1000}),
    )


EXPERIMENTS: dict[str, Callable[[], TranslationExperiment]] = {
    f"nmt/{make.__name__}": make
    for make in (
        wmt14_en_de_nat,
        wmt14_en_de_at,
        wmt16_en_ro_nat,
        wmt16_en_ro_at,
        iwslt14_de_en_nat,
        iwslt14_de_en_at,
        multi30k_de_en_nat,
        multi30k_de_en_at,
    )
}
