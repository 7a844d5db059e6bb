"""Metrics of answers and translations: spans of token positions, sequences of token ids, and strings."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad as pad_end

from reloss.metrics.shapes import check_shapes
from reloss.runtime.errors import RelossError

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
    ours, theirs = outputs.long(), targets.long()
    common = _common(ours, theirs, pad)
    lengths = (ours != pad).sum(-1) + (theirs != pad).sum(-1)
    return (2 * common / lengths.clamp(min=1)).where(lengths > 0, 1).mean(-1)


def _common(ours: Tensor, theirs: Tensor, pad: int) -> Tensor:
    """Return how many tokens two bags [..., S] and [..., T] share: the sum of the minima of both counts -> [...]."""
    ours, theirs = ours.sort(-1).values, theirs.sort(-1).values
    # A token is common where fewer equal ones stand before it than the target has: the minimum of both counts.
    before = torch.arange(ours.shape[-1], device=ours.device) - torch.searchsorted(ours, ours)
    available = torch.searchsorted(theirs, ours, right=True) - torch.searchsorted(theirs, ours)
    return ((before < available) & (ours != pad)).sum(-1)


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


def token_bleu(outputs: Tensor, targets: Tensor, *, order: int = 4) -> Tensor:
    """Return the corpus BLEU of each item's recorded translations, on token ids: sacrebleu's `corpus_bleu`, vectorised.

    The argmax of each position is recorded beside its gold token, so a translation is as long as its reference but for
    special symbols. Orders without a match are smoothed as sacrebleu does by default (`exp`).

    Args:
        outputs: [N, B, T] log-probabilities of the gold tokens; they are not looked at.
        targets: [N, B, T, 2] ids of the gold token and of the most probable one; an id below 0 is no token: a special
            symbol, or padding.
        order: of the longest n-grams.

    Returns:
        [N] in [0, 1]; 0 for an item without a right token, or in which no translation has an n-gram of the order.

    Raises:
        ValueError: the shapes do not agree.
    """
    check_shapes({"outputs [N, B, T]": outputs, "targets [N, B, T, 2]": targets})
    theirs, ours = (_packed(side.clamp(min=-1).long(), -1, side.shape[-1]) for side in targets.unbind(-1))
    lengths, expected = ((side >= 0).sum((1, 2)) for side in (ours, theirs))
    tokens = torch.stack([ours, theirs])
    size = int(tokens.max()) + 1
    grams, logs, halvings = tokens, [], torch.zeros(len(ours), dtype=torch.float64, device=ours.device)
    for n in range(1, min(order, tokens.shape[-1]) + 1):
        if n > 1:
            grams = _lengthened(grams, tokens[..., n - 1 :], size)
        total, matches = (grams[0] >= 0).sum((1, 2)), _common(grams[0], grams[1], -1).sum(-1)
        halvings = halvings + (matches == 0)
        precision = torch.where(matches > 0, matches.double(), torch.exp2(-halvings)) / total.clamp(min=1)
        logs.append(precision.log().where(total > 0, -torch.inf))
    logs += [torch.full_like(logs[0], -torch.inf)] * (order - len(logs))
    brevity = (1 - expected / lengths.clamp(min=1)).clamp(max=0)
    right = _common(ours, theirs, -1).sum(-1) > 0
    return (torch.stack(logs).mean(0) + brevity).exp().where(right, 0).float()


def _lengthened(grams: Tensor, last: Tensor, size: int) -> Tensor:
    """Return a number for each n-gram, made of that of its first n - 1 tokens [..., T] and its last one [..., T - 1].

    Equal numbers are equal n-grams; -1 stands where one of the two is missing. `size` is above all tokens.
    """
    first = grams[..., : last.shape[-1]]
    pairs = (first * size + last).where((first >= 0) & (last >= 0), -1)
    numbers = torch.unique(pairs, return_inverse=True)[1]  # so that they stay small
    return numbers.where(pairs >= 0, -1)


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
