"""The surrogate for class scores: a curve over the target's probability, learned point by point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reloss.surrogates.base import SurrogateLoss, check_sizes
from reloss.surrogates.checks import check_classes, check_logits
from reloss.surrogates.network import evaluate
from reloss.surrogates.options import Fidelity, Input, Output

EXACT, KNOTS = 2_048, 1_024


class ClassificationReLoss(SurrogateLoss):
    """ReLoss for classification: the mean over a batch of a learned function of each target's probability.

    Architecture and parameter names are the release's, so that its checkpoint loads. The defaults are the release's
    too; the other choices put its traps right:

    Args:
        input: `probability` p of the target, or its logarithm, which still passes a gradient where p is 0 or 1.
        output: `absolute` takes the absolute value of the network's output, which folds a curve that crosses zero, so
            that the loss can rise towards the right answer. `identity` leaves the sign alone; but as the gradient
            penalty is blind to the sign of a slope, about half of such networks stay upside down as they began.
            `monotone` uses the absolute values of the weights and a rising activation, so that the loss falls as the
            target's probability rises, by construction.
        width: of the hidden layers.
        scale: see `SurrogateLoss`.

    Raises:
        ValueError: an unknown input or output, or a width or scale that is not positive.
    """

    def __init__(
        self, input: Input = "probability", output: Output = "absolute", width: int = 128, scale: float = 1.0
    ) -> None:
        super().__init__(scale)
        if input not in get_args(Input) or output not in get_args(Output):
            raise ValueError(f"input is one of {get_args(Input)} and output of {get_args(Output)}: {input}, {output}")
        check_sizes(width=width)
        self.input: Input = input
        self.output: Output = output
        self.width = width
        self.logits_fcs = nn.Sequential(nn.Linear(1, width), nn.ELU(), nn.Linear(width, width), nn.ELU())
        self.loss = nn.Sequential(nn.Linear(width, width), nn.ELU(), nn.Linear(width, 1))

    def _linears(self) -> list[nn.Linear]:
        return [layer for layer in (*self.logits_fcs, *self.loss) if isinstance(layer, nn.Linear)]

    @classmethod
    def arguments(cls, shape: Sequence[int], *, fidelity: Fidelity, input: Input, output: Output) -> dict[str, Any]:
        """Return the constructor's arguments: input and output as chosen; any number of classes will do."""
        return {"input": input, "output": output}

    def options(self) -> dict[str, Any]:
        """Return the constructor's arguments that make a surrogate of this shape."""
        return {"input": self.input, "output": self.output, "width": self.width, "scale": self.scale}

    has_curve = True

    def curve_at(self, log_p: Tensor) -> Tensor:
        """Return the learned loss where the target has log-probability `log_p` [...] -> [...]."""
        return self.curve(log_p if self.input == "log_probability" else log_p.exp())

    def curve(self, inputs: Tensor) -> Tensor:
        """Return the learned loss at each of `inputs` [...], (log) probabilities of the target -> [...]."""
        losses = self._network(inputs)
        return self.scale * (losses.abs() if self.output == "absolute" else losses)

    def curve_and_slope(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the learned loss and its derivative at each of `inputs` [...], both differentiable in the parameters.

        More than EXACT inputs are looked up on the curve through KNOTS of them, which follows value and slope at each:
        so the network is evaluated a thousand times, not once for every example of a bank. What that changes is of the
        size of the rounding to float16, in which a bank keeps its outputs. A network in float64 is always exact.
        """
        inputs = inputs.detach().to(self._linears()[0].weight.dtype)
        exact = inputs.numel() <= EXACT or inputs.dtype == torch.float64
        losses, slopes = self._value_and_slope(inputs) if exact else _through_knots(self._value_and_slope, inputs)
        if self.output == "absolute":
            losses, slopes = losses.abs(), losses.detach().sign() * slopes
        return self.scale * losses, self.scale * slopes

    def _value_and_slope(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            inputs = inputs.detach().requires_grad_()
            values = self._network(inputs)
            (slopes,) = torch.autograd.grad(values.sum(), inputs, create_graph=True)
        return values, slopes

    def _network(self, inputs: Tensor) -> Tensor:
        linears = self._linears()
        inputs = inputs.to(linears[0].weight.dtype)[..., None]
        return evaluate(linears, inputs, monotone=self.output == "monotone")

    def per_item(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each item, in float32 also under autocast.

        Args:
            outputs: [N, B, C] logits.
            targets: [N, B] classes.

        Returns:
            [N].

        Raises:
            ValueError: the shapes do not agree, or targets are of a floating dtype.
        """
        with torch.autocast(outputs.device.type, enabled=False):
            return self.curve(target_scores(outputs, targets, self.input)).mean(-1)

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise ValueError unless these are logits [N, B, C] and classes [N, B] from 0 to C - 1."""
        check_logits(outputs, targets)
        check_classes(targets, outputs.shape[-1])

    def statistics(self, outputs: Tensor) -> Tensor:
        """Return of each example what its target's probability p and the gradient of p follow from.

        Args:
            outputs: [N, B, C] logits.

        Returns:
            [N, B, 3]: the largest logit; log of the sum of exp(logit - largest); the sum of the squared probabilities
            of all classes but that of the largest logit.
        """
        outputs = _wide(outputs)
        largest, where = outputs.max(-1, keepdim=True)
        shifted = outputs - largest
        log_sum = shifted.exp().sum(-1, keepdim=True).log()
        others = (shifted - log_sum).exp().square().scatter(-1, where, 0.0).sum(-1)
        return torch.stack((largest.squeeze(-1), log_sum.squeeze(-1), others), -1)

    def losses_and_norms(
        self, outputs: Tensor, targets: Tensor, statistics: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the losses [N] and each example's gradient norm [N, B]; of the logits only the target's is read.

        The gradient of log p is the target's indicator less the probabilities, so its squared norm is (1 - p)^2 plus
        the others' squared probabilities; that of p is p times it.
        """
        check_logits(outputs, targets)
        with torch.no_grad():
            largest, log_sum, others = (self.statistics(outputs) if statistics is None else statistics).unbind(-1)
            distance = _wide(outputs.gather(-1, targets.long()[..., None]).squeeze(-1)) - largest
            log_p = distance - log_sum
            # Of the others' probabilities, the largest is among `others` only if it is not the target's.
            p, top = log_p.exp(), (-log_sum).exp()
            squares = others + torch.where(distance < 0, top.square() - p.square(), 0.0)
            norms = (torch.expm1(log_p).square() + squares).sqrt()
            if self.input == "probability":
                norms = p * norms
        losses, slopes = self.curve_and_slope(p if self.input == "probability" else log_p)
        return losses.mean(-1), slopes.abs() * norms / targets.shape[-1]

    @staticmethod
    def ordinary_loss(outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy of each item: outputs [N, B, C], targets [N, B] -> [N]."""
        return -target_scores(outputs, targets, "log_probability").mean(-1)


def target_scores(outputs: Tensor, targets: Tensor, kind: Input) -> Tensor:
    """Return each target's (log) probability: logits [N, B, C], classes [N, B] -> [N, B] in float32 or float64.

    Raises:
        ValueError: the shapes do not agree, or targets are of a floating dtype.
    """
    check_logits(outputs, targets)
    scores = F.softmax(_wide(outputs), dim=-1) if kind == "probability" else F.log_softmax(_wide(outputs), dim=-1)
    return scores.gather(-1, targets.long()[..., None]).squeeze(-1)


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _through_knots(curve: Callable[[Tensor], tuple[Tensor, Tensor]], inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return values and slopes of `curve` at `inputs` [...], cubic between knots at which both are the curve's own.

    Half of the knots are quantiles of the inputs, half equally spaced between the least and the largest.
    """
    flat = inputs.flatten()
    ordered = flat.sort().values
    quantiles = ordered[quantile_places(len(flat), flat.device)]
    spaced = torch.lerp(ordered[0], ordered[-1], torch.linspace(0, 1, KNOTS // 2, device=flat.device))
    knots = torch.cat((quantiles, spaced)).sort().values
    values, slopes = curve(knots)
    right = torch.searchsorted(knots, flat).clamp(1, KNOTS - 1)
    left = right - 1
    width = (knots[right] - knots[left]).clamp(min=torch.finfo(flat.dtype).tiny)
    t = ((flat - knots[left]) / width).clamp(0, 1)
    rise = values[right] - values[left]
    bend_left, bend_right = slopes[left] * width - rise, rise - slopes[right] * width
    found = values[left] + t * (rise + (1 - t) * (bend_left * (1 - t) + bend_right * t))
    return found.view_as(inputs), torch.lerp(slopes[left], slopes[right], t).view_as(inputs)


def quantile_places(count: int, device: torch.device) -> Tensor:
    """Return KNOTS / 2 places from 0 to count - 1, equally far apart: in whole numbers, for float32 ends at 2^24."""
    return torch.arange(KNOTS // 2, device=device) * (count - 1) // (KNOTS // 2 - 1)
