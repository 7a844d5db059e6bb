"""The surrogate for class scores: a learned curve over the probability of the target.

Cross-entropy is the curve -log p. This surrogate learns another one, such that the mean over a batch ranks batches as
the metric does. It sees each example alone, so it fits metrics that are means over examples, such as accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from reloss.surrogates.base import SurrogateLoss, bounded
from reloss.surrogates.checks import check_choices, check_class_logits, check_logits, check_sizes, gather_targets, widen
from reloss.surrogates.curve import value_and_slope
from reloss.surrogates.options import PRESETS, Features, Input, Output
from reloss.surrogates.released.classification import two_part_network

LOWEST = -1e6  # replaces log p = -inf, for which layers are not finite


class ClassificationReLoss(SurrogateLoss):
    """ReLoss for classification: the mean over a batch of a learned function of each target's probability.

    Takes logits [B, C] and classes [B] from 0 to C - 1. Layers and parameter names are the release's, so that its
    weights load. The release has input `probability` and output `absolute`; the defaults fix their flaws. On a GPU,
    classes are not checked; see `reloss.surrogates.checks.gather_targets`.

    Args:
        input: `probability` p of the target, or its logarithm, which still passes a gradient where p is 0.
        output: `absolute` takes the absolute value of the network's output. This folds a curve that crosses zero, so
            the loss can rise towards the right answer. `identity` keeps the sign. But the gradient penalty does not
            see the sign of a slope, so about half of such networks stay upside down, as they were initialised.
            `monotone` uses the absolute values of the weights and a rising activation: the loss falls as the
            probability of the target rises, by construction.
        width: units of the hidden layers.
        scale: see `SurrogateLoss`.

    Raises:
        ValueError: an unknown input or output, or a width or scale that is not positive.
    """

    decomposes = True
    has_curve = True
    takes_logits = True

    def __init__(
        self, input: Input = "log_probability", output: Output = "monotone", width: int = 128, scale: float = 1.0
    ) -> None:
        super().__init__(scale)
        check_choices(input=(input, Input), output=(output, Output))
        check_sizes(width=width)
        self.input: Input = input
        self.output: Output = output
        self.width = width
        self.logits_fcs, self.loss = two_part_network(width)

    @classmethod
    def arguments(cls, shape: Sequence[int], *, features: Features, input: Input, output: Output) -> dict[str, Any]:
        """Return the constructor's arguments: input and output. Any number of classes will do."""
        return {"input": input, "output": output}

    @classmethod
    def options_of(cls, weights: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the release's input and output: only its weights come without a card."""
        return dict(PRESETS["released"])

    def features(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the (log-)probability of each target: logits [N, B, C], classes [N, B] -> [N, B, 1].

        Finite for logits down to -inf, which mask a class.

        Raises:
            ValueError: the shapes do not agree, or the targets have a floating dtype.
        """
        return target_scores(outputs, targets, self.input)[..., None].clamp(min=LOWEST)

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise ValueError unless these are logits [N, B, C] and classes [N, B] from 0 to C - 1."""
        check_class_logits(outputs, targets)

    def curve(self, inputs: Tensor) -> Tensor:
        """Return the learned loss at each of `inputs` [...], (log-)probabilities of the target -> [...]."""
        return self.scale * self.network(inputs.to(self.dtype)[..., None])

    def curve_at(self, log_p: Tensor) -> Tensor:
        """Return the learned loss of examples whose targets have these log-probabilities: [...] -> [...]."""
        return self.curve(log_p if self.input == "log_probability" else log_p.exp())

    def lowest(self) -> float | None:
        """Return the loss of a target with probability 1; None if the network may rise with the probability."""
        if self.output != "monotone":
            return super().lowest()
        with torch.no_grad():
            return float(self.curve_at(next(self.buffers()).new_zeros(())))

    # Faster than autograd: the gradient in the logits is known in closed form

    def curve_and_slope(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the learned loss and its derivative at each of `inputs` [...], both differentiable in the parameters.

        Many inputs are interpolated; see `reloss.surrogates.curve`.
        """
        inputs = inputs.detach().to(self.dtype)
        losses, slopes = value_and_slope(lambda points: self.perceptron(points[..., None]), inputs)
        if self.output == "absolute":
            losses, slopes = losses.abs(), losses.detach().sign() * slopes
        return self.scale * losses, self.scale * slopes

    def statistics(self, outputs: Tensor) -> Tensor:
        """Return the numbers of each example from which any target's probability p and the gradient of p follow.

        Args:
            outputs: [N, B, C] logits.

        Returns:
            [N, B, 3]: the largest logit; log of the sum of exp(logit - largest); the sum of the squared probabilities
            of all classes except the one with the largest logit.
        """
        outputs = bounded(widen(outputs))
        largest, where = outputs.max(-1, keepdim=True)
        shifted = outputs - largest
        log_sum = shifted.exp().sum(-1, keepdim=True).log()
        others = (shifted - log_sum).exp().square().scatter(-1, where, 0.0).sum(-1)
        return torch.stack((largest.squeeze(-1), log_sum.squeeze(-1), others), -1)

    def losses_and_norms(
        self, outputs: Tensor, targets: Tensor, statistics: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the losses [N] and each example's gradient norm [N, B]; reads only the target's logit.

        The gradient of log p is the indicator of the target minus the probabilities. So its squared norm is (1 - p)^2
        plus the squared probabilities of the other classes. The gradient of p is p times that of log p.
        """
        check_logits(outputs, targets)
        if self.dtype.itemsize < torch.float32.itemsize:
            return super().losses_and_norms(outputs, targets)
        with torch.no_grad():
            largest, log_sum, others = (self.statistics(outputs) if statistics is None else statistics).unbind(-1)
            distance = bounded(widen(gather_targets(outputs, targets))) - largest
            log_p = (distance - log_sum).clamp(min=LOWEST)
            # `others` lacks the largest probability: add it and subtract the target's, unless they are the same.
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
    """Return each target's (log-)probability: logits [N, B, C], classes [N, B] -> [N, B] in float32 or float64.

    Raises:
        ValueError: the shapes do not agree, or the targets have a floating dtype.
    """
    check_logits(outputs, targets)
    scores = F.softmax(widen(outputs), dim=-1) if kind == "probability" else F.log_softmax(widen(outputs), dim=-1)
    return gather_targets(scores, targets)
