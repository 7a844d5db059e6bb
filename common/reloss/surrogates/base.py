"""What all surrogates share: loss(outputs, targets), per_item, freezing, saving and loading."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from reloss.runtime.errors import RelossError, UsageError
from reloss.runtime.files import atomic, sha256_of, short_hash, write_json
from reloss.surrogates.options import Fidelity, Input, Output
from reloss.surrogates.pretrained import find_pretrained, read_card, read_weights


class SurrogateLoss(nn.Module, ABC):
    """A small network that maps a batch of outputs and targets to a loss and, once learned, is frozen and trained with.

    Args:
        scale: a constant by which the loss is multiplied. It leaves every ranking as it is and sets the size of the
            gradient; `fit_surrogate(calibrate=True)` chooses it.

    Raises:
        ValueError: the scale is not a positive number.
    """

    reaches_any_value: ClassVar[bool] = True
    """Whether the network can give losses of any size; if not, one that learns a metric's value is scaled first."""

    has_curve: ClassVar[bool] = False
    """Whether the loss of an example is a curve over the probability of its target, which `curve_at` gives."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < math.inf:
            raise ValueError(f"scale is a positive number, not {scale!r}")
        self.scale = scale

    @abstractmethod
    def per_item(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each of N items: outputs [N, B, ...], targets [N, B, ...] -> [N]."""

    @staticmethod
    @abstractmethod
    def ordinary_loss(outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss that is usual for such predictions, of each of N items: [N, B, ...], [N, B, ...] -> [N]."""

    @classmethod
    def arguments(cls, shape: Sequence[int], *, fidelity: Fidelity, input: Input, output: Output) -> dict[str, Any]:
        """Return the constructor's arguments that these choices lead to; see `registry.build`.

        Args:
            shape: of one example's outputs.
            fidelity: `released` or `corrected`.
            input: how probabilities enter the network.
            output: form of the network's output.

        Raises:
            ValueError: this kind takes no outputs of this shape.
        """
        return {}

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """Return the constructor's arguments that make a surrogate of this shape."""

    @classmethod
    def options_of(cls, weights: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return what a file of weights alone shows of the constructor's arguments; here nothing."""
        return {}

    def curve_at(self, log_p: Tensor) -> Tensor:
        """Return the loss of examples whose targets have these log-probabilities: [...] -> [...].

        Only where `has_curve`.
        """
        raise NotImplementedError(f"the loss of {type(self).__name__} is not a curve over the target's probability")

    @staticmethod
    def gold(targets: Tensor) -> Tensor:
        """Return what of some targets is of the examples, whatever was predicted for them; here all of it."""
        return targets

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise ValueError unless it can learn from such predictions: outputs [N, B, ...], targets [N, B, ...].

        Here unless it can give their loss; a surrogate that knows its predictions better says what to do with others.
        """
        device = next(self.parameters()).device
        try:
            with torch.no_grad():
                self.per_item(outputs.to(device), targets.to(device))
        except (IndexError, RuntimeError, TypeError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error

    def statistics(self, outputs: Tensor) -> Tensor | None:
        """Return what the loss needs of outputs [N, B, ...] whatever their targets, [N, B, S], to be computed once.

        None, as here, if it needs the outputs themselves.
        """
        return None

    def losses_and_norms(
        self, outputs: Tensor, targets: Tensor, statistics: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the losses [N] and the norm of each example's gradient of its item's loss [N, B].

        Both are differentiable in the parameters. Here by autograd, for any network; `statistics` are not used.
        """
        outputs = outputs.detach().requires_grad_()
        losses = self.per_item(outputs, targets)
        return losses, gradient_norms(losses, outputs, create_graph=True)

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of one batch, a scalar: outputs [B, ...], targets [B, ...]."""
        return self.per_item(outputs[None], targets[None])[0]

    def freeze(self) -> Self:
        """Stop learning: parameters take no gradient, dropout is off. Returns the surrogate itself."""
        return self.requires_grad_(False).eval()

    def save_pretrained(self, path: str | Path, card: dict[str, Any] | None = None) -> None:
        """Write `surrogate.safetensors`, then `surrogate.json` (class, options and `card`), into the folder `path`."""
        path = Path(path)
        weights = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        with atomic(path / "surrogate.safetensors") as temporary:
            save_file(weights, temporary)
        built = {"class": type(self).__name__, "options": self.options()}
        sums = {"sha256": sha256_of(path / "surrogate.safetensors"), "options_hash": short_hash(built)}
        write_json(path / "surrogate.json", {**built, **(card or {}), **sums})

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **options: Any) -> Self:
        """Load a surrogate, frozen.

        Args:
            name_or_path: a folder written by `save_pretrained`; a file of weights alone: safetensors, or a plain state
                dict such as the authors released (`.ckpt`, read with `weights_only`); or, where no such path exists, a
                name in `pretrained_names()`: of a surrogate that ships with the package, such as
                "classification/cifar10", or of the authors' weights, such as "released/cls", downloaded the first time.
            options: constructor arguments for a file of weights; by default those of the release, such as the size of
                the heatmaps of "released/pose_384x288".

        Raises:
            UsageError: nothing is there and no surrogate for this class has that name, or options were given for a
                folder, which has its own.
            RelossError: the file cannot be downloaded, is damaged, of another class, or its parameters do not fit.
        """
        path = Path(name_or_path)
        if not path.exists():
            path, known = find_pretrained(str(name_or_path), cls.__name__)
            options = {**known, **options}
        if path.is_dir():
            if options:
                raise UsageError(f"{path} says itself how its surrogate is built; drop {', '.join(options)}")
            surrogate, weights = cls._from_folder(path), read_weights(path / "surrogate.safetensors")
        else:
            try:
                weights = read_weights(path)
                surrogate = cls(**{**cls.options_of(weights), **options})
            except (TypeError, ValueError) as error:
                raise UsageError(f"no {cls.__name__} with {options}: {error}") from error
        try:
            surrogate.load_state_dict(weights)
        except RuntimeError as error:
            reasons = "; ".join(line.strip() for line in str(error).splitlines()[1:])
            raise RelossError(f"the weights in {path} do not fit {cls.__name__}: {reasons}") from error
        return surrogate.freeze()

    @classmethod
    def _from_folder(cls, folder: Path) -> Self:
        """Return the surrogate that the card in `folder` describes, with fresh weights; checks the checksums first."""
        path, weights, card = folder / "surrogate.json", folder / "surrogate.safetensors", read_card(folder)
        if card.get("sha256") is not None and weights.exists() and sha256_of(weights) != card["sha256"]:
            raise RelossError(f"{weights} is damaged: its checksum is not that in surrogate.json")
        if card["class"] != cls.__name__:
            raise RelossError(f"{path} describes a {card['class']}, not a {cls.__name__}")
        written = card.get("options_hash")  # not in cards of earlier versions
        if written not in (None, short_hash({name: card[name] for name in ("class", "options")})):
            raise RelossError(f"{path} was changed: its options are not those that its surrogate was saved with")
        try:
            return cls(**card["options"])
        except (TypeError, ValueError) as error:
            raise RelossError(f"{path} describes no {cls.__name__} of this version: {error}") from error


def check_sizes(**sizes: Any) -> None:
    """Raise ValueError unless each size of a network, given by its name, is a whole number of at least 1."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name} is a whole number of at least 1, not {size!r}")


def gradient_norms(losses: Tensor, outputs: Tensor, create_graph: bool = False) -> Tensor:
    """Return the norm of each example's gradient of its item's loss: losses [N], outputs [N, B, ...] -> [N, B]."""
    (gradients,) = torch.autograd.grad(losses.sum(), outputs, create_graph=create_graph)
    return torch.linalg.vector_norm(gradients[..., None].flatten(2), dim=-1)
