"""The command lines of fairseq-preprocess, fairseq-train and fairseq-generate for a config. Imports no torch.

fairseq is configured by command-line arguments, so this module is the whole mapping from our config to fairseq's. The
comments name the defaults of fairseq that would lose data or break a resumed run.
"""

from __future__ import annotations

import os
from math import gcd
from pathlib import Path
from typing import Any, NamedTuple

from reloss.experiment.config import FITTED_LOSSES
from reloss_tasks.nmt.config import Data, TranslationExperiment

PLUGIN = Path(__file__).parent / "plugin"
POSITIONS = 1024  # longest sequence the models take, in subwords; `LONGEST` of preparation.py stays below it
PARTS = ("encoder", "decoder")
CRITERIA = {
    **{"nll": "nat_loss", "bon": "bon_nat", "label_smoothing": "label_smoothed_cross_entropy"},
    **{name: name for name in ("reloss_nat", "approx_nat", "expected_nat", "reloss_at", "approx_at")},
}


class TrainPaths(NamedTuple):
    """Files and folders of a training.

    Attributes:
        prepared: folder of the binarised data.
        checkpoints: folder for fairseq's checkpoints.
        surrogate: folder of the surrogate, for a learned loss.
        restore: checkpoint to resume from.
        finetune: checkpoint of the same model, whose weights training starts from.
        initial: checkpoint of another model; training starts from those of its weights that fit.
    """

    prepared: Path
    checkpoints: Path
    surrogate: Path | None = None
    restore: Path | None = None
    finetune: Path | None = None
    initial: Path | None = None


def preprocess(config: Data, texts: Path, target: Path, dictionary: Path | None = None) -> list[str]:
    """Return the arguments that binarise the subwords in `texts` into `target`.

    Args:
        config: the data section.
        texts: folder of the files `<split>.<language>`, one sentence of subwords per line.
        target: folder for the binarised data.
        dictionary: an existing dictionary of fairseq; by default, a new one is made from the training texts.
    """
    return _command_line(
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


def train(config: TranslationExperiment, loss: str, seed: int, paths: TrainPaths, processes: int = 1) -> list[str]:
    """Return the arguments of a training.

    Args:
        config: the experiment.
        loss: name of the loss in the experiment.
        seed: seed of initialisation, data order and dropout.
        paths: files and folders of the training.
        processes: number of processes that train together. They share the batches of an update; with fewer batches
            than processes, the batches get smaller. fairseq skips sentences that are longer than a process's batch.
    """
    return [
        str(paths.prepared),
        *_command_line(
            **_criterion(config, loss, paths.surrogate),
            **_network(config),
            **_optimisation(config),
            **_batches(config, seed, processes),
            **_checkpoints(config, paths),
            skip_invalid_size_inputs_valid_test=True,
            log_format="none",
        ),
    ]


def _criterion(config: TranslationExperiment, loss: str, surrogate: Path | None) -> dict[str, Any]:
    """Return the task and the criterion; fairseq builds both by name (see watched_tasks.py and losses.py)."""
    kind, learned = config.model.kind, loss in FITTED_LOSSES
    return {
        "user_dir": PLUGIN,
        "task": "reloss_translation_lev" if kind == "nat" else "reloss_translation",
        "criterion": CRITERIA[f"{loss}_{kind}" if learned else loss],
        "surrogate": surrogate,
        "nll_weight": config.train.ordinary_weight if learned or loss == "bon" else None,
        "label_smoothing": config.train.label_smoothing,
    }


def _network(config: TranslationExperiment) -> dict[str, Any]:
    model = config.model
    sizes = {
        "layers": model.layers,
        "embed_dim": model.width,
        "ffn_embed_dim": model.feedforward,
        "attention_heads": model.heads,
    }
    return {
        "arch": "nonautoregressive_transformer" if model.kind == "nat" else "transformer",
        **_nat_options(config),
        **{f"{part}_{name}": size for name, size in sizes.items() for part in PARTS},
        "share_all_embeddings": True,
        "dropout": model.dropout,
        "max_source_positions": POSITIONS,
        "max_target_positions": POSITIONS,
    }


def _nat_options(config: TranslationExperiment) -> dict[str, Any]:
    """Return the options of fairseq's example of a non-autoregressive Transformer (NAT)."""
    if config.model.kind == "at":
        return {}
    return {
        "noise": "full_mask",
        "pred_length_offset": True,
        "length_loss_factor": config.train.length_weight,
        "apply_bert_init": True,
        **{f"{part}_learned_pos": config.model.positions == "learned" for part in PARTS},
        "activation_fn": "gelu",
        "src_embedding_copy": config.model.copy_source,
        # Despite its name, the flag turns padding on the left off. The copy counts from the left, so it would copy it.
        "left_pad_source": True,
    }


def _optimisation(config: TranslationExperiment) -> dict[str, Any]:
    recipe = config.train
    return {
        "optimizer": "adam",
        "adam_betas": "(0.9, 0.98)",
        "weight_decay": recipe.weight_decay,
        "clip_norm": recipe.clip_norm,
        "lr": recipe.lr,
        **_schedule(recipe.schedule, recipe.updates, recipe.warmup_updates),
        "max_update": recipe.updates,
    }


def _schedule(name: str, updates: int, warmup: int) -> dict[str, Any]:
    if name == "linear":
        return {"lr_scheduler": "polynomial_decay", "total_num_update": updates, "warmup_updates": warmup}
    # fairseq stops when the rate falls to its minimum, and by default inverse_sqrt starts from 0, which is the minimum.
    return {"lr_scheduler": "inverse_sqrt", "warmup_updates": warmup, "warmup_init_lr": 1e-7, "stop_min_lr": 1e-9}


def _batches(config: TranslationExperiment, seed: int, processes: int) -> dict[str, Any]:
    recipe = config.train
    sharing = gcd(recipe.accumulate, processes)  # processes that take whole batches of an update
    return {
        "max_tokens": recipe.max_tokens // (processes // sharing),
        "required_batch_size_multiple": 1,  # with the default of 8, fairseq's compiled batching loses the last batch
        "update_freq": recipe.accumulate // sharing,
        "fp16": recipe.precision == "fp16",
        "bfloat16": recipe.precision == "bf16",
        "seed": seed,
        "num_workers": config.data.workers,
        "update_epoch_batch_itr": "True",  # else a resumed run keeps the batches of its first epoch
        "distributed_world_size": processes,
        **(_rank() if processes > 1 else {}),
    }


def _rank() -> dict[str, Any]:
    """Return the options of one process that torchrun started; the process group exists already."""
    return {
        "distributed_rank": os.environ["RANK"],
        "device_id": os.environ["LOCAL_RANK"],
        "distributed_no_spawn": True,
        "ddp_backend": "legacy_ddp",  # the only one that runs on a CPU, and with parameters that a loss does not use
    }


def _checkpoints(config: TranslationExperiment, paths: TrainPaths) -> dict[str, Any]:
    return {
        "save_dir": paths.checkpoints,
        "save_interval_updates": config.train.updates,  # so the last update is saved too, even within an epoch
        "keep_last_epochs": 2,  # one stays intact while the next is written
        "no_last_checkpoints": True,  # fairseq copies this file, and a kill can cut the copy short
        "restore_file": paths.restore,
        "finetune_from_model": paths.finetune,
        "initial_weights": paths.initial,
    }


def generate(config: TranslationExperiment, prepared: Path, model: Path, subset: str, results: Path) -> list[str]:
    """Return the arguments that translate the sentences of `subset` into the folder `results`."""
    nat = config.model.kind == "nat"
    return [
        str(prepared),
        *_command_line(
            user_dir=PLUGIN,
            task="translation_lev" if nat else "translation",
            left_pad_source=nat,  # see `_nat_options`
            path=model,
            gen_subset=subset,
            results_path=results,
            distributed_world_size=1,  # by default, every GPU would translate its own share
            max_tokens=config.decode.max_tokens,
            required_batch_size_multiple=1,  # see `_batches`
            num_workers=0,  # after so short a pass, a worker takes five seconds to end
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


def _command_line(**options: Any) -> list[str]:
    """Return `--name value` for each option. True gives the flag alone; False and None give nothing."""
    words: list[str] = []
    for name, value in options.items():
        if value is not None and value is not False:
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return words
