"""Metrics of readers: start and end logits over the positions of a text, decoded to a span and set against gold spans.

Position 0 ([CLS]) stands for "no answer", as in transformers' question answering. Positions that cannot be answered
with (question, padding, special tokens) hold `MASKED`.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from reloss.metrics.shapes import check_shapes
from reloss.metrics.text import NO_ANSWER, span_exact_match, span_f1


def decode_spans(outputs: Tensor, max_length: int = 30) -> tuple[Tensor, Tensor]:
    """Return the span of the largest start + end logit, and how far it is ahead of no answer.

    Args:
        outputs: [..., 2, T] start and end logits.
        max_length: of a span, in positions. Of equal sums the first start counts, then the first end.

    Returns:
        Spans [..., 2], first and last position, inclusive; and [...], the span's sum less that of position 0, the score
        of no answer: negative where the model holds the question for unanswerable. With T = 1 there is no other
        position: the span is then (0, 0) and its lead 0.

    Raises:
        ValueError: max_length is not positive, or the outputs are not pairs.
    """
    if max_length < 1 or outputs.dim() < 2 or outputs.shape[-2] != 2:
        raise ValueError(f"expected outputs [..., 2, T] and max_length >= 1, not {list(outputs.shape)}, {max_length}")
    null = outputs[..., 0].sum(-1)
    if outputs.shape[-1] == 1:
        return torch.zeros_like(outputs[..., 0], dtype=torch.long), torch.zeros_like(null)
    start, end = outputs[..., 1:].reshape(-1, 2, outputs.shape[-1] - 1).unbind(1)
    # For each start, the best end among it and the max_length - 1 positions after it.
    length = min(max_length, start.shape[-1])
    ends = F.pad(end[:, None], (0, length - 1), value=-torch.inf)
    best, where = F.max_pool1d(ends, length, stride=1, return_indices=True)
    sums, first = (start + best[:, 0]).max(-1)
    last = where[:, 0].gather(-1, first[:, None])[:, 0]
    spans = torch.stack((first, last), -1) + 1
    return spans.view(*outputs.shape[:-2], 2), sums.view(null.shape) - null


def reading_f1(outputs: Tensor, targets: Tensor, *, max_length: int = 30) -> Tensor:
    """Return the mean F1 of token positions between the decoded span and its best gold span.

    Args:
        outputs: [N, B, 2, T] start and end logits; where position 0 is ahead of every span (or level with it), the
            output is no answer.
        targets: [N, B, G, 2] gold spans as in `span_f1`: -1 no answer, -2 padding.
        max_length: of a span, in positions.

    Returns:
        [N] in [0, 1].

    Raises:
        ValueError: the shapes do not agree.
    """
    return span_f1(_decoded(outputs, targets, max_length), targets)


def reading_exact_match(outputs: Tensor, targets: Tensor, *, max_length: int = 30) -> Tensor:
    """Return the share of examples whose decoded span is one of the gold spans; arguments as in `reading_f1`."""
    return span_exact_match(_decoded(outputs, targets, max_length), targets)


def _decoded(outputs: Tensor, targets: Tensor, max_length: int) -> Tensor:
    check_shapes({"outputs [N, B, 2, T]": outputs, "targets [N, B, G, 2]": targets})
    spans, lead = decode_spans(outputs, max_length)
    return spans.where((lead > 0)[..., None], NO_ANSWER)
