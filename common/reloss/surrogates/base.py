"""What every surrogate is made of: features, a small network, and a mean.

A metric tells which of two predictions is better but passes no useful gradient. A surrogate is a small network that
is fitted once to rank predictions as the metric does; then it is frozen and used as the loss. Each kind of prediction
brings its own features; the network and the mean over them are shared.
"""

from __future__ import annotations

import inspect
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from reloss.metrics.shapes import ShapeError, check_tensors
from reloss.runtime.errors import UsageError
from reloss.surrogates.checks import warn_of_probabilities, widen
from reloss.surrogates.network import evaluate
from reloss.surrogates.options import Features, Input, Output, Penalty
from reloss.surrogates.pretrained import find_pretrained
from reloss.surrogates.storage import load_file_of_weights, load_folder, save_surrogate

LARGEST = 1e6
"""Bounds the size of outputs: layers, squares and softmax are not finite for infinite or very large ones."""


class SurrogateLoss(nn.Module, ABC):
    """A learned loss: `reduce(network(features(outputs, targets)))`.

    A kind of surrogate defines its layers in the constructor, and `features`. It overrides `network` or `reduce` where
    the shared ones do not fit. Each argument of its constructor is kept as an attribute of the same name.

    Args:
        scale: constant factor of the loss. It changes no ranking, only the size of the gradient;
            `fit_surrogate(calibrate=True)` chooses it.

    Raises:
        ValueError: the scale is not a positive number.
    """

    output: Output = "monotone"
    """Form of the network's output; see `reloss.surrogates.options`."""

    penalty: ClassVar[Penalty] = "example"
    """The gradient penalty that suits this kind: what a fit with `penalty=auto` uses."""

    sees: ClassVar[Features] = "likelihood"
    """What the features are made of."""

    reaches_any_value: ClassVar[bool] = True
    """Whether the network can give losses of any size. If not, it is rescaled before it learns a metric's value."""

    takes_logits: ClassVar[bool] = False
    """Whether the outputs are logits. Then the first batch is checked for probabilities, a common mistake."""

    decomposes: ClassVar[bool] = False
    """Whether the loss of an item is the mean of its examples' own losses, so that examples can be weighted."""

    has_curve: ClassVar[bool] = False
    """Whether the loss of an example is a curve over the probability of its target; then `curve_at` returns it."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < math.inf:
            raise ValueError(f"scale must be a positive number, not {scale!r}")
        self.scale = scale
        self._saw_outputs = False
        self._frozen_names: list[str] = []  # of the parameters that are buffers while the surrogate is frozen

    # The three parts

    @abstractmethod
    def features(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the features of each group: outputs [N, B, ...], targets [N, B, ...] -> [N, G, F], or [N, G, H, F].

        Groups are what the loss is averaged over: examples, joints, tokens. A pure function, and the only part that
        knows the task.

        Raises:
            ValueError: the shapes do not agree.
        """

    def network(self, features: Tensor) -> Tensor:
        """Return the loss of each group: features [..., F] -> [...]."""
        losses = self.perceptron(features)
        return losses.abs() if self.output == "absolute" else losses

    def reduce(self, losses: Tensor, group_weights: Tensor | None) -> Tensor:
        """Return the loss of each item: the mean over its groups, times the scale: [N, G] or [N, G, H] -> [N]."""
        return (self.scale * losses).flatten(1).mean(-1)

    def group_weights(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """Return what `reduce` needs to know of the groups, such as which are real; None where all count alike."""
        return None

    def perceptron(self, features: Tensor) -> Tensor:
        """Return the output of the surrogate's linear layers, in the order of their definition: [..., F] -> [...]."""
        linears = [layer for layer in self.modules() if isinstance(layer, nn.Linear)]
        return evaluate(linears, features, monotone=self.output == "monotone")

    # The loss

    def per_item(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each of N items, in float32 or float64 as the parameters, also under autocast.

        The loss is finite for outputs of any size, infinite ones included: the size of outputs is bounded by `LARGEST`,
        beyond which the gradient is 0. It is NaN where an output is NaN. Parameters in half precision, in which losses
        overflow, are used in float32.

        Args:
            outputs: [N, B, ...] predictions; see `features` of the kind.
            targets: [N, B, ...].

        Returns:
            [N].

        Raises:
            ValueError: the shapes do not agree.
        """
        return self._compute(outputs, targets)

    def _compute(self, outputs: Tensor, targets: Tensor, group_weights: Tensor | None = None) -> Tensor:
        """Return the loss of each item, with other `group_weights` than the targets give if they are passed."""
        with torch.autocast(outputs.device.type, enabled=False):
            dtype = self.dtype
            if dtype.itemsize < torch.float32.itemsize:
                weights = itertools.chain(self.named_parameters(), self.named_buffers())
                wide = {f"surrogate.{name}": weight.float() for name, weight in weights if weight.is_floating_point()}
                return functional_call(_Computation(self), wide, (outputs, targets, group_weights))
            losses = self.network(self.features(bounded(outputs.to(dtype)), targets).to(dtype))
            if group_weights is None:
                group_weights = self.group_weights(outputs, targets)
            return self.reduce(losses, group_weights)

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of one batch, a scalar: outputs [B, ...], targets [B, ...].

        Raises:
            UsageError: a model is being trained with this surrogate, which has not been fitted.
            ValueError: the shapes do not agree.
        """
        self._refuse_unfitted(outputs, targets)
        if self.takes_logits and not self._saw_outputs and not torch.compiler.is_compiling():
            self._saw_outputs = True
            warn_of_probabilities(outputs)
        try:
            return self.per_item(outputs[None], targets[None])[0]
        except ShapeError as error:
            raise error.of_one_batch() from None

    def _refuse_unfitted(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise UsageError where a gradient would flow through this surrogate to a model, but it is not frozen.

        Raises:
            ValueError: outputs or targets are not a tensor.
        """
        check_tensors(outputs=outputs, targets=targets)
        if self._frozen_names or outputs.grad_fn is None:
            return
        if any(parameter.requires_grad for parameter in self.parameters()):
            raise UsageError(
                f"this {type(self).__name__} has not been fitted, so it cannot train a model: fit it with "
                "fit_surrogate, or load one with from_pretrained; to use its weights as they are, call freeze()"
            )

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the weights; float32 if there are none."""
        weight = self._first_weight()
        return torch.float32 if weight is None else weight.dtype

    def _first_weight(self) -> Tensor | None:
        weights = itertools.chain(self.parameters(), self.buffers())
        return next((weight for weight in weights if weight.is_floating_point()), None)

    @staticmethod
    @abstractmethod
    def ordinary_loss(outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the ordinary loss for such predictions, per item: outputs [N, B, ...], targets [N, B, ...] -> [N]."""

    def lowest(self) -> float | None:
        """Return a value that no loss is below, close to the loss of perfect predictions; None if it is not known."""
        return 0.0 if self.output == "absolute" else None

    def curve_at(self, log_p: Tensor) -> Tensor:
        """Return the loss of examples whose targets have these log-probabilities: [...] -> [...].

        Raises:
            NotImplementedError: the loss is no such curve; see `has_curve`.
        """
        raise NotImplementedError(f"the loss of {type(self).__name__} is not a curve over the target's probability")

    # What the fit needs

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise ValueError unless this surrogate can be fitted to outputs [N, B, ...] and targets [N, B, ...].

        This one tries to compute the loss. Kinds check shapes and labels, and their messages name the remedy.
        """
        weight = self._first_weight()
        device = outputs.device if weight is None else weight.device
        try:
            with torch.no_grad():
                self.per_item(outputs.to(device), targets.to(device))
        except (IndexError, RuntimeError, TypeError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error

    def statistics(self, outputs: Tensor) -> Tensor | None:
        """Return numbers [N, B, S] that the loss of outputs [N, B, ...] needs whatever the targets, computed once.

        None, as here, where the loss needs the outputs themselves.
        """
        return None

    def losses_and_norms(
        self, outputs: Tensor, targets: Tensor, statistics: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the losses [N], and the norm of each example's gradient of its item's loss [N, B].

        Both are differentiable in the parameters. This one uses autograd, for any network, and ignores `statistics`.
        """
        outputs = widen(outputs.detach()).requires_grad_()
        losses = self.per_item(outputs, targets)
        return losses, gradient_norms(losses, outputs, create_graph=True)

    @staticmethod
    def gold(targets: Tensor) -> Tensor:
        """Return the part of the targets that belongs to the examples, not to the predictions; all of it by default."""
        return targets

    def freeze(self) -> Self:
        """Stop learning, for good: dropout is off, and the weights become buffers. Returns the surrogate itself.

        Buffers are saved and moved like parameters. But `train()` and `requires_grad_()` of a module that holds this
        surrogate do not reach them, and no optimiser does. `unfreeze` makes them parameters again.
        """
        for path, parameter in list(self.named_parameters()):
            module, name = self._owner(path)
            delattr(module, name)
            module.register_buffer(name, parameter.detach())
            self._frozen_names.append(path)
        return self.eval()

    def unfreeze(self) -> Self:
        """Undo `freeze`, to fit the surrogate again. Returns the surrogate itself."""
        for path in self._frozen_names:
            module, name = self._owner(path)
            weight = module.get_buffer(name)
            delattr(module, name)
            module.register_parameter(name, nn.Parameter(weight))
        self._frozen_names = []
        return self.requires_grad_().train()

    def _owner(self, path: str) -> tuple[nn.Module, str]:
        """Return the module that holds the weight `path`, such as "loss.0.bias", and the name of the weight there."""
        prefix, _, name = path.rpartition(".")
        return self.get_submodule(prefix), name

    def train(self, mode: bool = True) -> Self:
        """Set training mode; a frozen surrogate stays in evaluation mode."""
        return super().train(mode and not self._frozen_names)

    # Building, saving and loading

    @classmethod
    def arguments(cls, shape: Sequence[int], *, features: Features, input: Input, output: Output) -> dict[str, Any]:
        """Return the constructor's arguments that follow from these choices; called by `registry.build`.

        Args:
            shape: shape of one example's outputs.
            features: `likelihood` or `released`.
            input: how probabilities enter the network.
            output: form of the network's output.

        Raises:
            ValueError: this kind takes no outputs of this shape.
        """
        return {}

    def options(self) -> dict[str, Any]:
        """Return the constructor's arguments that build a surrogate like this one."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    @classmethod
    def options_of(cls, weights: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the constructor's arguments that can be read from weights alone; none by default."""
        return {}

    def save_pretrained(self, path: str | Path, card: dict[str, Any] | None = None) -> None:
        """Write `surrogate.safetensors`, then `surrogate.json` (class, options and `card`), into the folder `path`."""
        save_surrogate(self, Path(path), card or {})

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **options: Any) -> Self:
        """Load a surrogate, frozen.

        Args:
            name_or_path: one of three. A folder written by `save_pretrained`. A file of weights alone: safetensors, or
                a plain state dict such as the authors released (`.ckpt`, read with `weights_only`). Or, if no such path
                exists, a name in `pretrained_names()`: "classification/cifar10" ships with the package,
                "released/cls" is downloaded on first use.
            options: constructor arguments for a file of weights. The defaults are the release's, such as the size of
                the heatmaps of "released/pose_384x288".

        Raises:
            UsageError: there is no such path or name, the name is for another class, or options were given for a
                folder, which has its own.
            RelossError: the file cannot be downloaded, is damaged, belongs to another class, or its parameters do not
                fit.
        """
        path = Path(name_or_path)
        if not path.exists():
            path, known = find_pretrained(str(name_or_path), cls.__name__)
            options = {**known, **options}
        if path.is_dir() and options:
            raise UsageError(f"{path} holds the options of its surrogate; remove {', '.join(options)}")
        return (load_folder(cls, path) if path.is_dir() else load_file_of_weights(cls, path, options)).freeze()


class _Computation(nn.Module):
    """The computation of a surrogate's losses as a module, so that `functional_call` can pass it other weights."""

    def __init__(self, surrogate: SurrogateLoss) -> None:
        super().__init__()
        self.surrogate = surrogate

    def forward(self, outputs: Tensor, targets: Tensor, group_weights: Tensor | None) -> Tensor:
        return self.surrogate._compute(outputs, targets, group_weights)


def bounded(values: Tensor) -> Tensor:
    """Return values with a size of at most `LARGEST`; NaN stays NaN."""
    return values.clamp(-LARGEST, LARGEST)


def gradient_norms(losses: Tensor, outputs: Tensor, create_graph: bool = False) -> Tensor:
    """Return the norm of each example's gradient of its item's loss: losses [N], outputs [N, B, ...] -> [N, B]."""
    with torch.autocast(outputs.device.type, enabled=False):
        (gradients,) = torch.autograd.grad(losses.sum(), outputs, create_graph=create_graph)
    return torch.linalg.vector_norm(gradients[..., None].flatten(2), dim=-1)
