"""fairseq's translation tasks, with hooks: they report each batch to observers, and add two options.

fairseq-train has no callbacks, but it calls its *task* for every batch, epoch and checkpoint. So these two tasks, for
autoregressive and non-autoregressive models, are fairseq's own and pass each call on to the observers of the process
(see watcher.py). A forward hook catches the model's outputs, so nothing is computed twice. Options: `--bfloat16`, and
`--initial-weights` to start from another model.

Registered as `reloss_translation` and `reloss_translation_lev`. Without options and observers they behave as fairseq's.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field  # fairseq reads the fields' types: annotations must not be postponed
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from fairseq.tasks import register_task
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from fairseq.tasks.translation_lev import TranslationLevenshteinConfig, TranslationLevenshteinTask
from torch import Tensor

from reloss.runtime.errors import UsageError
from reloss.runtime.progress import say
from reloss.surrogates.expected.translation import gold_matrix
from reloss.surrogates.translation import NO_TOKEN

SPECIAL = -2  # in recorded targets: a special symbol, which is trained on but is no word for BLEU
BFLOAT16 = {"help": "compute in bfloat16 by autocast, on any device; weights stay in float32"}
INITIAL = {"help": "checkpoint of a model with the same dictionary; training starts from those weights that fit"}


class Observer(Protocol):
    """An observer of a training."""

    def begin_epoch(self, epoch: int) -> None:
        """Epoch `epoch`, counted from 1, begins."""

    def trained(self, predicted: Callable[[], tuple[Tensor, Tensor]], update: int) -> None:
        """A batch was trained on; `predicted` computes outputs and targets, see `gold_tokens`."""

    def validated(self, ids: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """A batch with the sentences `ids` [B] was validated on. fairseq may repeat sentences to even out processes."""

    def end_epoch(self, task: Any, model: Any, stats: dict[str, Any]) -> None:
        """Training and validation of the epoch are done; its checkpoint is written next."""

    def state_dict(self) -> dict[str, Any]:
        """Return what the checkpoint stores for the observer."""


_observers: list[Observer] = []


@contextmanager
def observed_by(observer: Observer) -> Iterator[None]:
    """Report the trainings inside this block to `observer`."""
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)


def gold_tokens(
    log_probs: Tensor, targets: Tensor, dictionary: Any, *, all_positions: bool = False
) -> tuple[Tensor, Tensor]:
    """Return what a bank stores of a batch.

    Args:
        log_probs: [B, T, V].
        targets: [B, T] gold tokens.
        dictionary: fairseq's dictionary.
        all_positions: whether to return what each position gives to the gold tokens of all positions. An autoregressive
            model has seen the gold tokens before its position, so for it only the position's own one means something.

    Returns:
        The log-probabilities of the gold tokens, 0 for padding: [B, T], or [B, T, T] for all positions (rows) and all
        gold tokens (columns). And the gold and the most probable tokens [B, T, 2], see `mark_symbols`.
    """
    real = targets != dictionary.pad()
    if all_positions:
        gold = gold_matrix(log_probs, targets).where(real[:, :, None] & real[:, None], 0)
    else:
        gold = log_probs.gather(-1, targets[..., None]).squeeze(-1).where(real, 0)
    return gold, mark_symbols(torch.stack([targets, log_probs.argmax(-1)], -1), real, dictionary)


def mark_symbols(tokens: Tensor, real: Tensor, dictionary: Any) -> Tensor:
    """Return tokens [B, T, 2] with NO_TOKEN where `real` [B, T] is false, and SPECIAL for symbols that are no words."""
    symbols = torch.tensor([dictionary.bos(), dictionary.eos(), dictionary.pad()], device=tokens.device)
    tokens = tokens.masked_fill(torch.isin(tokens, symbols), SPECIAL)
    return tokens.masked_fill(~real[..., None], NO_TOKEN).int()


class _Watched:
    """The hooks of both tasks. In the order of inheritance, this class comes before fairseq's task."""

    cfg: Any

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        model = super().build_model(cfg, from_checkpoint)  # type: ignore[misc]
        if self.cfg.initial_weights:
            load_fitting_weights(model, Path(self.cfg.initial_weights))
        return model

    def build_criterion(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        self.criterion = super().build_criterion(cfg, from_checkpoint)  # type: ignore[misc]
        return self.criterion

    def begin_epoch(self, epoch: int, model: Any) -> None:
        super().begin_epoch(epoch, model)  # type: ignore[misc]
        for observer in _observers:
            observer.begin_epoch(epoch)

    def train_step(
        self, sample: Any, model: Any, criterion: Any, optimizer: Any, update_num: int, ignore_grad: bool = False
    ) -> Any:
        with self._outputs_of(model) as outputs, self._precision(sample):
            result = super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)  # type: ignore[misc]
        for observer in _observers:
            if not ignore_grad:
                observer.trained(partial(self._gold_tokens, model, outputs[0], sample), update_num)
        return result

    def valid_step(self, sample: Any, model: Any, criterion: Any, **extra: Any) -> Any:
        with self._outputs_of(model) as outputs, self._precision(sample):
            result = super().valid_step(sample, model, criterion, **extra)  # type: ignore[misc]
        for observer in _observers:
            observer.validated(sample["id"], *self._gold_tokens(model, outputs[0], sample))
        return result

    def post_validate(self, model: Any, stats: dict[str, Any], agg: Any) -> None:
        for observer in _observers:
            observer.end_epoch(self, model, stats)

    def state_dict(self) -> dict[str, Any]:
        state = dict(super().state_dict())  # type: ignore[misc]
        for observer in _observers:
            state |= observer.state_dict()
        return state

    def _precision(self, sample: Any) -> torch.autocast:
        device = sample["target"].device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.cfg.bfloat16)

    @contextmanager
    def _outputs_of(self, model: Any) -> Iterator[list[Any]]:
        """Yield a list that receives the model's outputs."""
        received: list[Any] = []
        handle = model.register_forward_hook(lambda module, inputs, outputs: received.append(outputs))
        try:
            yield received
        finally:
            handle.remove()

    @torch.no_grad()
    def _gold_tokens(self, model: Any, outputs: Any, sample: Any) -> tuple[Tensor, Tensor]:
        non_autoregressive = isinstance(outputs, dict)  # such a model returns several named outputs
        if non_autoregressive:
            log_probs = outputs["word_ins"]["out"].float().log_softmax(-1)
        else:
            log_probs = model.get_normalized_probs(outputs, log_probs=True).float()
        dictionary = self.target_dictionary  # type: ignore[attr-defined]
        return gold_tokens(log_probs, sample["target"], dictionary, all_positions=non_autoregressive)


def load_fitting_weights(model: torch.nn.Module, checkpoint: Path) -> None:
    """Load those weights of a fairseq checkpoint into `model` whose names and shapes are the model's.

    Raises:
        UsageError: the embeddings do not fit, so tokens would get the meaning of other tokens.
    """
    weights = model.state_dict()
    initial = torch.load(checkpoint, map_location="cpu", weights_only=True)["model"]
    fitting = {name: value for name, value in initial.items() if name in weights and weights[name].shape == value.shape}
    if "encoder.embed_tokens.weight" not in fitting:
        raise UsageError(
            f"{checkpoint} has embeddings of another size than this model's; choose the same data.subwords and "
            "model.width, or --set train.from_teacher=false"
        )
    model.load_state_dict({**weights, **fitting})
    say(f"starting from {len(fitting)} of {len(weights)} weights of {checkpoint}")


@dataclass
class WatchedTranslationConfig(TranslationConfig):
    """Arguments of `reloss_translation`."""

    bfloat16: bool = field(default=False, metadata=BFLOAT16)
    initial_weights: str = field(default="", metadata=INITIAL)


@dataclass
class WatchedLevenshteinConfig(TranslationLevenshteinConfig):
    """Arguments of `reloss_translation_lev`."""

    bfloat16: bool = field(default=False, metadata=BFLOAT16)
    initial_weights: str = field(default="", metadata=INITIAL)


@register_task("reloss_translation", dataclass=WatchedTranslationConfig)
class WatchedTranslation(_Watched, TranslationTask):
    """fairseq's `translation` with hooks."""


@register_task("reloss_translation_lev", dataclass=WatchedLevenshteinConfig)
class WatchedLevenshtein(_Watched, TranslationLevenshteinTask):
    """fairseq's `translation_lev` with hooks."""
