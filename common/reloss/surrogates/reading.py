"""The surrogate for readers: start and end logits over the positions of a text, judged against gold spans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reloss.metrics.masks import MASKED, is_open
from reloss.metrics.shapes import check_shapes
from reloss.metrics.text import NO_ANSWER, SPAN_PADDING
from reloss.surrogates.base import SurrogateLoss, check_sizes
from reloss.surrogates.network import evaluate
from reloss.surrogates.options import Fidelity, Input, Output, Structure

FEATURES: dict[str, int] = {"points": 1, "span": 4}
LOWEST = -30.0  # stands for log p of a gold position that is masked out: there is nothing to learn from its size


class ReadingReLoss(SurrogateLoss):
    """ReLoss for reading comprehension: the mean over a batch of a learned function of each example.

    Exact match is decided by the probabilities of the gold start and the gold end alone, and cross-entropy sees nothing
    else. F1 is kinder to a span that is nearly right; so the network also sees, in positions, how much of the gold span
    the reader covers and how much else. With P(start = i) and P(end = j) taken as independent, position t is covered
    with probability P(start <= t) P(end >= t), by two cumulative sums; position 0, no answer, where both are 0.

    Of several gold spans the one with the least loss counts, as the best one counts in the metric.

    Args:
        structure: `points`: one learned curve, taken at the probability of the gold start and at that of the gold end,
            and averaged: the counterpart of `ClassificationReLoss`. `span`: a network of both, of the expected recall,
            the mean coverage of the gold positions, and of -log(1 + the expected number of other positions covered).
            All four grow as the reader gets better.
        input: whether probabilities of gold positions enter as they are, or as logarithms.
        output: `monotone`: the loss falls as any input grows, by construction; `identity` leaves the network free,
            `absolute` takes its absolute value. See `ClassificationReLoss`.
        width: of the hidden layers.
        scale: see `SurrogateLoss`.

    Raises:
        ValueError: an unknown structure, input or output, or a width or scale that is not positive.
    """

    def __init__(
        self,
        structure: Structure = "span",
        input: Input = "log_probability",
        output: Output = "monotone",
        width: int = 64,
        scale: float = 1.0,
    ) -> None:
        super().__init__(scale)
        for name, value, known in (
            ("structure", structure, Structure),
            ("input", input, Input),
            ("output", output, Output),
        ):
            if value not in get_args(known):
                raise ValueError(f"{name} is one of {', '.join(get_args(known))}, not {value}")
        check_sizes(width=width)
        self.structure: Structure = structure
        self.input: Input = input
        self.output: Output = output
        self.width = width
        self.hidden = nn.Sequential(nn.Linear(FEATURES[structure], width), nn.Linear(width, width))
        self.loss = nn.Linear(width, 1)

    def _linears(self) -> list[nn.Linear]:
        return [layer for layer in (*self.hidden, self.loss) if isinstance(layer, nn.Linear)]

    @classmethod
    def arguments(cls, shape: Sequence[int], *, fidelity: Fidelity, input: Input, output: Output) -> dict[str, Any]:
        """Return the constructor's arguments for start and end logits [2, T]: input and output as chosen.

        Raises:
            ValueError: one example's outputs are not a pair of rows of logits.
        """
        if len(shape) != 2 or shape[0] != 2:
            raise ValueError(f"expected start and end logits [2, T] of an example, not {list(shape)}")
        return {"input": input, "output": output}

    def options(self) -> dict[str, Any]:
        """Return the constructor's arguments that make a surrogate of this shape."""
        names = ("structure", "input", "output", "width", "scale")
        return {name: getattr(self, name) for name in names}

    def per_item(self, outputs: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the loss of each item, in float32 also under autocast (float64 where the weights are).

        Args:
            outputs: [N, B, 2, T] start and end logits; position 0 stands for no answer.
            targets: [N, B, G, 2] gold spans of positions, inclusive: -1 is no answer, -2 padding.
            mask: [N, B, T] of the positions that can be answered with, position 0 among them; by default those that
                are not `reloss.metrics.MASKED`.

        Returns:
            [N].

        Raises:
            ValueError: the shapes do not agree, or a gold position is not below T.
        """
        _check(outputs, targets)
        with torch.autocast(outputs.device.type, enabled=False):
            outputs = _masked(outputs.to(self.loss.weight.dtype), mask)
            losses = self._network(self._features(outputs, targets))
            real = targets[..., 0] > SPAN_PADDING
            kept = real | ~real.any(-1, keepdim=True)  # an example of padding alone has the worst of features
            return self.scale * losses.where(kept, torch.inf).amin(-1).mean(-1)

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise ValueError unless these are logits [N, B, 2, T] and gold spans [N, B, G, 2] of positions below T."""
        _check(outputs, targets)
        _gold(outputs, targets)

    def forward(self, outputs: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the loss of one batch, a scalar: logits [B, 2, T], gold spans [B, G, 2], mask [B, T] of positions."""
        return self.per_item(outputs[None], targets[None], None if mask is None else mask[None])[0]

    def _network(self, features: Tensor) -> Tensor:
        """Return the learned loss of each gold span: features [N, B, G, P, F] of P parts, averaged -> [N, B, G]."""
        losses = evaluate(self._linears(), features, monotone=self.output == "monotone")
        return (losses.abs() if self.output == "absolute" else losses).mean(-1)

    def _features(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return what the network sees of each gold span: [N, B, G, 2, 1] (points), or [N, B, G, 1, 4]."""
        log_p = outputs.log_softmax(-1)
        gold = _gold(outputs, targets)
        points = log_p.movedim(-1, -2).flatten(-2).gather(-1, (2 * gold.spans + gold.side).flatten(-2))
        points = points.view(gold.spans.shape).where(gold.open, LOWEST)
        if self.input == "probability":
            points = points.exp()
        if self.structure == "points":
            return points[..., None]
        covered = coverage(log_p.exp())
        before = F.pad(covered.cumsum(-1), (1, 0))  # before[t]: the sum up to t - 1
        first, last = gold.spans.unbind(-1)
        inside = (before.gather(-1, last + 1) - before.gather(-1, first)) * gold.real
        outside = (covered.sum(-1, keepdim=True) - inside).clamp(min=0)
        recall = inside / (last - first + 1).clamp(min=1)
        return torch.cat((points, torch.stack((recall, -torch.log1p(outside)), -1)), -1)[..., None, :]

    @staticmethod
    def ordinary_loss(outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of the start and the end of the first gold span, of each item: -> [N].

        As transformers' question answering models compute it, where no position is masked.
        """
        _check(outputs, targets)
        gold = targets[..., 0, :].long()
        gold = gold.where(gold[..., :1] >= 0, 0)  # position 0 stands for no answer
        log_p = outputs.float().log_softmax(-1).gather(-1, gold[..., None]).squeeze(-1)
        return -log_p.mean((-2, -1))


def coverage(probabilities: Tensor) -> Tensor:
    """Return the probability that each position lies in the span: start and end probabilities [..., 2, T] -> [..., T].

    Start and end are taken as independent, and a span that ends before it starts covers nothing. Position 0, no answer,
    is covered where start and end are both there, and no span begins there.
    """
    start, end = probabilities.unbind(-2)
    null = start[..., :1] * end[..., :1]
    started = start[..., 1:].cumsum(-1)
    to_end = end[..., 1:].flip(-1).cumsum(-1).flip(-1)
    return torch.cat((null, started * to_end), -1)


class _Gold(NamedTuple):
    """Gold spans as positions.

    Attributes:
        spans: [N, B, G, 2] from 0; (0, 0) for no answer, and for padding.
        side: [2], 0 for starts and 1 for ends.
        open: [N, B, G, 2] whether the position can be answered with.
        real: [N, B, G] whether the span is not padding.
    """

    spans: Tensor
    side: Tensor
    open: Tensor
    real: Tensor


def _gold(outputs: Tensor, targets: Tensor) -> _Gold:
    targets = targets.long()
    spans = targets.where(targets[..., :1] > NO_ANSWER, 0)
    if bool((spans >= outputs.shape[-1]).any()):
        raise ValueError(f"a gold position is {int(spans.max())}, but there are {outputs.shape[-1]} positions")
    real = targets[..., 0] > SPAN_PADDING
    side = torch.arange(2, device=outputs.device)
    flat = is_open(outputs).movedim(-1, -2).flatten(-2)
    open_ = flat.gather(-1, (2 * spans + side).flatten(-2)).view(spans.shape) & real[..., None]
    return _Gold(spans, side, open_, real)


def _masked(outputs: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return outputs
    check_shapes({"outputs [N, B, 2, T]": outputs, "mask [N, B, T]": mask})
    return outputs.where(mask.bool()[..., None, :], MASKED)


def _check(outputs: Tensor, targets: Tensor) -> None:
    check_shapes({"outputs [N, B, 2, T]": outputs, "targets [N, B, G, 2]": targets})
