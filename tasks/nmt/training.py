"""Training by fairseq-train, evaluation by fairseq-generate."""

from __future__ import annotations

import math
import os
import re
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

import reloss_tasks.nmt.plugin  # noqa: F401
from reloss.experiment.metrics_log import read_metrics
from reloss.experiment.seeds import derive_seed
from reloss.experiment.task import Run
from reloss.runtime import distributed
from reloss.runtime.checkpoint import latest_intact, no_intact_checkpoint
from reloss.runtime.errors import RelossError, UsageError
from reloss.runtime.files import atomic, write_json, write_text
from reloss.runtime.progress import say
from reloss.runtime.signals import uninterrupted
from reloss_tasks.nmt import commands
from reloss_tasks.nmt.config import TranslationExperiment
from reloss_tasks.nmt.data import prepare, read_lines, teachers_record
from reloss_tasks.nmt.fairseq_commands import run_command
from reloss_tasks.nmt.recording import NO_TOKEN, observed_by
from reloss_tasks.nmt.scoring import corpus_scores, examples

CHECKPOINT = re.compile(r"checkpoint_?(\d+)(?:_(\d+))?\.pt")
DIVERGED, REMEDY = "training diverged", "the checkpoint before it is kept. Try a smaller train.lr"
SPEED = re.compile(r"Translated .* \(([\d.,]+) sentences/s")


def train(run: Run) -> None:
    """Train `run` to its last update, from its last checkpoint if there is one, and write the final weights.

    Raises:
        RelossError: data are missing, a checkpoint is damaged, or the loss is not finite.
        UsageError: fp16 without a GPU.
    """
    if run.config.train.precision == "fp16" and not torch.cuda.is_available():
        raise UsageError("train.precision=fp16 needs a GPU: --set train.precision=no, or bf16")
    with distributed.main_first():
        prepared = prepare(run.config.data, run.data, runs_folder(run))
    folder = run.record.path / "checkpoint"
    last = _last_checkpoint(folder, run.record.epochs())
    state = _load(last) if last is not None else None
    updates = _updates(state) if state is not None else 0
    watcher = Watcher(run)
    watcher.forget_after(state["task_state"]["epoch"] if state is not None else 0, updates)
    surrogate = None
    if run.surrogate is not None:
        surrogate = folder / "surrogate"
        if distributed.is_main():
            run.surrogate.save_pretrained(surrogate)
        distributed.barrier()
    finetune = initial = None
    if last is None and run.initial_weights is not None:
        finetune = run.initial_weights.with_name("translator.pt")
    elif last is None and run.config.train.from_teacher:
        initial = teachers_record(run.config.data, run.data, runs_folder(run)) / "checkpoint" / "translator.pt"
    seed = derive_seed(run.seed, "training") % 2**31
    words = commands.train(
        run.config,
        run.loss,
        seed,
        prepared,
        folder,
        surrogate=surrogate,
        restore=last,
        finetune=finetune,
        initial=initial,
        processes=distributed.processes(),
    )
    _note(run, "train", words)
    if updates < run.config.train.updates:
        try:
            with observed_by(watcher):
                run_command("train", words, _log(run))
        except (FloatingPointError, StopIteration) as error:  # the second from fairseq's search for where it began
            raise RelossError(f"{DIVERGED}: gradients of update {watcher.update} are not finite; {REMEDY}") from error
        distributed.barrier()  # the main process has written its last checkpoint
        last = _last_checkpoint(folder)
    assert last is not None
    if distributed.is_main():
        _keep(run, last)
    distributed.barrier()


def _keep(run: Run, last: Path) -> None:
    """Write the final weights, and the model as fairseq-generate loads it."""
    folder = last.parent
    state = _load(last)
    del state["last_optimizer_state"]
    with atomic(folder / "translator.pt") as temporary, temporary.open("wb") as file, uninterrupted():
        torch.save(state, file)
    run.record.save_weights({name: value.clone() for name, value in state["model"].items()})  # shared ones too


def evaluate(run: Run) -> dict[str, float]:
    """Return the scores of the test sentences as fairseq-generate translates them, and the last epoch's validation.

    `copied_source_sacreBLEU` is that of leaving the sentences as they are. The translations, sacrebleu's signatures and
    examples to look at stay in the record.

    Of several processes the main one alone translates; the others return nothing.

    Raises:
        RelossError: the model is not there.
    """
    if not distributed.is_main():
        return {}
    prepared = prepare(run.config.data, run.data, runs_folder(run))
    data, results = run.config.data, run.record.path / "translations"
    translator = run.record.path / "checkpoint" / "translator.pt"
    if not translator.exists():
        raise RelossError(f"the model {translator} is gone; train the run again")
    words = commands.generate(run.config, prepared, translator, "test", results)
    _note(run, "generate", words)
    lines = run_command("generate", words, _log(run))
    (speed,) = [match for line in lines if (match := SPEED.search(line))]
    sources, references = (read_lines(prepared / "texts" / f"test.{lang}") for lang in (data.source, data.target))
    translations = read_translations(results / "generate-test.txt")
    found, signatures = corpus_scores(translations, references, data.lowercase)
    run.record.save_examples(examples(sources, translations, references, data.lowercase))
    write_json(results / "sacrebleu.json", signatures)
    copied, _ = corpus_scores(sources, references, data.lowercase)
    validation = read_metrics(run.record.metrics.path)[-1]["validation_sacreBLEU"]
    return {
        **found,
        "sentences_per_second": float(speed[1].replace(",", "")),
        "copied_source_sacreBLEU": copied["sacreBLEU"],
        "validation_sacreBLEU": validation,
    }


def translate_training_set(record: Path, folder: Path, runs: Path) -> list[str]:
    """Return the translations that the model in `record` makes of the sentences it was trained on, in their order.

    Args:
        record: a finished one.
        folder: DATA, where its texts lie.
        runs: RUNS, where its prepared data lie, or are made again.

    Raises:
        RelossError: texts or translations are missing.
    """
    config = TranslationExperiment.model_validate(yaml.safe_load((record / "config.yaml").read_text(encoding="utf-8")))
    prepared, results = prepare(config.data, folder, runs), record / "distilled"
    words = commands.generate(config, prepared, record / "checkpoint" / "translator.pt", "train", results)
    run_command("generate", words, results / "fairseq.log")
    return read_translations(results / "generate-train.txt")


def runs_folder(run: Run) -> Path:
    """Return RUNS of a record RUNS/<task>/<experiment>/<loss>/seed<N>."""
    return run.record.path.parents[3]


def read_translations(path: Path) -> list[str]:
    """Return the translations, by sentence, in what fairseq-generate wrote.

    Raises:
        RelossError: sentences are missing, as where they are too long for the model.
    """
    found: dict[int, str] = {}
    for line in read_lines(path):
        if line.startswith("D-"):
            name, _, text = line.split("\t", 2)
            found.setdefault(int(name[2:]), text)
    if sorted(found) != list(range(len(found))):
        raise RelossError(f"{path} lacks translations of some sentences")
    return [found[number] for number in range(len(found))]


def _log(run: Run) -> Path:
    """Return where fairseq's log goes: a file of its own for each further process."""
    return run.record.path / ("fairseq.log" if distributed.is_main() else f"fairseq.{os.environ['RANK']}.log")


def _note(run: Run, name: str, words: Sequence[str]) -> None:
    """Write the command into the record."""
    if not distributed.is_main():
        return
    text = shlex.join([f"fairseq-{name}", *words]) + "\n"
    write_text(run.record.path / "commands" / f"{name}.txt", text)


def _last_checkpoint(folder: Path, epochs: float = math.inf) -> Path | None:
    """Return the last checkpoint that is whole, of a whole epoch or of the last update, if there is one.

    Where there is one of at most so many `epochs`, those of more are passed over.

    Raises:
        RelossError: there are some, and all are damaged or cannot be read.
    """
    found = [(match, path) for path in folder.glob("checkpoint*.pt") if (match := CHECKPOINT.fullmatch(path.name))]
    ordered = sorted(((int(m[1]), int(m[2] or 0), path) for m, path in found), reverse=True)
    whole = latest_intact(path for *_, path in [each for each in ordered if each[0] <= epochs] or ordered)
    if ordered and whole is None:
        raise no_intact_checkpoint((path for *_, path in ordered), f"remove {folder} to train this run anew")
    return whole


def _updates(state: dict[str, Any]) -> int:
    """Return how many updates a checkpoint is of."""
    return int(state["optimizer_history"][-1]["num_updates"])


def _load(path: Path) -> dict[str, Any]:
    return dict(torch.load(path, map_location="cpu", weights_only=True))


class Watcher:
    """Fills the bank while a model trains, and writes metrics and validation predictions into the record.

    Args:
        run: the run.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.epoch = 0
        self.update = 0
        self._validated: list[tuple[Tensor, Tensor, Tensor]] = []
        self._began = time.monotonic()

    def forget_after(self, epoch: int, updates: int) -> None:
        """Forget what was recorded after so many epochs and updates: it will come again."""
        if updates:
            say(f"going on from epoch {epoch}")
        self.run.record.rewind_to_epoch(epoch)
        if self.run.bank is not None:
            self.run.bank.resume(updates)

    def begin_epoch(self, epoch: int) -> None:
        """Note the time."""
        self.epoch, self._began, self._validated = epoch, time.monotonic(), []

    def trained(self, predicted: Callable[[], tuple[Tensor, Tensor]], update: int) -> None:
        """Put a batch into the bank, if there is one."""
        self.update = update
        if self.run.bank is not None:
            self.run.bank.append(*self._of_length(*predicted()), update)

    def validated(self, ids: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Keep what a batch holds of the first validation sentences."""
        kept = (ids < self.run.config.recording.examples).nonzero()[:, 0]
        self._validated.append((ids[kept].cpu(), *self._of_length(outputs[kept].cpu(), targets[kept].cpu())))

    def _of_length(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        missing = self.run.config.recording.length - outputs.shape[1]  # negative: cut
        padded = torch.nn.functional.pad(targets, (0, 0, 0, missing), value=NO_TOKEN)
        return torch.nn.functional.pad(outputs, (0, missing)), padded

    def end_epoch(self, task: Any, model: Any, stats: dict[str, Any]) -> None:
        """Log the epoch, and keep what was predicted for the validation sentences.

        Raises:
            RelossError: its loss is not finite.
        """
        from fairseq.logging import metrics

        trained = metrics.get_smoothed_values("train")
        loss = float(trained["loss"])
        if not math.isfinite(loss):
            raise RelossError(f"{DIVERGED}: the loss before update {self.update} is {loss}; {REMEDY}")
        seconds = round(time.monotonic() - self._began, 2)
        scores = validation_scores(task, model, self.run.config)
        self.run.record.log(
            int(stats["num_updates"]),
            epoch=self.epoch,
            train_loss=loss,
            train_nll_loss=float(trained["nll_loss"]),
            validation_loss=float(stats["loss"]),
            validation_nll_loss=float(
                stats["nll_loss"].avg if hasattr(stats["nll_loss"], "avg") else stats["nll_loss"]
            ),
            lr=float(trained["lr"]),
            seconds=seconds,
            **scores,
        )
        validated = [batch for of_process in distributed.gather_objects(self._validated) for batch in of_process]
        if distributed.is_main():
            ids, outputs, targets = (torch.cat(parts) for parts in zip(*validated, strict=True))
            _, first = np.unique(ids.numpy(), return_index=True)  # fairseq's order depends on the seed
            self.run.record.save_predictions(self.epoch, outputs[first], targets[first])
        self.run.flush_bank()
        say(
            f"epoch {self.epoch} (update {stats['num_updates']} of {self.run.config.train.updates}): loss {loss:.4f}, "
            + " ".join(f"{name} {value:.2f}" for name, value in scores.items())
            + f", {seconds:.0f} s"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch."""
        return {"epoch": self.epoch}


@torch.no_grad()
def validation_scores(task: Any, model: Any, config: TranslationExperiment) -> dict[str, float]:
    """Return sacreBLEU of the validation sentences, translated greedily."""
    from argparse import Namespace

    training = model.training
    model.eval()
    options = commands.decoding(config) | ({"beam": 1} if config.model.kind == "at" else {})
    generator = task.build_generator([model], Namespace(**options))
    dictionary = task.target_dictionary
    hypotheses, references = [], []
    batches = task.get_batch_iterator(
        task.dataset("valid"),
        max_tokens=config.decode.max_tokens,
        max_positions=(commands.POSITIONS, commands.POSITIONS),
        ignore_invalid_inputs=True,
        required_batch_size_multiple=1,
        disable_iterator_cache=True,  # else the trainer's, of which each process has its share
    ).next_epoch_itr(shuffle=False)
    device = next(model.parameters()).device

    def text(tokens: Tensor) -> str:
        return str(dictionary.string(tokens.int().cpu(), "sentencepiece", escape_unk=True))

    for batch in batches:
        batch["net_input"] = {name: value.to(device) for name, value in batch["net_input"].items()}
        found = task.inference_step(generator, [model], batch)
        hypotheses += [text(each[0]["tokens"]) for each in found]
        padded = dictionary.pad()
        references += [text(row[row != padded]) for row in batch["target"]]
    model.train(training)
    scores, _ = corpus_scores(hypotheses, references, config.data.lowercase)
    return {"validation_sacreBLEU": scores["sacreBLEU"]}
