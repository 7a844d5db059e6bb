"""Metrics of answers and translations: spans of token positions, sequences of token ids, and strings.

Exact match asks whether a prediction equals its target. F1 gives credit for the common tokens. BLEU counts the n-grams
of the translations that also occur in the references. On token ids, all three reduce to counting common elements of two
bags, which sorting and searching do for all examples at once.
"""

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

    This is SQuAD's F1 (Rajpurkar et al., 2016) on positions instead of words.

    Args:
        outputs: [N, B, 2] first and last position, inclusive. If the first is `NO_ANSWER` (-1), the prediction is no
            answer, whatever the last is. A span that ends before it starts is empty and scores 0.
        targets: [N, B, G, 2] gold spans; only the best one counts. A row that starts with -1 means no answer. A row
            that starts with `SPAN_PADDING` (-2) is ignored.

    Returns:
        [N] in [0, 1]. No answer scores 1 if a gold row is no answer, otherwise 0. An example of padding only scores 0.

    Raises:
        ValueError: the shapes do not agree.
    """
    start, end, gold_start, gold_end = _span_bounds(outputs, targets)
    overlap = (torch.minimum(end, gold_end) - torch.maximum(start, gold_start) + 1).clamp(min=0)
    lengths = (end - start + 1).clamp(min=0) + (gold_end - gold_start + 1).clamp(min=0)
    return _mean_of_best(2 * overlap / lengths.clamp(min=1), gold_start)


def span_exact_match(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the share of examples whose span is one of the gold spans; arguments as in `span_f1`."""
    start, end, gold_start, gold_end = _span_bounds(outputs, targets)
    return _mean_of_best(((start == gold_start) & (end == gold_end)).float(), gold_start)


def _span_bounds(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the starts and ends of the outputs [N, B, 1] and of the targets [N, B, G].

    No answer becomes the span (-1, -1). It needs no rule of its own then: no real span overlaps it.
    """
    check_shapes({"outputs [N, B, 2]": outputs, "targets [N, B, G, 2]": targets})
    start, end = outputs.long()[..., None, :].unbind(-1)  # an unsigned dtype holds no negative number
    gold_start, gold_end = targets.long().unbind(-1)
    end, gold_end = end.where(start != NO_ANSWER, NO_ANSWER), gold_end.where(gold_start != NO_ANSWER, NO_ANSWER)
    return start, end, gold_start, gold_end


def _mean_of_best(scores: Tensor, gold_start: Tensor) -> Tensor:
    """Return the mean over examples of the best score [N, B, G] of a row that is not padding."""
    return scores.where(gold_start > SPAN_PADDING, 0).amax(-1).mean(-1)


def token_f1(outputs: Tensor, targets: Tensor, *, pad: int = -1) -> Tensor:
    """Return the mean over examples of the F1 of the bags of tokens: SQuAD's F1 on ids instead of words.

    Args:
        outputs: [N, B, S] token ids.
        targets: [N, B, T] token ids.
        pad: the id of padding, at any position. It does not count as a token.

    Returns:
        [N] in [0, 1]. Two empty sequences score 1; an empty and a non-empty one score 0 (as in SQuAD 2.0).

    Raises:
        ValueError: the shapes do not agree.
    """
    check_shapes({"outputs [N, B, S]": outputs, "targets [N, B, T]": targets})
    outputs, targets = outputs.long(), targets.long()
    common = _common(outputs, targets, pad)
    lengths = (outputs != pad).sum(-1) + (targets != pad).sum(-1)
    return (2 * common / lengths.clamp(min=1)).where(lengths > 0, 1).mean(-1)


def _common(outputs: Tensor, targets: Tensor, pad: int) -> Tensor:
    """Return the number of common tokens of bags [..., S] and [..., T], as [...].

    A token that occurs several times counts as often as it does in both bags.
    """
    outputs, targets = outputs.sort(-1).values, targets.sort(-1).values
    # Number the occurrences of each token from 0. Occurrence i is common if the target has more than i of them.
    occurrence = torch.arange(outputs.shape[-1], device=outputs.device) - torch.searchsorted(outputs, outputs)
    target_counts = torch.searchsorted(targets, outputs, right=True) - torch.searchsorted(targets, outputs)
    return ((occurrence < target_counts) & (outputs != pad)).sum(-1)


def token_exact_match(outputs: Tensor, targets: Tensor, *, pad: int = -1) -> Tensor:
    """Return the share of examples with the same tokens in the same order, ignoring padding.

    Arguments as in `token_f1`. Two empty sequences are equal.
    """
    check_shapes({"outputs [N, B, S]": outputs, "targets [N, B, T]": targets})
    length = max(outputs.shape[-1], targets.shape[-1])
    return (_pack(outputs, pad, length) == _pack(targets, pad, length)).all(-1).float().mean(-1)


def _pack(tokens: Tensor, pad: int, length: int) -> Tensor:
    """Return the tokens in their order, followed by padding up to `length`."""
    order = (tokens == pad).int().argsort(dim=-1, stable=True)
    return pad_end(tokens.gather(-1, order), (0, length - tokens.shape[-1]), value=pad)


def token_bleu(outputs: Tensor, targets: Tensor, *, order: int = 4) -> Tensor:
    """Return the corpus BLEU of each item on token ids; equal to sacrebleu's `corpus_bleu` on the ids as words.

    BLEU is the geometric mean of the n-gram precisions times a brevity penalty (Papineni et al., 2002). Here each
    n-gram becomes one number, so that matches are the common elements of two bags. An order without matches is smoothed
    by sacrebleu's default, `exp`: it gets 1/2 match if it is the first such order, 1/4 if it is the second, and so on.

    A bank records for each position the gold token and the most probable token. So a translation has the length of its
    reference, except for special symbols.

    Args:
        outputs: [N, B, T] or [N, B, T, T] log-probabilities of the gold tokens; not used.
        targets: [N, B, T, 2] ids of the gold token and of the most probable token. A negative id is not a token: a
            special symbol, or padding.
        order: length of the longest n-grams.

    Returns:
        [N] in [0, 1]; 0 for an item without a correct token, or whose translations are all shorter than `order`.

    Raises:
        ValueError: the shapes do not agree.
    """
    shape = "[N, B, T, T]" if outputs.dim() == 4 else "[N, B, T]"
    check_shapes({f"outputs {shape}": outputs, "targets [N, B, T, 2]": targets})
    references, candidates = (_pack(ids.clamp(min=-1).long(), -1, ids.shape[-1]) for ids in targets.unbind(-1))
    lengths, reference_lengths = ((ids >= 0).sum((1, 2)) for ids in (candidates, references))
    tokens = torch.stack([candidates, references])
    vocabulary = int(tokens.max()) + 1
    ngrams, log_precisions = tokens, []
    unmatched_orders = torch.zeros(len(candidates), dtype=torch.float64, device=candidates.device)
    for n in range(1, min(order, tokens.shape[-1]) + 1):
        if n > 1:
            ngrams = _extend(ngrams, tokens[..., n - 1 :], vocabulary)
        total, matches = (ngrams[0] >= 0).sum((1, 2)), _common(ngrams[0], ngrams[1], -1).sum(-1)
        unmatched_orders = unmatched_orders + (matches == 0)
        precision = torch.where(matches > 0, matches.double(), torch.exp2(-unmatched_orders)) / total.clamp(min=1)
        log_precisions.append(precision.log().where(total > 0, -torch.inf))
    log_precisions += [torch.full_like(log_precisions[0], -torch.inf)] * (order - len(log_precisions))
    log_brevity = (1 - reference_lengths / lengths.clamp(min=1)).clamp(max=0)
    any_match = _common(candidates, references, -1).sum(-1) > 0
    return (torch.stack(log_precisions).mean(0) + log_brevity).exp().where(any_match, 0).float()


def _extend(ngrams: Tensor, last_tokens: Tensor, vocabulary: int) -> Tensor:
    """Return a number for each n-gram, from the number of its first n - 1 tokens and its last token.

    Equal numbers mean equal n-grams, across all items. -1 marks a position without an n-gram.

    Args:
        ngrams: [..., L + 1] numbers of the (n - 1)-grams.
        last_tokens: [..., L] tokens.
        vocabulary: a number larger than all tokens.
    """
    first = ngrams[..., : last_tokens.shape[-1]]
    pairs = (first * vocabulary + last_tokens).where((first >= 0) & (last_tokens >= 0), -1)
    numbers = torch.unique(pairs, return_inverse=True)[1]  # renumbered, so that they stay small
    return numbers.where(pairs >= 0, -1)


def bleu(
    outputs: Sequence[Sequence[str]],
    targets: Sequence[Sequence[str]],
    *,
    tokenize: str = "13a",
    effective_order: bool = False,
) -> Tensor:
    """Return the corpus BLEU of each item: sacrebleu's `corpus_bleu` / 100 (Post, WMT 2018).

    Args:
        outputs: N items of B >= 1 translations.
        targets: N items of B references, one for each translation.
        tokenize: sacrebleu's tokenizer; `none` for tokenized text. Its warning about tokenized text is disabled.
        effective_order: skip the n-gram orders for which all translations of the item are too short. Without it, as in
            sacrebleu, an item without a 4-gram scores 0. Orders without a match are smoothed (`exp`) in both cases.

    Returns:
        [N] in [0, 1]; 0 for an item without a correct word.

    Raises:
        RelossError: sacrebleu is not installed.
        ValueError: the numbers of outputs and targets differ, or an item is empty or not a list of strings.
    """
    try:
        from sacrebleu import corpus_bleu
    except ImportError as error:
        raise RelossError("the metric bleu needs sacrebleu, which is not installed: pip install sacrebleu") from error
    sizes, target_sizes = [_size(item) for item in outputs], [_size(item) for item in targets]
    if sizes != target_sizes or 0 in sizes:
        raise ValueError(
            f"expected outputs and targets of N items of B >= 1 strings, not of {sizes} and {target_sizes} strings"
        )
    options = {"tokenize": tokenize, "use_effective_order": effective_order, "force": True}
    scores = [corpus_bleu(item, [refs], **options).score / 100 for item, refs in zip(outputs, targets, strict=True)]
    return torch.tensor(scores, dtype=torch.float32)


def _size(item: Sequence[str]) -> int:
    """Return the number of strings of an item, and 0 for a string, which is itself a sequence of strings."""
    return 0 if isinstance(item, str) else len(item)
