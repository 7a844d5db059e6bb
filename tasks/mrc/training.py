"""Training and evaluation with accelerate, from one process to many."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from reloss.experiment.record import read_weights
from reloss.experiment.seeds import derive_seed, own_seed
from reloss.experiment.task import Run
from reloss.metrics import MASKED
from reloss.runtime import distributed
from reloss.runtime.errors import RelossError
from reloss.runtime.progress import progress, say
from reloss.surrogates import ReadingReLoss
from reloss_tasks.accelerated import FiniteLoss, check_outputs, load_state, open_accelerator, save_state
from reloss_tasks.mrc import data, models
from reloss_tasks.mrc.config import ReadingExperiment, Train
from reloss_tasks.mrc.data import Question
from reloss_tasks.mrc.scoring import best_threshold, first_sentence, mean_scores, score
from reloss_tasks.mrc.windows import Windows, make_windows, read_answers

Criterion = Callable[[Tensor, Tensor], Tensor]
SHOWN = 20  # right and wrong answers in the record's examples.json, each


def train(run: Run) -> None:
    """Train `run` to its last epoch, from its last checkpoint if there is one, and write the final weights.

    All randomness of a part of an epoch follows from (seed, epoch, part), so an interrupted run ends with the same
    weights on a CPU.

    Raises:
        RelossError: data or model are missing, a checkpoint does not fit, or the loss is not finite.
    """
    _Training(run).fit()


def evaluate(run: Run) -> dict[str, float]:
    """Return the official scores on the questions to test on and, named `validation_*`, on held-out ones if there are.

    Beside them stands `first_sentence_f1`, that of answering with the passage's first sentence. The answers are left in
    the record: `predictions.json` (id to text, as SQuAD's evaluation takes it) and `examples.json`.
    """
    config: ReadingExperiment = run.config
    splits = data.load(config.data, run.data)
    tokenizer = _tokenizer(config, splits)
    with open_accelerator(config.train.precision) as accelerator:
        model = models.load_model(config.model, tokenizer, config.data.max_length)
        model.load_state_dict(read_weights(run.record.weights))
        model = accelerator.prepare(model)

        def answer(questions: list[Question]) -> tuple[dict[str, float], dict[str, str]]:
            windows = _windows(questions, tokenizer, config)
            return _score(_predict(accelerator, model, windows, config), windows, questions, config)

        found, answers = answer(splits.test)
        opening = {question.id: first_sentence(question.context) for question in splits.test}
        found["first_sentence_f1"] = mean_scores(opening, splits.test, config.data.language)["f1"]
        if splits.validation is not splits.test:
            found |= {f"validation_{name}": value for name, value in answer(splits.validation)[0].items()}
    run.record.save_json("predictions", answers)
    run.record.save_examples(examples(answers, splits.test, config.data.language))
    return found


def examples(answers: dict[str, str], questions: Sequence[Question], language: str) -> dict[str, list[dict[str, Any]]]:
    """Return the first wrong and the first right answers, with their questions, gold texts and scores."""
    kinds: dict[str, list[dict[str, Any]]] = {"wrong": [], "right": []}
    for question in questions:
        text = answers[question.id]
        found = score(text, question, language)
        kind = kinds["right" if found.exact_match else "wrong"]
        if len(kind) < SHOWN:
            kind.append(
                {
                    "id": question.id,
                    "question": question.text,
                    "answer": text,
                    "gold": list(dict.fromkeys(question.answers)),
                    "f1": round(found.f1, 4),
                    "context": question.context,
                }
            )
    return kinds


def _score(
    outputs: Tensor, windows: Windows, questions: Sequence[Question], config: ReadingExperiment, when: str = ""
) -> tuple[dict[str, float], dict[str, str]]:
    """Return the official scores of the outputs [F, 2, T], and the answers by the questions' ids.

    Raises:
        RelossError: the outputs are not finite; `when` goes into the message.
    """
    check_outputs(outputs, when)
    texts, null_leads = read_answers(outputs, windows, questions, config.data.max_answer)
    ids = [question.id for question in questions]
    answers = dict(zip(ids, texts, strict=True))
    if not config.data.unanswerable:
        return mean_scores(answers, questions, config.data.language), answers
    leads = dict(zip(ids, null_leads.tolist(), strict=True))
    best = best_threshold(answers, leads, questions, config.data.language)
    answers = {name: "" if leads[name] > config.data.null_threshold else text for name, text in answers.items()}
    return {**mean_scores(answers, questions, config.data.language), **best}, answers


def make_criterion(run: Run, device: torch.device | str = "cpu") -> Criterion:
    """Return the loss of a run: (logits [B, 2, T], gold spans [B, G, 2]) -> scalar.

    Cross-entropy is that of transformers' models over the positions that can be answered with.

    Raises:
        RelossError: a learned loss without its surrogate.
    """

    def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
        return ReadingReLoss.ordinary_loss(outputs[None], targets[None])[0]

    if run.loss == "ce":
        return cross_entropy
    if run.surrogate is None:
        raise RelossError(f"loss '{run.loss}' needs a learned surrogate")
    surrogate, weight = run.surrogate.to(device), run.config.train.ordinary_weight
    if weight == 0:
        return surrogate
    return lambda outputs, targets: surrogate(outputs, targets) + weight * cross_entropy(outputs, targets)


def collate(windows: Windows, rows: Sequence[int]) -> dict[str, Tensor]:
    """Return the windows at `rows`, cut to the longest: ids, types, masks and passage [B, L], targets [B, G, 2]."""
    lengths = windows.lengths[rows]
    longest = int(lengths.max())
    return {
        "input_ids": windows.input_ids[rows, :longest].long(),
        "token_type_ids": windows.token_types[rows, :longest].long(),
        "attention_mask": (torch.arange(longest) < lengths[:, None]).long(),
        "passage": windows.passage[rows, :longest],
        "targets": windows.targets[rows],
    }


def read(model: nn.Module, batch: dict[str, Tensor], length: int) -> Tensor:
    """Return start and end logits [B, 2, T] in float32, T = `length`; `MASKED` outside the passage but for [CLS]."""
    taken = ["input_ids", "attention_mask"]
    plain = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    if getattr(plain.config, "type_vocab_size", 0) > 1:
        taken.append("token_type_ids")
    found = model(**{name: batch[name] for name in taken})
    outputs = torch.stack((found.start_logits, found.end_logits), 1).float()
    outputs = outputs.where(batch["passage"][:, None], MASKED)
    return nn.functional.pad(outputs, (0, length - outputs.shape[-1]), value=MASKED)


@torch.inference_mode()
def _predict(accelerator: Accelerator, model: nn.Module, windows: Windows, config: ReadingExperiment) -> Tensor:
    """Return the logits of all windows, [F, 2, T] in float32 on the CPU; read by length, so that little is padding."""
    model.eval()
    order = torch.argsort(windows.lengths, descending=True, stable=True)
    loader = _loader(windows, order.tolist(), config, accelerator)
    found = torch.cat(
        [accelerator.gather_for_metrics(read(model, batch, config.data.max_length)).cpu() for batch in loader]
    )
    return torch.empty_like(found).index_copy_(0, order, found)


def _loader(windows: Windows, rows: list[int], config: ReadingExperiment, accelerator: Accelerator) -> DataLoader:
    """Return batches of the windows at `rows`, in that order, `train.batch_size` over all processes."""
    loader: DataLoader = DataLoader(
        rows,  # type: ignore[arg-type]
        batch_size=distributed.local_batch_size(config.train.batch_size),
        collate_fn=lambda chosen: collate(windows, chosen),
    )
    return accelerator.prepare(loader)


def _tokenizer(config: ReadingExperiment, splits: data.Splits) -> PreTrainedTokenizerFast:
    texts = (text for question in splits.train for text in (question.text, question.context))
    return models.load_tokenizer(config.model, texts)


def _windows(questions: Sequence[Question], tokenizer: PreTrainedTokenizerFast, config: ReadingExperiment) -> Windows:
    with distributed.main_first():
        return make_windows(questions, tokenizer, config.data)


class _Training:
    def __init__(self, run: Run) -> None:
        self.run = run
        self.config: ReadingExperiment = run.config
        splits = data.load(self.config.data, run.data)
        self.tokenizer = _tokenizer(self.config, splits)
        self.validated = splits.validation
        self.windows = _windows(splits.train, self.tokenizer, self.config)
        self.validation = _windows(splits.validation, self.tokenizer, self.config)

    def fit(self) -> None:
        with open_accelerator(self.config.train.precision) as accelerator:
            self.accelerator = accelerator
            self._prepare()
            first = self._resume()
            for part in range(first, self.config.train.epochs * self.config.train.checkpoints_per_epoch):
                self._part(part)
            self.run.record.save_weights(accelerator.unwrap_model(self.model).state_dict())
            accelerator.wait_for_everyone()  # all evaluate what the main process has written

    def _prepare(self) -> None:
        recipe = self.config.train
        set_seed(derive_seed(self.run.seed, "initialisation") % 2**32)
        model = models.load_model(self.config.model, self.tokenizer, self.config.data.max_length)
        if self.run.initial_weights is not None:
            model.load_state_dict(read_weights(self.run.initial_weights))
        decayed = [value for value in model.parameters() if value.dim() > 1]  # neither biases nor norms
        rest = [value for value in model.parameters() if value.dim() <= 1]
        groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=recipe.lr)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.criterion = make_criterion(self.run, self.accelerator.device)
        self.steps_per_epoch = max(len(self.windows) // recipe.batch_size, 1)

    def _resume(self) -> int:
        """Load the last checkpoint, if there is one; returns the part of all epochs to begin with."""
        state = load_state(self.run, self.accelerator, self.model, self.optimizer)
        if state is None:
            return 0
        parts = self.config.train.epochs * self.config.train.checkpoints_per_epoch
        say(f"going on from part {state['part']}/{parts}")
        return int(state["part"])

    def _part(self, part: int) -> None:
        """Train one part of an epoch, validate, and keep a checkpoint."""
        recipe, began = self.config.train, time.monotonic()
        epoch, piece = divmod(part, recipe.checkpoints_per_epoch)
        order = epoch_order(
            self.windows.lengths.numpy(), recipe, derive_seed(self.run.seed, "order", epoch), self.steps_per_epoch
        )
        first, last = (number * len(order) // recipe.checkpoints_per_epoch for number in (piece, piece + 1))
        loader = _loader(self.windows, order[first:last].flatten().tolist(), self.config, self.accelerator)
        set_seed(own_seed(self.run.seed, "part", epoch, piece) % 2**32)
        totals = torch.zeros(2, device=self.accelerator.device)  # loss, windows
        finite = FiniteLoss(self.accelerator.device)
        self.model.train()
        with progress(last - first, f"epoch {epoch + 1}/{recipe.epochs}, part {piece + 1}") as advance:
            for number, batch in enumerate(loader):
                step = epoch * self.steps_per_epoch + first + number
                totals += self._step(batch, step)
                finite.see(totals[0], step)
                advance()
        finite.check()
        self.run.flush_bank()
        loss, windows = self.accelerator.reduce(totals, reduction="sum").tolist()
        seconds = time.monotonic() - began
        next_step = epoch * self.steps_per_epoch + last
        outputs = _predict(self.accelerator, self.model, self.validation, self.config)
        if self.accelerator.is_main_process:
            self._keep(part + 1, next_step, loss / windows, windows / seconds, outputs)

    def _keep(self, part: int, step: int, loss: float, speed: float, outputs: Tensor) -> None:
        """Log a part's training and validation, and write the checkpoint."""
        recipe, name = self.config.train, self.config.score
        reached = _score(outputs, self.validation, self.validated, self.config, f" after step {step - 1}")[0]
        epoch = part / recipe.checkpoints_per_epoch
        self.run.record.log(
            step,
            epoch=epoch,
            train_loss=loss,
            lr=learning_rate(recipe, step - 1, recipe.epochs * self.steps_per_epoch),
            windows_per_second=round(speed, 2),
            **{f"validation_{key}": reached[key] for key in dict.fromkeys((name, "f1", "exact_match"))},
        )
        kept = self.config.recording.examples
        self.run.record.save_predictions(part, outputs[:kept], self.validation.targets[:kept])
        say(
            f"epoch {epoch:g}/{recipe.epochs}: loss {loss:.4f}, {speed:.1f} windows/s, validation F1 "
            f"{reached['f1']:.4f}, exact match {reached['exact_match']:.4f}"
        )
        save_state(self.run, self.accelerator, self.model, self.optimizer, step, part=part)

    def _step(self, batch: dict[str, Tensor], step: int) -> Tensor:
        """Take one training step; returns the sum of the loss and the number of windows."""
        recipe = self.config.train
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step, recipe.epochs * self.steps_per_epoch)
        outputs = read(self.model, batch, self.config.data.max_length)
        loss = self.criterion(outputs, batch["targets"])
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        if recipe.clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), recipe.clip_norm)
        self.optimizer.step()
        if self.run.bank is not None:
            self.run.bank.append(outputs, batch["targets"], step)
        count = torch.tensor(float(len(outputs)), device=loss.device)
        return torch.stack([loss.detach() * count, count])


def epoch_order(lengths: np.ndarray, recipe: Train, seed: int, steps: int) -> np.ndarray:
    """Return the windows of each step of an epoch, [steps, batch], at random; what is left over waits for the next one.

    With `group_by_length`, 50 batches at a time are sorted by length first, so that little of a batch is padding.
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(lengths))[: steps * recipe.batch_size]
    size = min(recipe.batch_size, len(order))
    if recipe.group_by_length:
        pool = 50 * size
        order = np.concatenate(
            [
                chunk[np.argsort(lengths[chunk], kind="stable")]
                for chunk in np.split(order, range(pool, len(order), pool))
            ]
        )
    batches = order.reshape(steps, size)
    return generator.permutation(batches) if recipe.group_by_length else batches


def learning_rate(recipe: Train, step: int, steps: int) -> float:
    """Return the learning rate of a step of `steps`: linear up to lr during the warm-up, then linear down to 0."""
    warm = recipe.warmup * steps
    return recipe.lr * min((step + 1) / max(warm, 1.0), (steps - step) / max(steps - warm, 1.0), 1.0)
