"""The surrogate for readers: start and end logits over the positions of a text, scored against gold spans.

Exact match depends on the probabilities of the gold start and the gold end alone, and cross-entropy sees nothing else.
F1 gives partial credit to a span that is nearly right. So the network also sees how much of the gold span the reader
covers in expectation, and how much else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reloss.metrics.masks import MASKED, is_open
from reloss.metrics.shapes import ShapeError, check_shapes
from reloss.metrics.text import NO_ANSWER, SPAN_PADDING
from reloss.surrogates.base import SurrogateLoss
from reloss.surrogates.checks import check_choices, check_sizes, check_span_shapes, check_spans, widen
from reloss.surrogates.options import Features, Input, Output, Structure

FEATURES: dict[Structure, int] = {"points": 1, "span": 4}
LOWEST = -30.0  # replaces log p of a gold position that is masked: there is nothing to learn from its size


class ReadingReLoss(SurrogateLoss):
    """ReLoss for reading comprehension: the mean over a batch of a learned function of each example.

    Takes start and end logits [B, 2, T], where position 0 stands for no answer, and gold spans [B, G, 2] of positions,
    inclusive; -1 is no answer, -2 padding. Of several gold spans the one with the least loss counts, as the best one
    counts in the metric.

    Args:
        structure: `points`: one learned curve, at the probability of the gold start and at that of the gold end,
            averaged; the counterpart of `ClassificationReLoss`. `span`: a network of both probabilities, of the
            expected recall (the mean coverage of the gold positions, see `coverage`), and of
            -log(1 + the expected number of other positions covered). All four grow as the reader gets better.
        input: whether the probabilities of gold positions enter as they are, or as logarithms.
        output: `monotone`: the loss falls as any feature grows, by construction. `identity` leaves the network free,
            `absolute` takes its absolute value. See `ClassificationReLoss`.
        width: units of the hidden layers.
        scale: see `SurrogateLoss`.

    Raises:
        ValueError: an unknown structure, input or output, or a width or scale that is not positive.
    """

    decomposes = True

    def __init__(
        self,
        structure: Structure = "span",
        input: Input = "log_probability",
        output: Output = "monotone",
        width: int = 64,
        scale: float = 1.0,
    ) -> None:
        super().__init__(scale)
        check_choices(structure=(structure, Structure), input=(input, Input), output=(output, Output))
        check_sizes(width=width)
        self.structure: Structure = structure
        self.input: Input = input
        self.output: Output = output
        self.width = width
        self.hidden = nn.Sequential(nn.Linear(FEATURES[structure], width), nn.Linear(width, width))
        self.loss = nn.Linear(width, 1)

    @classmethod
    def arguments(cls, shape: Sequence[int], *, features: Features, input: Input, output: Output) -> dict[str, Any]:
        """Return the constructor's arguments for start and end logits [2, T]: input and output.

        Raises:
            ValueError: one example's outputs are not a pair of rows of logits.
        """
        if len(shape) != 2 or shape[0] != 2:
            raise ValueError(f"expected start and end logits [2, T] of an example, not {list(shape)}")
        return {"input": input, "output": output}

    def features(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the features of each gold span.

        Args:
            outputs: [N, B, 2, T] start and end logits.
            targets: [N, B, G, 2] gold spans.

        Returns:
            [N, B, G, 2, 1] for `points`: one feature each for start and end. [N, B, G, 1, 4] for `span`.

        Raises:
            ValueError: the shapes do not agree, or a gold position is not below T.
        """
        self.check(outputs, targets)
        log_p = outputs.log_softmax(-1)
        spans, real = _positions(targets)
        points = _at_gold(log_p, spans).where(_at_gold(is_open(outputs), spans) & real[..., None], LOWEST)
        if self.input == "probability":
            points = points.exp()
        if self.structure == "points":
            return points[..., None]
        recall, excess = _overlap(coverage(log_p.exp()), spans, real)
        return torch.cat((points, torch.stack((recall, -torch.log1p(excess)), -1)), -1)[..., None, :]

    def group_weights(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return which gold spans count: [N, B, G]. An example of padding alone keeps it, with the worst features."""
        real = targets[..., 0].long() > SPAN_PADDING
        return real | ~real.any(-1, keepdim=True)

    def reduce(self, losses: Tensor, group_weights: Tensor | None) -> Tensor:
        """Return the mean over the examples of the best gold span's loss, times the scale: [N, B, G, P] -> [N].

        The P parts of a span are averaged.
        """
        assert group_weights is not None
        return self.scale * losses.mean(-1).where(group_weights, torch.inf).amin(-1).mean(-1)

    def per_item(self, outputs: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the loss of each item, in the dtype of the parameters, also under autocast.

        Args:
            outputs: [N, B, 2, T] start and end logits.
            targets: [N, B, G, 2] gold spans.
            mask: [N, B, T], true for the positions that can be an answer, position 0 included. By default, those with
                a logit that is not `reloss.metrics.MASKED`.

        Returns:
            [N].

        Raises:
            ValueError: the shapes do not agree, or a gold position is not below T.
        """
        if mask is not None:
            check_span_shapes(outputs, targets)
            check_shapes({"outputs [N, B, 2, T]": outputs, "mask [N, B, T]": mask})
            outputs = widen(outputs).where(mask.bool()[..., None, :], MASKED)
        return self._compute(outputs, targets)

    def forward(self, outputs: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the loss of one batch, a scalar: logits [B, 2, T], gold spans [B, G, 2], mask [B, T] of positions."""
        self._refuse_unfitted(outputs, targets)
        try:
            return self.per_item(outputs[None], targets[None], None if mask is None else mask[None])[0]
        except ShapeError as error:
            raise error.of_one_batch() from None

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise ValueError unless these are logits [N, B, 2, T] and gold spans [N, B, G, 2] of positions below T."""
        check_spans(outputs, targets)

    @staticmethod
    def ordinary_loss(outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of the start and the end of the first gold span, for each item: [N].

        The same as in the question answering models of transformers, where no position is masked.
        """
        check_span_shapes(outputs, targets)
        gold = targets[..., 0, :].long()
        gold = gold.where(gold[..., :1] >= 0, 0)  # position 0 stands for no answer
        log_p = widen(outputs).log_softmax(-1).gather(-1, gold[..., None]).squeeze(-1)
        return -log_p.mean((-2, -1))


def coverage(probabilities: Tensor) -> Tensor:
    """Return the probability that each position is in the span: start and end probabilities [..., 2, T] -> [..., T].

    Start and end are taken as independent: position t is covered with probability P(start <= t) P(end >= t), which two
    cumulative sums give. A span that ends before it starts covers nothing. Position 0, no answer, is covered where
    start and end are both there, and no span begins there.
    """
    start, end = probabilities.unbind(-2)
    null = start[..., :1] * end[..., :1]
    started = start[..., 1:].cumsum(-1)
    to_end = end[..., 1:].flip(-1).cumsum(-1).flip(-1)
    return torch.cat((null, started * to_end), -1)


def _positions(targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return gold spans as positions from 0 [N, B, G, 2], and which are real [N, B, G].

    No answer becomes (0, 0), and so does padding, which is not real.
    """
    targets = targets.long()
    return targets.where(targets[..., :1] > NO_ANSWER, 0), targets[..., 0] > SPAN_PADDING


def _at_gold(values: Tensor, spans: Tensor) -> Tensor:
    """Return the first row's value at the start and the second row's at the end: [N, B, 2, T] -> [N, B, G, 2]."""
    side = torch.arange(2, device=values.device)
    return values.movedim(-1, -2).flatten(-2).gather(-1, (2 * spans + side).flatten(-2)).view(spans.shape)


def _overlap(covered: Tensor, spans: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Return the expected recall of each gold span, and the expected number of other positions covered.

    Args:
        covered: [N, B, T] probability that each position is covered.
        spans: [N, B, G, 2] first and last position.
        real: [N, B, G] whether the span is not padding.

    Returns:
        Twice [N, B, G]: the recall in [0, 1], and the number, at least 0.
    """
    before = F.pad(covered.cumsum(-1), (1, 0))  # before[t]: the sum up to t - 1
    first, last = spans.unbind(-1)
    inside = (before.gather(-1, last + 1) - before.gather(-1, first)) * real
    excess = (covered.sum(-1, keepdim=True) - inside).clamp(min=0)
    return inside / (last - first + 1).clamp(min=1), excess
