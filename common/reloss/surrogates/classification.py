"""The surrogate for class scores: a curve over the target's probability, learned point by point."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reloss.surrogates.base import SurrogateLoss

if TYPE_CHECKING:
    from reloss.learning.options import LearnOptions

Input = Literal["probability", "log_probability"]
Output = Literal["absolute", "identity", "monotone"]


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
        ValueError: an unknown input or output.
    """

    def __init__(
        self, input: Input = "probability", output: Output = "absolute", width: int = 128, scale: float = 1.0
    ) -> None:
        super().__init__(scale)
        if input not in get_args(Input) or output not in get_args(Output):
            raise ValueError(f"input is one of {get_args(Input)} and output of {get_args(Output)}: {input}, {output}")
        self.input: Input = input
        self.output: Output = output
        self.width = width
        self.logits_fcs = nn.Sequential(nn.Linear(1, width), nn.ELU(), nn.Linear(width, width), nn.ELU())
        self.loss = nn.Sequential(nn.Linear(width, width), nn.ELU(), nn.Linear(width, 1))

    def _linears(self) -> list[nn.Linear]:
        return [layer for layer in (*self.logits_fcs, *self.loss) if isinstance(layer, nn.Linear)]

    @classmethod
    def for_fit(cls, options: LearnOptions) -> Self:
        """Return a fresh surrogate with the input and output that the options of the fit name."""
        return cls(input=options.input, output=options.output)

    def options(self) -> dict[str, Any]:
        """Return the constructor's arguments that make a surrogate of this shape."""
        return {"input": self.input, "output": self.output, "width": self.width, "scale": self.scale}

    def curve(self, inputs: Tensor) -> Tensor:
        """Return the learned loss at each of `inputs` [...], (log) probabilities of the target -> [...]."""
        inputs = inputs.to(self._linears()[0].weight.dtype)
        if self.output == "monotone":
            return self.scale * self._rising(-inputs[..., None]).squeeze(-1)
        losses = self.loss(self.logits_fcs(inputs[..., None])).squeeze(-1)
        return self.scale * (losses.abs() if self.output == "absolute" else losses)

    def _rising(self, hidden: Tensor) -> Tensor:
        """Return the network's output with non-negative weights: it rises with its input.

        Half of the units take ELU, which is convex, and half its concave mirror image: with one alone, the curve
        could bend only one way (Runje and Shankaranarayana, 2023).
        """
        *hiddens, last = self._linears()
        for layer in hiddens:
            convex, concave = F.linear(hidden, layer.weight.abs(), layer.bias).chunk(2, dim=-1)
            hidden = torch.cat((F.elu(convex), -F.elu(-concave)), -1)
        return F.linear(hidden, last.weight.abs(), last.bias)

    def per_item(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each item, in float32 also under autocast.

        Args:
            outputs: [N, B, C] logits.
            targets: [N, B] classes.

        Returns:
            [N].

        Raises:
            ValueError: the shapes do not agree.
        """
        with torch.autocast(outputs.device.type, enabled=False):
            return self.curve(target_scores(outputs, targets, self.input)).mean(-1)

    @staticmethod
    def ordinary_loss(outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy of each item: outputs [N, B, C], targets [N, B] -> [N]."""
        return -target_scores(outputs, targets, "log_probability").mean(-1)


def target_scores(outputs: Tensor, targets: Tensor, kind: Input) -> Tensor:
    """Return each target's (log) probability: logits [N, B, C], classes [N, B] -> [N, B] in float32 or float64.

    Raises:
        ValueError: the shapes do not agree.
    """
    if outputs.dim() != 3 or targets.shape != outputs.shape[:2]:
        raise ValueError(
            f"expected logits [N, B, C] and classes [N, B], not {list(outputs.shape)} and {list(targets.shape)}"
        )
    outputs = outputs if outputs.dtype == torch.float64 else outputs.float()
    scores = F.softmax(outputs, dim=-1) if kind == "probability" else F.log_softmax(outputs, dim=-1)
    return scores.gather(-1, targets.long()[..., None]).squeeze(-1)
