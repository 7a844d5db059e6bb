"""The learned loss as a module: it takes batches as the training loop has them, and saves and loads as one folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from reloss.metric_loss.kinds import KINDS, Kind, check_labels
from reloss.metric_loss.zoo import load_surrogate, zoo_names
from reloss.metrics.shapes import ShapeError, check_tensors
from reloss.runtime.errors import RelossError, UsageError, unknown
from reloss.surrogates import SurrogateLoss, pretrained_names, registry
from reloss.surrogates.storage import is_saved, read_card

KIND = "predictions"  # of the card: name of the kind of predictions


class MetricLoss(nn.Module):
    """A loss for a metric: `loss(outputs, targets)` returns a scalar.

    Args:
        surrogate: a fitted surrogate, or an expected metric.
        kind: how batches become what the surrogate takes; see `KINDS` for the forms.
    """

    def __init__(self, surrogate: SurrogateLoss, kind: Kind) -> None:
        super().__init__()
        self.surrogate, self.kind = surrogate, kind
        self._saw_targets = False

    def forward(
        self,
        outputs: Tensor,
        targets: Tensor,
        weights: Tensor | None = None,
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> Tensor:
        """Return the loss of one batch, a scalar; 0 if all examples are ignored.

        Args:
            outputs: [B, ...] in a form of the kind.
            targets: [B, ...].
            weights: [B] weights of the examples; the mean is then weighted.
            reduction: `mean`, or as in torch, `sum`, or `none` for the losses of the examples [B].

        Raises:
            ValueError: the batch has another form, or the first one has other labels; or there are weights or another
                reduction, but the loss belongs to the batch as a whole, as for F1, or ignored examples were dropped.
        """
        check_tensors(outputs=outputs, targets=targets)
        if not self._saw_targets and not torch.compiler.is_compiling():
            check_labels(targets, self.kind)
            self._saw_targets = True
        try:
            prepared, labels = self.kind.prepare(outputs, targets)
            if weights is not None or reduction != "mean":
                return self._reduced(prepared, labels, weights, reduction)
            return self.surrogate(prepared, labels) if len(prepared) else prepared.sum()
        except (IndexError, RuntimeError, ShapeError) as error:
            raise ValueError(
                f"outputs {list(outputs.shape)} and targets {list(targets.shape)} are not {self.kind.title}: expected "
                f"{self.kind.shapes} ({error})"
            ) from error

    def _reduced(self, outputs: Tensor, targets: Tensor, weights: Tensor | None, reduction: str) -> Tensor:
        if not self.surrogate.decomposes:
            raise ValueError(
                f"{type(self.surrogate).__name__} scores a batch as a whole, so it has neither weights of examples nor "
                "another reduction than mean; select or repeat examples instead"
            )
        losses = self.surrogate.per_item(outputs[:, None], targets[:, None])
        if weights is not None and weights.shape != losses.shape:
            raise ValueError(f"weights {list(weights.shape)}, but there are {len(losses)} examples that count")
        weighted = losses if weights is None else losses * weights
        if reduction == "none":
            return weighted
        return weighted.sum() / (1 if reduction == "sum" else len(losses) if weights is None else weights.sum())

    def extra_repr(self) -> str:
        """Return the forms of a batch, for `print`."""
        return f"{self.kind.title}: {self.kind.shapes}"

    def save_pretrained(self, path: str | Path, card: dict[str, Any] | None = None) -> None:
        """Write weights and card into the folder `path`; `load` reads them."""
        self.surrogate.save_pretrained(path, {**(card or {}), KIND: self.kind.name})

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Self:
        """Return the loss saved in the folder `path`, frozen.

        Raises:
            UsageError: there is no such folder.
            RelossError: the folder is damaged, or holds a surrogate without its kind of predictions.
        """
        surrogate = registry.load(path)
        name = read_card(Path(path)).get(KIND)
        if name not in KINDS:
            raise RelossError(f"{path} holds a surrogate that was not saved by MetricLoss; load it with reloss.load")
        return cls(surrogate, KINDS[name])


class MixedLoss(nn.Module):
    """The sum of an ordinary loss and a learned one, `ordinary + weight * learned`.

    Args:
        ordinary: (outputs, targets) -> scalar.
        learned: (outputs, targets) -> scalar.
        weight: weight of the learned loss. Its gradient has the ordinary loss's size, so 1 mixes them in equal parts.
    """

    def __init__(self, ordinary: nn.Module, learned: nn.Module, weight: float = 1.0) -> None:
        super().__init__()
        self.ordinary, self.learned, self.weight = ordinary, learned, weight

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of one batch, a scalar: outputs [B, ...], targets [B, ...]."""
        return self.ordinary(outputs, targets) + self.weight * self.learned(outputs, targets)


class OrdinaryLoss(nn.Module):
    """The ordinary loss of a kind of predictions, as the surrogate defines it: (outputs, targets) -> scalar."""

    def __init__(self, surrogate: SurrogateLoss, kind: Kind) -> None:
        super().__init__()
        self.ordinary_loss, self.kind = type(surrogate).ordinary_loss, kind

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of one batch, a scalar: outputs [B, ...], targets [B, ...] in a form of the kind."""
        outputs, targets = self.kind.prepare(outputs, targets)
        return self.ordinary_loss(outputs[None], targets[None])[0]


def load(name_or_path: str | Path) -> MetricLoss | SurrogateLoss:
    """Return a fitted loss, frozen: a name in `zoo_names()` or `pretrained_names()`, or a saved folder.

    A loss of the zoo, such as "f1", and one from `learn_loss` come back as `MetricLoss`, a surrogate as its own class.
    A folder that holds a loss comes before a name.

    Raises:
        UsageError: there is no such folder or name.
        RelossError: the files are damaged.
    """
    name, path = str(name_or_path), Path(name_or_path)
    if path.is_dir() and (is_saved(path) or name not in zoo_names()):
        return MetricLoss.from_pretrained(path) if read_card(path).get(KIND) in KINDS else registry.load(path)
    if name in zoo_names():
        surrogate, kind = load_surrogate(name)
        return MetricLoss(surrogate, KINDS[kind])
    if path.exists() or name in pretrained_names():
        return registry.load(name_or_path)
    error = unknown("loss", name, [*zoo_names(), *pretrained_names()])
    raise UsageError(f"{error} (`reloss zoo` lists the names; the folder of a saved loss is a path)")
