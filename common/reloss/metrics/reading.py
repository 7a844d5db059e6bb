"""Metrics of extractive question answering: start and end logits, decoded to a span and compared with gold spans.

A model gives every position of a text a start logit and an end logit. The answer is the span with the largest sum,
unless position 0 ([CLS]), which stands for "no answer", has a larger one (Devlin et al., BERT, 2019). Positions that
cannot be part of an answer (question, padding, special tokens) hold `MASKED`.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from reloss.metrics.shapes import check_shapes
from reloss.metrics.text import NO_ANSWER, span_exact_match, span_f1


def decode_spans(outputs: Tensor, max_length: int = 30) -> tuple[Tensor, Tensor]:
    """Return the span with the largest sum of start and end logit, and its lead over no answer.

    Args:
        outputs: [..., 2, T] start and end logits.
        max_length: of a span, in positions. Of equal sums, the first start wins, then the first end.

    Returns:
        spans: [..., 2], first and last position, inclusive.
        leads: [...], the sum of the span minus the sum of position 0, the score of no answer. Negative if the model
            prefers no answer. If T = 1, there is no other position: the span is (0, 0) and the lead 0.

    Raises:
        ValueError: max_length is not positive, or the outputs do not have the shape [..., 2, T].
    """
    if max_length < 1 or outputs.dim() < 2 or outputs.shape[-2] != 2:
        raise ValueError(f"expected outputs [..., 2, T] and max_length >= 1, not {list(outputs.shape)}, {max_length}")
    no_answer = outputs[..., 0].sum(-1)
    if outputs.shape[-1] == 1:
        return torch.zeros_like(outputs[..., 0], dtype=torch.long), torch.zeros_like(no_answer)
    start, end = outputs[..., 1:].reshape(-1, 2, outputs.shape[-1] - 1).unbind(1)
    # For each start, the best end among this position and the max_length - 1 positions after it.
    length = min(max_length, start.shape[-1])
    padded_end = F.pad(end[:, None], (0, length - 1), value=-torch.inf)
    best_end, end_index = F.max_pool1d(padded_end, length, stride=1, return_indices=True)
    sums, first = (start + best_end[:, 0]).max(-1)
    last = end_index[:, 0].gather(-1, first[:, None])[:, 0]
    spans = torch.stack((first, last), -1) + 1
    return spans.view(*outputs.shape[:-2], 2), sums.view(no_answer.shape) - no_answer


def reading_f1(outputs: Tensor, targets: Tensor, *, max_length: int = 30) -> Tensor:
    """Return the mean F1 of token positions between the decoded span and its best gold span.

    Args:
        outputs: [N, B, 2, T] start and end logits. If no span has a larger sum than position 0, the prediction is no
            answer.
        targets: [N, B, G, 2] gold spans as in `span_f1`: -1 no answer, -2 padding.
        max_length: of a span, in positions.

    Returns:
        [N] in [0, 1].

    Raises:
        ValueError: the shapes do not agree.
    """
    return span_f1(_predicted_spans(outputs, targets, max_length), targets)


def reading_exact_match(outputs: Tensor, targets: Tensor, *, max_length: int = 30) -> Tensor:
    """Return the share of examples whose decoded span is one of the gold spans; arguments as in `reading_f1`."""
    return span_exact_match(_predicted_spans(outputs, targets, max_length), targets)


def _predicted_spans(outputs: Tensor, targets: Tensor, max_length: int) -> Tensor:
    check_shapes({"outputs [N, B, 2, T]": outputs, "targets [N, B, G, 2]": targets})
    spans, leads = decode_spans(outputs, max_length)
    return spans.where((leads > 0)[..., None], NO_ANSWER)
