"""How a config becomes the arguments of fairseq-preprocess, fairseq-train and fairseq-generate. Imports no torch."""

from __future__ import annotations

import os
from math import gcd
from pathlib import Path
from typing import Any

from reloss_tasks.nmt.config import Data, TranslationExperiment

PLUGIN = Path(__file__).parent / "plugin"
POSITIONS = 1024  # places of the models; `LONGEST` of data.py leaves room
CRITERIA = {
    **{"nll": "nat_loss", "bon": "bon_nat", "label_smoothing": "label_smoothed_cross_entropy"},
    **{f"{loss}_{kind}": f"{loss}_{kind}" for loss in ("reloss", "approx") for kind in ("nat", "at")},
}


def preprocess(config: Data, texts: Path, target: Path, dictionary: Path | None = None) -> list[str]:
    """Return the arguments that binarise the subwords in `texts` into `target`, by a dictionary that is there."""
    return _words(
        source_lang=config.source,
        target_lang=config.target,
        trainpref=texts / "train",
        validpref=texts / "valid",
        testpref=texts / "test",
        destdir=target,
        joined_dictionary=True,
        srcdict=dictionary,
        workers=1,
    )


def train(
    config: TranslationExperiment,
    loss: str,
    seed: int,
    prepared: Path,
    folder: Path,
    *,
    surrogate: Path | None = None,
    restore: Path | None = None,
    finetune: Path | None = None,
    initial: Path | None = None,
    processes: int = 1,
) -> list[str]:
    """Return the arguments of a training.

    Args:
        config: the experiment.
        loss: its name in the experiment.
        seed: of initialisation, data order and dropout.
        prepared: the binarised data.
        folder: of the checkpoints.
        surrogate: of a learned loss.
        restore: a checkpoint to go on from.
        finetune: one whose weights to begin with.
        initial: one of another model, to begin with the weights that fit.
        processes: that train together; an update's batches are shared among them, and batches themselves if there are
            fewer. fairseq leaves out sentences that are longer than a process's batch.
    """
    recipe, model = config.train, config.model
    taking_turns = gcd(recipe.accumulate, processes)
    learned = loss in ("reloss", "approx")
    other = learned or loss == "bon"
    nat = model.kind == "nat"
    return [
        str(prepared),
        *_words(
            user_dir=PLUGIN,
            task="reloss_translation_lev" if nat else "reloss_translation",
            criterion=CRITERIA[f"{loss}_{model.kind}" if learned else loss],
            surrogate=surrogate,
            nll_weight=recipe.ordinary_weight if other else None,
            label_smoothing=recipe.label_smoothing,
            arch="nonautoregressive_transformer" if nat else "transformer",
            **_nat_options(config),
            **{f"{part}_layers": model.layers for part in ("encoder", "decoder")},
            **{f"{part}_embed_dim": model.width for part in ("encoder", "decoder")},
            **{f"{part}_ffn_embed_dim": model.feedforward for part in ("encoder", "decoder")},
            **{f"{part}_attention_heads": model.heads for part in ("encoder", "decoder")},
            share_all_embeddings=True,
            dropout=model.dropout,
            max_source_positions=POSITIONS,
            max_target_positions=POSITIONS,
            optimizer="adam",
            adam_betas="(0.9, 0.98)",
            weight_decay=recipe.weight_decay,
            clip_norm=recipe.clip_norm,
            lr=recipe.lr,
            **_schedule(recipe.schedule, recipe.updates, recipe.warmup_updates),
            max_update=recipe.updates,
            max_tokens=recipe.max_tokens // (processes // taking_turns),
            required_batch_size_multiple=1,  # with its default of 8, fairseq's compiled batching loses the last batch
            update_freq=recipe.accumulate // taking_turns,
            fp16=recipe.precision == "fp16",
            bfloat16=recipe.precision == "bf16",
            seed=seed,
            num_workers=config.data.workers,
            update_epoch_batch_itr="True",  # else batches are those of the epoch that a process began with
            distributed_world_size=processes,
            **(_rank() if processes > 1 else {}),
            save_dir=folder,
            save_interval_updates=recipe.updates,  # so that the last update's is kept too, in the midst of an epoch
            keep_last_epochs=2,  # the last one stays whole while the next is written
            no_last_checkpoints=True,  # fairseq copies it, which a kill can cut short; the others are written whole
            restore_file=restore,
            finetune_from_model=finetune,
            initial_weights=initial,
            skip_invalid_size_inputs_valid_test=True,
            log_format="none",
        ),
    ]


def generate(config: TranslationExperiment, prepared: Path, model: Path, subset: str, results: Path) -> list[str]:
    """Return the arguments that translate the sentences of `subset` into the folder `results`."""
    nat = config.model.kind == "nat"
    return [
        str(prepared),
        *_words(
            user_dir=PLUGIN,
            task="translation_lev" if nat else "translation",
            left_pad_source=nat,  # see `_nat_options`
            path=model,
            gen_subset=subset,
            results_path=results,
            distributed_world_size=1,  # else it is the number of GPUs, and each would translate its share
            max_tokens=config.decode.max_tokens,
            required_batch_size_multiple=1,  # see `train`
            num_workers=0,  # a worker of so short a pass takes five seconds to end
            post_process="sentencepiece",
            fp16=config.train.precision == "fp16",
            **decoding(config),
        ),
    ]


def decoding(config: TranslationExperiment) -> dict[str, Any]:
    """Return fairseq's options of decoding."""
    if config.model.kind == "at":
        return {"beam": config.decode.beam}
    return {
        "iter_decode_max_iter": config.decode.iterations,
        "iter_decode_with_beam": config.decode.beam,
        "iter_decode_eos_penalty": 0,
    }


def _rank() -> dict[str, Any]:
    """Return the options of one process of those that torchrun has started; the group is there already."""
    return {
        "distributed_rank": os.environ["RANK"],
        "device_id": os.environ["LOCAL_RANK"],
        "distributed_no_spawn": True,
        "ddp_backend": "legacy_ddp",  # the one that runs on a CPU too, and with parameters that a loss leaves unused
    }


def _nat_options(config: TranslationExperiment) -> dict[str, Any]:
    """Return the options of fairseq's example of a NAT."""
    if config.model.kind == "at":
        return {}
    return {
        **{"noise": "full_mask", "pred_length_offset": True, "length_loss_factor": config.train.length_weight},
        "apply_bert_init": True,
        **{f"{part}_learned_pos": config.model.positions == "learned" for part in ("encoder", "decoder")},
        **{"activation_fn": "gelu", "src_embedding_copy": config.model.copy_source},
        "left_pad_source": True,  # this word means no: copying counts from the left, and padding there would be copied
    }


def _schedule(name: str, updates: int, warmup: int) -> dict[str, Any]:
    # fairseq stops at once at a rate that is not above its least one, and inverse_sqrt would begin at 0.
    if name == "linear":
        return {"lr_scheduler": "polynomial_decay", "total_num_update": updates, "warmup_updates": warmup}
    return {"lr_scheduler": "inverse_sqrt", "warmup_updates": warmup, "warmup_init_lr": 1e-7, "stop_min_lr": 1e-9}


def _words(**options: Any) -> list[str]:
    """Return `--name value` for each option; a true one stands alone, a false one and None are left out."""
    words: list[str] = []
    for name, value in options.items():
        if value is not None and value is not False:
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return words
