"""fairseq's translation tasks, watched: they fill the bank, write metrics, and compute in bfloat16 on request.

Registered as `reloss_translation` and `reloss_translation_lev`. Without an observer they are fairseq's own.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field  # fairseq reads the types of their fields, so annotations are not put off
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
from reloss.surrogates.translation import NO_TOKEN

SPECIAL = -2  # in recorded targets: a special symbol, which is trained on but is no word to BLEU
BFLOAT16 = {"help": "compute in bfloat16 by autocast, on any device; weights stay in float32"}
INITIAL = {"help": "checkpoint of a model of the same dictionary, to begin with its weights as far as they fit"}


class Observer(Protocol):
    """Who watches a training."""

    def begin_epoch(self, epoch: int) -> None:
        """Epoch `epoch` begins, counted from 1."""

    def trained(self, predicted: Callable[[], tuple[Tensor, Tensor]], update: int) -> None:
        """A batch was trained on; `predicted` computes outputs [B, T] and targets [B, T, 2], see `gold_tokens`."""

    def validated(self, ids: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """A batch was validated on, of the sentences `ids` [B]; fairseq may repeat the first to even out processes."""

    def end_epoch(self, task: Any, model: Any, stats: dict[str, Any]) -> None:
        """All of the epoch was trained and validated on; its checkpoint is written next."""

    def state_dict(self) -> dict[str, Any]:
        """Return what the checkpoint keeps for the observer."""


_observers: list[Observer] = []


@contextmanager
def observed_by(observer: Observer) -> Iterator[None]:
    """Let the tasks of a training in this block tell `observer`."""
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)


def gold_tokens(log_probs: Tensor, targets: Tensor, dictionary: Any) -> tuple[Tensor, Tensor]:
    """Return what a bank keeps of a batch.

    Args:
        log_probs: [B, T, V].
        targets: [B, T] gold tokens.
        dictionary: fairseq's.

    Returns:
        The gold tokens' log-probabilities [B, T], 0 where there is none, and the gold and the most probable tokens
        [B, T, 2]: NO_TOKEN for padding, SPECIAL for other symbols that are no words.
    """
    padded = targets == dictionary.pad()
    gold = log_probs.gather(-1, targets[..., None]).squeeze(-1).masked_fill(padded, 0)
    tokens = torch.stack([targets, log_probs.argmax(-1)], -1)
    symbols = torch.tensor([dictionary.bos(), dictionary.eos(), dictionary.pad()], device=tokens.device)
    tokens = tokens.masked_fill(torch.isin(tokens, symbols), SPECIAL)
    return gold, tokens.masked_fill(padded[..., None], NO_TOKEN).int()


class _Watched:
    """What both tasks have in common; comes before fairseq's task in the order of inheritance."""

    cfg: Any

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        model = super().build_model(cfg, from_checkpoint)  # type: ignore[misc]
        if self.cfg.initial_weights:
            load_what_fits(model, Path(self.cfg.initial_weights))
        return model

    def begin_epoch(self, epoch: int, model: Any) -> None:
        super().begin_epoch(epoch, model)  # type: ignore[misc]
        for observer in _observers:
            observer.begin_epoch(epoch)

    def train_step(
        self, sample: Any, model: Any, criterion: Any, optimizer: Any, update_num: int, ignore_grad: bool = False
    ) -> Any:
        with self._seen(model) as seen, self._precision(sample):
            found = super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)  # type: ignore[misc]
        for observer in _observers:
            if not ignore_grad:
                observer.trained(partial(self._gold, model, seen[0], sample), update_num)
        return found

    def valid_step(self, sample: Any, model: Any, criterion: Any, **extra: Any) -> Any:
        with self._seen(model) as seen, self._precision(sample):
            found = super().valid_step(sample, model, criterion, **extra)  # type: ignore[misc]
        for observer in _observers:
            observer.validated(sample["id"], *self._gold(model, seen[0], sample))
        return found

    def post_validate(self, model: Any, stats: dict[str, Any], agg: Any) -> None:
        for observer in _observers:
            observer.end_epoch(self, model, stats)

    def state_dict(self) -> dict[str, Any]:
        own = super().state_dict()  # type: ignore[misc]
        return {**own, **{name: value for observer in _observers for name, value in observer.state_dict().items()}}

    def _precision(self, sample: Any) -> torch.autocast:
        device = sample["target"].device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.cfg.bfloat16)

    @contextmanager
    def _seen(self, model: Any) -> Iterator[list[Any]]:
        """Yield a list that the model's outputs are put into."""
        seen: list[Any] = []
        handle = model.register_forward_hook(lambda module, inputs, outputs: seen.append(outputs))
        try:
            yield seen
        finally:
            handle.remove()

    @torch.no_grad()
    def _gold(self, model: Any, outputs: Any, sample: Any) -> tuple[Tensor, Tensor]:
        if isinstance(outputs, dict):  # of a non-autoregressive model, each kind of output by its name
            log_probs = outputs["word_ins"]["out"].float().log_softmax(-1)
        else:
            log_probs = model.get_normalized_probs(outputs, log_probs=True).float()
        return gold_tokens(log_probs, sample["target"], self.target_dictionary)  # type: ignore[attr-defined]


def load_what_fits(model: torch.nn.Module, checkpoint: Path) -> None:
    """Give a model the weights of a checkpoint of fairseq's that have its names and shapes.

    Raises:
        UsageError: its embeddings are not among them, so that words would have others' meanings.
    """
    own, others = model.state_dict(), torch.load(checkpoint, map_location="cpu", weights_only=True)["model"]
    fitting = {name: value for name, value in others.items() if name in own and own[name].shape == value.shape}
    if "encoder.embed_tokens.weight" not in fitting:
        raise UsageError(f"{checkpoint} is of a model of another width or dictionary: nothing to begin with")
    model.load_state_dict({**own, **fitting})
    say(f"begins with {len(fitting)} of {len(own)} weights from {checkpoint}")


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
    """fairseq's `translation`, watched."""


@register_task("reloss_translation_lev", dataclass=WatchedLevenshteinConfig)
class WatchedLevenshtein(_Watched, TranslationLevenshteinTask):
    """fairseq's `translation_lev`, watched."""
