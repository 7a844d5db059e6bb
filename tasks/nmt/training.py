"""Training by fairseq-train, evaluation by fairseq-generate; both run in this process."""

from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import reloss_tasks.nmt.plugin  # noqa: F401
from reloss.experiment.metrics_log import read_metrics
from reloss.experiment.seeds import derive_seed
from reloss.experiment.task import Run
from reloss.runtime import distributed
from reloss.runtime.checkpoint import latest_intact, no_intact_checkpoint
from reloss.runtime.errors import RelossError, UsageError
from reloss.runtime.files import atomic, write_json, write_text
from reloss.runtime.signals import uninterrupted
from reloss_tasks.nmt import arguments
from reloss_tasks.nmt.arguments import TrainPaths
from reloss_tasks.nmt.config import TranslationExperiment
from reloss_tasks.nmt.fairseq_commands import read_translations, run_command
from reloss_tasks.nmt.scoring import corpus_scores, examples
from reloss_tasks.nmt.teacher import TRANSLATOR, prepare_with_teacher, teacher_record
from reloss_tasks.nmt.texts import read_lines
from reloss_tasks.nmt.watched_tasks import observed_by
from reloss_tasks.nmt.watcher import DIVERGED, REMEDY, Watcher

CHECKPOINT = re.compile(r"checkpoint_?(\d+)(?:_(\d+))?\.pt")
SPEED = re.compile(r"Translated .* \(([\d.,]+) sentences/s")


def train(run: Run[TranslationExperiment]) -> None:
    """Train `run` to its last update, from its last checkpoint if there is one, and write the final weights.

    Raises:
        RelossError: data are missing, a checkpoint is damaged, or the loss is not finite.
        UsageError: fp16 without a GPU.
    """
    if run.config.train.precision == "fp16" and not torch.cuda.is_available():
        raise UsageError("train.precision=fp16 needs a GPU: --set train.precision=no, or bf16")
    with distributed.main_first():
        prepared = prepare_with_teacher(run.config.data, run.data, _runs_folder(run))
    folder = run.record.path / "checkpoint"
    last = _last_checkpoint(folder, run.record.epochs())
    epoch, updates = _progress(last) if last is not None else (0, 0)
    watcher = Watcher(run)
    watcher.rewind(epoch, updates)
    paths = TrainPaths(prepared, folder, _save_surrogate(run, folder), restore=last)
    if last is None:
        paths = _with_initial_weights(run, paths)
    seed = derive_seed(run.seed, "training") % 2**31
    words = arguments.train(run.config, run.loss, seed, paths, distributed.processes())
    _record_command(run, "train", words)
    if updates < run.config.train.updates:
        _run_training(run, words, watcher)
        last = _last_checkpoint(folder)
    assert last is not None
    if distributed.is_main():
        _save_final(run, last)
    distributed.barrier()


def _save_surrogate(run: Run[TranslationExperiment], folder: Path) -> Path | None:
    """Write the surrogate where fairseq's criterion can load it, and return its folder."""
    if run.surrogate is None:
        return None
    path = folder / "surrogate"
    if distributed.is_main():
        run.surrogate.save_pretrained(path)
    distributed.barrier()
    return path


def _with_initial_weights(run: Run[TranslationExperiment], paths: TrainPaths) -> TrainPaths:
    """Add the checkpoint that a new training starts from, if it does not start from random weights."""
    if run.initial_weights is not None:
        return paths._replace(finetune=run.initial_weights.with_name(TRANSLATOR.name))
    if run.config.train.from_teacher:
        return paths._replace(initial=teacher_record(run.config.data, run.data, _runs_folder(run)) / TRANSLATOR)
    return paths


def _run_training(run: Run[TranslationExperiment], words: Sequence[str], watcher: Watcher) -> None:
    try:
        with observed_by(watcher):
            run_command("train", words, _log(run))
    except (FloatingPointError, StopIteration) as error:  # StopIteration: from fairseq's search for the first bad value
        raise RelossError(f"{DIVERGED}: gradients of update {watcher.update} are not finite; {REMEDY}") from error
    distributed.barrier()  # wait until the main process has written its last checkpoint


def _save_final(run: Run[TranslationExperiment], last: Path) -> None:
    """Write the final weights, and the model as fairseq-generate loads it."""
    state = _load(last)
    del state["last_optimizer_state"]
    with atomic(run.record.path / TRANSLATOR) as temporary, temporary.open("wb") as file, uninterrupted():
        torch.save(state, file)
    # Shared weights are stored under each of their names, which safetensors allows for copies only.
    run.record.save_weights({name: value.clone() for name, value in state["model"].items()})


def evaluate(run: Run[TranslationExperiment]) -> dict[str, float]:
    """Return the scores of the test sentences as fairseq-generate translates them, and the last validation score.

    `copied_source_sacreBLEU` is the score of copying the source sentences. The record receives the translations,
    sacrebleu's signatures and examples. Of several processes, only the main one translates; the others return nothing.

    Raises:
        RelossError: the model is missing.
    """
    if not distributed.is_main():
        return {}
    data, results = run.config.data, run.record.path / "translations"
    prepared = prepare_with_teacher(data, run.data, _runs_folder(run))
    translator = run.record.path / TRANSLATOR
    if not translator.exists():
        raise RelossError(f"the model {translator} is missing; train the run again")
    words = arguments.generate(run.config, prepared, translator, "test", results)
    _record_command(run, "generate", words)
    lines = run_command("generate", words, _log(run))
    (speed,) = [match for line in lines if (match := SPEED.search(line))]
    sources, references = (read_lines(prepared / "texts" / f"test.{lang}") for lang in (data.source, data.target))
    translations = read_translations(results / "generate-test.txt")
    scores, signatures = corpus_scores(translations, references, data.lowercase)
    copied, _ = corpus_scores(sources, references, data.lowercase)
    run.record.save_examples(examples(sources, translations, references, data.lowercase))
    write_json(results / "sacrebleu.json", signatures)
    return {
        **scores,
        "sentences_per_second": float(speed[1].replace(",", "")),
        "copied_source_sacreBLEU": copied["sacreBLEU"],
        "validation_sacreBLEU": read_metrics(run.record.metrics.path)[-1]["validation_sacreBLEU"],
    }


def _runs_folder(run: Run[TranslationExperiment]) -> Path:
    """Return RUNS for a record RUNS/<task>/<experiment>/<loss>/seed<N>."""
    return run.record.path.parents[3]


def _log(run: Run[TranslationExperiment]) -> Path:
    """Return the file of fairseq's log; each further process has its own."""
    return run.record.path / ("fairseq.log" if distributed.is_main() else f"fairseq.{os.environ['RANK']}.log")


def _record_command(run: Run[TranslationExperiment], name: str, words: Sequence[str]) -> None:
    """Write the command into the record."""
    if distributed.is_main():
        write_text(run.record.path / "commands" / f"{name}.txt", shlex.join([f"fairseq-{name}", *words]) + "\n")


def _last_checkpoint(folder: Path, epochs: float = math.inf) -> Path | None:
    """Return the last intact checkpoint, written after an epoch or after the last update; None if there is none.

    Checkpoints of more than `epochs` epochs are skipped, unless there are no others.

    Raises:
        RelossError: there are checkpoints, but all are damaged or unreadable.
    """
    matches = [(match, path) for path in folder.glob("checkpoint*.pt") if (match := CHECKPOINT.fullmatch(path.name))]
    newest_first = sorted(((int(match[1]), int(match[2] or 0), path) for match, path in matches), reverse=True)
    candidates = [entry for entry in newest_first if entry[0] <= epochs] or newest_first
    intact = latest_intact(path for *_, path in candidates)
    if newest_first and intact is None:
        raise no_intact_checkpoint(
            (path for *_, path in newest_first), f"remove {folder} to train this run from scratch"
        )
    return intact


def _progress(checkpoint: Path) -> tuple[int, int]:
    """Return the number of epochs and of updates after which a checkpoint was written."""
    state = _load(checkpoint)
    return state["task_state"]["epoch"], int(state["optimizer_history"][-1]["num_updates"])


def _load(path: Path) -> dict[str, Any]:
    return dict(torch.load(path, map_location="cpu", weights_only=True))
