"""Training and evaluation with accelerate, in one or several processes."""

from __future__ import annotations

import time
from collections.abc import Sequence

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
from reloss.runtime.progress import progress, say
from reloss_tasks.accelerated import (
    FiniteLoss,
    check_outputs,
    learned_weights,
    load_state,
    open_accelerator,
    save_state,
)
from reloss_tasks.mrc import data, models
from reloss_tasks.mrc.config import ReadingExperiment, Train
from reloss_tasks.mrc.data import Question
from reloss_tasks.mrc.losses import make_loss
from reloss_tasks.mrc.scoring import best_threshold, examples, first_sentence, mean_scores
from reloss_tasks.mrc.windows import Windows, make_windows, read_answers


def train(run: Run[ReadingExperiment]) -> None:
    """Train `run` to its last epoch, from its last checkpoint if there is one, and write the final weights.

    An epoch is trained in parts, each followed by a validation and a checkpoint. The randomness of a part depends only
    on (seed, epoch, part), so on a CPU an interrupted run ends with the same weights.

    Raises:
        RelossError: data or model are missing, a checkpoint does not fit, or the loss is not finite.
    """
    _Training(run).fit()


def evaluate(run: Run[ReadingExperiment]) -> dict[str, float]:
    """Return the official scores on the test questions and, named `validation_*`, on held-out ones if there are any.

    `first_sentence_f1` is the score of answering with the passage's first sentence. The record receives the answers:
    `predictions.json` (id to text, the format of SQuAD's evaluation) and `examples.json`.
    """
    config = run.config
    splits = data.load(config.data, run.data)
    tokenizer = _tokenizer(config, splits)
    with open_accelerator(config.train.precision) as accelerator:
        model = models.load_model(config.model, tokenizer, config.data.max_length)
        model.load_state_dict(read_weights(run.record.weights))
        model = accelerator.prepare(model)

        def answer(questions: list[Question]) -> tuple[dict[str, float], dict[str, str]]:
            windows = _windows(questions, tokenizer, config)
            return _score(_predict(accelerator, model, windows, config), windows, questions, config)

        scores, answers = answer(splits.test)
        openings = {question.id: first_sentence(question.context) for question in splits.test}
        scores["first_sentence_f1"] = mean_scores(openings, splits.test, config.data.rules)["f1"]
        if splits.validation is not splits.test:
            scores |= {f"validation_{name}": value for name, value in answer(splits.validation)[0].items()}
    run.record.save_json("predictions", answers)
    run.record.save_examples(examples(answers, splits.test, config.data.rules))
    return scores


def _score(
    outputs: Tensor, windows: Windows, questions: Sequence[Question], config: ReadingExperiment, when: str = ""
) -> tuple[dict[str, float], dict[str, str]]:
    """Return the official scores of the outputs [F, 2, T], and the answers by the questions' ids.

    Raises:
        RelossError: the outputs are not finite; for `when` see `check_outputs`.
    """
    check_outputs(outputs, when)
    texts, null_leads = read_answers(outputs, windows, questions, config.data.max_answer)
    ids = [question.id for question in questions]
    answers = dict(zip(ids, texts, strict=True))
    if not config.data.unanswerable:
        return mean_scores(answers, questions, config.data.rules), answers
    leads = dict(zip(ids, null_leads.tolist(), strict=True))
    best = best_threshold(answers, leads, questions, config.data.rules)
    answers = {name: "" if leads[name] > config.data.null_threshold else text for name, text in answers.items()}
    return {**mean_scores(answers, questions, config.data.rules), **best}, answers


def collate(windows: Windows, rows: Sequence[int]) -> dict[str, Tensor]:
    """Return the windows at `rows`, cut to the longest: ids, types, masks, passage [B, L], and targets [B, G, 2]."""
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
    """Return start and end logits [B, 2, T] in float32, T = `length`; `MASKED` outside of passage and [CLS]."""
    names = ["input_ids", "attention_mask"]
    plain = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    if getattr(plain.config, "type_vocab_size", 0) > 1:
        names.append("token_type_ids")
    logits = model(**{name: batch[name] for name in names})
    outputs = torch.stack((logits.start_logits, logits.end_logits), 1).float()
    outputs = outputs.where(batch["passage"][:, None], MASKED)
    return nn.functional.pad(outputs, (0, length - outputs.shape[-1]), value=MASKED)


@torch.inference_mode()
def _predict(accelerator: Accelerator, model: nn.Module, windows: Windows, config: ReadingExperiment) -> Tensor:
    """Return the logits of all windows, [F, 2, T] in float32 on the CPU. Sorting by length keeps padding short."""
    model.eval()
    order = torch.argsort(windows.lengths, descending=True, stable=True)
    loader = _loader(windows, order.tolist(), config, accelerator)
    outputs = torch.cat(
        [accelerator.gather_for_metrics(read(model, batch, config.data.max_length)).cpu() for batch in loader]
    )
    return torch.empty_like(outputs).index_copy_(0, order, outputs)


def _loader(windows: Windows, rows: list[int], config: ReadingExperiment, accelerator: Accelerator) -> DataLoader:
    """Return batches of the windows at `rows`, in this order; a batch has `train.batch_size` over all processes."""
    loader: DataLoader = DataLoader(
        rows,  # type: ignore[arg-type]
        batch_size=distributed.local_batch_size(config.train.batch_size),
        collate_fn=lambda batch: collate(windows, batch),
    )
    return accelerator.prepare(loader)


def _tokenizer(config: ReadingExperiment, splits: data.Splits) -> PreTrainedTokenizerFast:
    texts = (text for question in splits.train for text in (question.text, question.context))
    return models.load_tokenizer(config.model, texts)


def _windows(questions: Sequence[Question], tokenizer: PreTrainedTokenizerFast, config: ReadingExperiment) -> Windows:
    with distributed.main_first():
        return make_windows(questions, tokenizer, config.data)


class _Training:
    """The training of one run. A part is 1/checkpoints_per_epoch of an epoch; parts are counted over all epochs."""

    def __init__(self, run: Run[ReadingExperiment]) -> None:
        self.run = run
        self.config = run.config
        splits = data.load(self.config.data, run.data)
        self.tokenizer = _tokenizer(self.config, splits)
        self.validation_questions = splits.validation
        self.train_windows = _windows(splits.train, self.tokenizer, self.config)
        self.validation_windows = _windows(splits.validation, self.tokenizer, self.config)

    def fit(self) -> None:
        with open_accelerator(self.config.train.precision) as accelerator:
            self.accelerator = accelerator
            self._prepare()
            for part in range(self._resume(), self.parts):
                self._run_part(part)
            self.run.record.save_weights(accelerator.unwrap_model(self.model).state_dict())
            accelerator.wait_for_everyone()  # every process evaluates the weights that the main process writes

    def _prepare(self) -> None:
        recipe = self.config.train
        set_seed(derive_seed(self.run.seed, "initialisation") % 2**32)
        model = models.load_model(self.config.model, self.tokenizer, self.config.data.max_length)
        if self.run.initial_weights is not None:
            model.load_state_dict(read_weights(self.run.initial_weights))
        decayed = [value for value in model.parameters() if value.dim() > 1]  # biases and norms are not decayed
        rest = [value for value in model.parameters() if value.dim() <= 1]
        groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=recipe.lr)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.loss = make_loss(self.run, self.accelerator.device)
        self.steps_per_epoch = max(len(self.train_windows) // recipe.batch_size, 1)

    def _resume(self) -> int:
        """Load the last checkpoint, if there is one, and return the number of finished parts."""
        state = load_state(self.run, self.accelerator, self.model, self.optimizer, self.loss)
        if state is None:
            return 0
        say(f"resuming from part {state['part']}/{self.parts}")
        return int(state["part"])

    @property
    def parts(self) -> int:
        return self.config.train.epochs * self.config.train.checkpoints_per_epoch

    def _run_part(self, part: int) -> None:
        """Train one part, validate, and write a checkpoint."""
        epoch, piece = divmod(part, self.config.train.checkpoints_per_epoch)
        order = self._order(epoch)
        first, last = (number * len(order) // self.config.train.checkpoints_per_epoch for number in (piece, piece + 1))
        rows = order[first:last].flatten().tolist()
        loader = _loader(self.train_windows, rows, self.config, self.accelerator)
        set_seed(own_seed(self.run.seed, "part", epoch, piece) % 2**32)
        loss, speed = self._train_batches(loader, epoch * self.steps_per_epoch + first, epoch)
        outputs = _predict(self.accelerator, self.model, self.validation_windows, self.config)
        if self.accelerator.is_main_process:
            self._record_part(part + 1, epoch * self.steps_per_epoch + last, loss, speed, outputs)

    def _order(self, epoch: int) -> np.ndarray:
        lengths, seed = self.train_windows.lengths.numpy(), derive_seed(self.run.seed, "order", epoch)
        return epoch_order(lengths, self.config.train, seed, self.steps_per_epoch)

    def _train_batches(self, loader: DataLoader, first_step: int, epoch: int) -> tuple[float, float]:
        """Train on the batches of `loader`; return the mean loss and the windows per second."""
        start = time.monotonic()
        totals = torch.zeros(2, device=self.accelerator.device)  # loss, windows
        finite = FiniteLoss(self.accelerator.device)
        self.model.train()
        with progress(len(loader), f"epoch {epoch + 1}/{self.config.train.epochs}") as advance:
            for step, batch in enumerate(loader, first_step):
                totals += self._take_step(batch, step)
                finite.update(totals[0], step)
                advance()
        finite.check()
        self.run.flush_bank()
        loss, windows = self.accelerator.reduce(totals, reduction="sum").tolist()
        return loss / windows, windows / (time.monotonic() - start)

    def _take_step(self, batch: dict[str, Tensor], step: int) -> Tensor:
        """Take one training step; return the sum of the losses and the number of windows, [2]."""
        recipe = self.config.train
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step, recipe.epochs * self.steps_per_epoch)
        outputs = read(self.model, batch, self.config.data.max_length)
        loss = self.loss(outputs, batch["targets"])
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        if recipe.clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), recipe.clip_norm)
        self.optimizer.step()
        if self.run.bank is not None:
            self.run.bank.append(outputs, batch["targets"], step)
        count = torch.tensor(float(len(outputs)), device=loss.device)
        return torch.stack([loss.detach() * count, count])

    def _record_part(self, parts: int, step: int, loss: float, speed: float, outputs: Tensor) -> None:
        """Log the training and validation up to a number of parts, and write a checkpoint."""
        recipe, name = self.config.train, self.config.score
        when = f" after step {step - 1}"
        scores, _ = _score(outputs, self.validation_windows, self.validation_questions, self.config, when)
        epoch = parts / recipe.checkpoints_per_epoch
        self.run.record.log(
            step,
            epoch=epoch,
            train_loss=loss,
            lr=learning_rate(recipe, step - 1, recipe.epochs * self.steps_per_epoch),
            windows_per_second=round(speed, 2),
            **{f"validation_{key}": scores[key] for key in dict.fromkeys((name, "f1", "exact_match"))},
            **learned_weights(self.loss),
        )
        count = self.config.recording.examples
        self.run.record.save_predictions(parts, outputs[:count], self.validation_windows.targets[:count])
        say(
            f"epoch {epoch:g}/{recipe.epochs}: loss {loss:.4f}, {speed:.1f} windows/s, validation F1 "
            f"{scores['f1']:.4f}, exact match {scores['exact_match']:.4f}"
        )
        save_state(self.run, self.accelerator, self.model, self.optimizer, self.loss, step, part=parts)


def epoch_order(lengths: np.ndarray, recipe: Train, seed: int, steps: int) -> np.ndarray:
    """Return the windows of each step of an epoch in random order, [steps, batch]; an incomplete batch is dropped.

    With `group_by_length`, windows are sorted by length within pools of 50 batches, so batches have little padding.
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
    """Return the learning rate of a step: up to lr during the warm-up, then down to 0 after `steps`, both linear."""
    warm = recipe.warmup * steps
    return recipe.lr * min((step + 1) / max(warm, 1.0), (steps - step) / max(steps - warm, 1.0), 1.0)
