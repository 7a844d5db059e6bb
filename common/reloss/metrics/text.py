"""Metrics of answers and translations: spans of token positions, sequences of token ids, and strings."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad as pad_end

from reloss.errors import RelossError
from reloss.metrics.shapes import check_shapes

NO_ANSWER = -1
SPAN_PADDING = -2


def span_f1(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean over examples of the F1 of token positions between a span and its best gold span.

    Args:
        outputs: [N, B, 2] first and last position, inclusive. A first position of `NO_ANSWER` (-1) means that there is
            no answer, whatever the last; a span that ends before it starts covers nothing and scores 0.
        targets: [N, B, G, 2] gold spans, of which the best counts. A row that starts with -1 means that there is no
            answer; one that starts with `SPAN_PADDING` (-2) is ignored.

    Returns:
        [N] in [0, 1]. No answer scores 1 against a gold row of no answer, else 0; an example of padding alone 0.

    Raises:
        ValueError: the shapes do not agree.
    """
    start, end, first, last = _spans(outputs, targets)
    overlap = (torch.minimum(end, last) - torch.maximum(start, first) + 1).clamp(min=0)
    lengths = (end - start + 1).clamp(min=0) + (last - first + 1).clamp(min=0)
    return _best(2 * overlap / lengths.clamp(min=1), first)


def span_exact_match(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the share of examples whose span is one of the gold spans; arguments, -1 and -2 as in `span_f1`."""
    start, end, first, last = _spans(outputs, targets)
    return _best(((start == first) & (end == last)).float(), first)


def _spans(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return starts and ends [N, B, 1] of the outputs and [N, B, G] of the targets; no answer is the span (-1, -1).

    So no answer needs no rule of its own: it is a span of one position that no real span covers.
    """
    check_shapes({"outputs [N, B, 2]": outputs, "targets [N, B, G, 2]": targets})
    start, end = outputs[..., None, :].unbind(-1)
    first, last = targets.unbind(-1)
    return start, end.where(start != NO_ANSWER, NO_ANSWER), first, last.where(first != NO_ANSWER, NO_ANSWER)


def _best(scores: Tensor, first: Tensor) -> Tensor:
    """Return the mean over examples of the best score [N, B, G] that is not of padding."""
    return scores.where(first > SPAN_PADDING, 0).amax(-1).mean(-1)


def token_f1(outputs: Tensor, targets: Tensor, *, pad: int = -1) -> Tensor:
    """Return the mean over examples of the F1 of the bags of tokens: SQuAD's F1, on ids instead of words.

    Args:
        outputs: [N, B, S] token ids.
        targets: [N, B, T] token ids.
        pad: the id that fills up a sequence, in any place; it is no token.

    Returns:
        [N] in [0, 1]. Two empty sequences score 1, one empty and one not 0 (SQuAD 2.0).

    Raises:
        ValueError: the shapes do not agree.
    """
    check_shapes({"outputs [N, B, S]": outputs, "targets [N, B, T]": targets})
    ours, theirs = outputs.long().sort(-1).values, targets.long().sort(-1).values
    # A token is common where fewer equal ones stand before it than the target has: the minimum of both counts.
    before = torch.arange(ours.shape[-1], device=ours.device) - torch.searchsorted(ours, ours)
    available = torch.searchsorted(theirs, ours, right=True) - torch.searchsorted(theirs, ours)
    common = ((before < available) & (ours != pad)).sum(-1)
    lengths = (ours != pad).sum(-1) + (theirs != pad).sum(-1)
    return (2 * common / lengths.clamp(min=1)).where(lengths > 0, 1).mean(-1)


def token_exact_match(outputs: Tensor, targets: Tensor, *, pad: int = -1) -> Tensor:
    """Return the share of examples with the same tokens in the same order, padding left out; shapes as in `token_f1`.

    Two empty sequences are the same.
    """
    check_shapes({"outputs [N, B, S]": outputs, "targets [N, B, T]": targets})
    length = max(outputs.shape[-1], targets.shape[-1])
    return (_packed(outputs, pad, length) == _packed(targets, pad, length)).all(-1).float().mean(-1)


def _packed(tokens: Tensor, pad: int, length: int) -> Tensor:
    """Return the tokens in their order, then the padding, in all `length`."""
    order = (tokens == pad).int().argsort(dim=-1, stable=True)
    return pad_end(tokens.gather(-1, order), (0, length - tokens.shape[-1]), value=pad)


def bleu(
    outputs: Sequence[Sequence[str]],
    targets: Sequence[Sequence[str]],
    *,
    tokenize: str = "13a",
    effective_order: bool = False,
) -> Tensor:
    """Return the corpus BLEU of each item, by sacrebleu (Post, WMT 2018): its `corpus_bleu` / 100.

    Args:
        outputs: N items of B >= 1 translations.
        targets: N items of B references, one for each translation.
        tokenize: sacrebleu's tokenizer; `none` for text that is tokenized already. sacrebleu's warning about such text
            is not given.
        effective_order: leave out the n-gram orders for which no translation of the item is long enough. Without it, as
            sacrebleu has it for a corpus, an item without a single 4-gram scores 0. Orders without a match are smoothed
            (`exp`) either way.

    Returns:
        [N] in [0, 1]; 0 for an item without a right word.

    Raises:
        RelossError: sacrebleu is not installed.
        ValueError: outputs and targets differ in their numbers, or an item is empty or no list of strings.
    """
    try:
        from sacrebleu import corpus_bleu
    except ImportError as error:
        raise RelossError("the metric bleu needs sacrebleu, which is not installed: pip install sacrebleu") from error
    sizes, expected = [_size(item) for item in outputs], [_size(item) for item in targets]
    if sizes != expected or 0 in sizes:
        raise ValueError(f"expected outputs and targets of N items of B >= 1 strings, not of {sizes} and {expected}")
    options = {"tokenize": tokenize, "use_effective_order": effective_order, "force": True}
    scores = [corpus_bleu(item, [refs], **options).score / 100 for item, refs in zip(outputs, targets, strict=True)]
    return torch.tensor(scores, dtype=torch.float32)


def _size(item: Sequence[str]) -> int:
    """Return how many strings an item has; a string itself is none, though it too has a length."""
    return 0 if isinstance(item, str) else len(item)
