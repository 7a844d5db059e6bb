"""Windows: question and a part of the passage in T tokens, made by a fast tokenizer, and answers in their places."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from reloss.metrics import MASKED, NO_ANSWER, SPAN_PADDING, decode_spans
from reloss.runtime.files import atomic, short_hash
from reloss.runtime.progress import progress, say
from reloss.surrogates.pretrained import cache_folder
from reloss_tasks.mrc.config import Data
from reloss_tasks.mrc.data import Question

FORMAT = 1  # of the cached files
CHUNK = 256  # questions at a time


@dataclass(frozen=True)
class Windows:
    """F windows of T tokens.

    Attributes:
        input_ids: [F, T].
        token_types: [F, T], 0 or 1.
        lengths: [F], tokens that are not padding.
        passage: [F, T], whether a position can be answered with; position 0, [CLS], can, for no answer.
        offsets: [F, T, 2], the token's first character in the passage and that after its last; 0 outside it.
        owners: [F], whose question it is.
        targets: [F, G, 2], gold spans of positions in the window, inclusive; (-1, -1) alone where it holds none; the
            rest of the rows are padding, -2.
    """

    input_ids: Tensor
    token_types: Tensor
    lengths: Tensor
    passage: Tensor
    offsets: Tensor
    owners: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.owners)


def make_windows(questions: Sequence[Question], tokenizer: PreTrainedTokenizerFast, config: Data) -> Windows:
    """Return the windows of the questions, from the cache if they were made before ($RELOSS_CACHE/windows)."""
    path = cache_folder() / "windows" / f"{_key(questions, tokenizer, config)}.safetensors"
    if path.exists():
        try:
            return Windows(**load_file(path))
        except (OSError, SafetensorError, TypeError) as error:
            say(f"the cached windows {path} cannot be read ({error}): making them anew")
    starts = range(0, len(questions), CHUNK)
    parts: list[dict[str, np.ndarray]] = []
    most = max((len(question.spans) for question in questions), default=1)
    with progress(len(starts), "cutting passages into windows") as advance:
        for start in starts:
            parts.append(_chunk(questions[start : start + CHUNK], start, max(most, 1), tokenizer, config))
            advance()
    whole = {name: torch.from_numpy(np.concatenate([part[name] for part in parts])) for name in parts[0]}
    with atomic(path) as temporary:
        save_file(whole, temporary)
    return Windows(**whole)


def _key(questions: Sequence[Question], tokenizer: PreTrainedTokenizerFast, config: Data) -> str:
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    digest = hashlib.sha256(backend.to_str().encode())
    digest.update(json.dumps([astuple(question) for question in questions]).encode())
    return short_hash([FORMAT, digest.hexdigest(), config.max_length, config.stride, config.max_question], 24)


def _chunk(
    questions: Sequence[Question], first: int, golds: int, tokenizer: PreTrainedTokenizerFast, config: Data
) -> dict[str, np.ndarray]:
    """Return the fields of the windows of a few questions, the first of which is number `first` of all."""
    encoded = tokenizer(
        [_cut(question.text, tokenizer, config.max_question) for question in questions],
        [question.context for question in questions],
        truncation="only_second",
        max_length=config.max_length,
        stride=config.stride,
        padding="max_length",
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_token_type_ids=True,
        return_attention_mask=True,
    )
    owners = np.asarray(encoded["overflow_to_sample_mapping"])
    passage = np.array([[part == 1 for part in encoded.sequence_ids(i)] for i in range(len(owners))])
    offsets = np.asarray(encoded["offset_mapping"], dtype=np.int32) * passage[..., None]
    spans = np.full((len(owners), golds, 2), -1)
    for row, owner in enumerate(owners):
        for column, span in enumerate(questions[owner].spans):
            spans[row, column] = span
    targets = _place(spans, offsets, passage, owners)
    passage[:, 0] = True
    return {
        "input_ids": np.asarray(encoded["input_ids"], dtype=np.int32),
        "token_types": np.asarray(encoded["token_type_ids"], dtype=np.uint8),
        "lengths": np.asarray(encoded["attention_mask"]).sum(1),
        "passage": passage,
        "offsets": offsets,
        "owners": owners + first,
        "targets": targets,
    }


def _cut(text: str, tokenizer: PreTrainedTokenizerFast, limit: int) -> str:
    """Return the question up to its token number `limit`."""
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return text if len(offsets) <= limit else text[: offsets[limit - 1][1]]


def _place(spans: np.ndarray, offsets: np.ndarray, passage: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Return the tokens that gold spans of characters stand on, where the window holds the whole span.

    Args:
        spans: [F, G, 2] first character and that after the last; -1 for none.
        offsets: [F, T, 2] of the tokens.
        passage: [F, T], which of them are the passage's.
        owners: [F] of the windows, in order: the first and the last window of a passage reach to its ends.

    Returns:
        [F, G, 2] as in `Windows.targets`.
    """
    if not passage.shape[0]:
        return np.zeros((0, spans.shape[1], 2), dtype=np.int64)
    begin, end = spans[..., 0], spans[..., 1]  # [F, G]
    on = passage[:, None] & (offsets[:, None, :, 0] < end[..., None]) & (offsets[:, None, :, 1] > begin[..., None])
    on &= (offsets[..., 1] > offsets[..., 0])[:, None]
    left = np.where(passage, offsets[..., 0], np.iinfo(np.int32).max).min(-1)
    right = offsets[..., 1].max(-1)
    changes = owners[1:] != owners[:-1]
    left[np.concatenate(([True], changes))] = 0
    right[np.concatenate((changes, [True]))] = np.iinfo(np.int32).max
    held = on.any(-1) & (begin >= left[:, None]) & (end <= right[:, None])
    first, last = on.argmax(-1), on.shape[-1] - 1 - on[..., ::-1].argmax(-1)
    placed = np.where(held[..., None], np.stack((first, last), -1), SPAN_PADDING)
    order = np.argsort(~held, axis=1, kind="stable")  # what is held comes first
    placed = np.take_along_axis(placed, order[..., None], 1)
    placed[~held.any(1), 0] = NO_ANSWER
    return placed


def read_answers(
    outputs: Tensor, windows: Windows, questions: Sequence[Question], max_answer: int
) -> tuple[list[str], Tensor]:
    """Return the best span's text for each question, over all its windows, and how far no answer is ahead of it.

    Args:
        outputs: [F, 2, T] start and end logits of all windows, `MASKED` where a position cannot be answered with.
        windows: in the order of their questions, at least one for each.
        questions: Q of them.
        max_answer: tokens of an answer.

    Returns:
        Texts, empty where a passage holds no token; and [Q]. As in transformers, the score of no answer is the least
        over the windows.
    """
    spans, lead = decode_spans(outputs, max_answer)
    null = outputs[..., 0].sum(-1)
    best = lead + null
    rows = torch.arange(len(windows))
    count = len(questions)
    top = torch.full((count,), -torch.inf).scatter_reduce(0, windows.owners, best, "amax")
    chosen = torch.full((count,), len(windows)).scatter_reduce(
        0, windows.owners, rows.where(best == top[windows.owners], len(windows)), "amin"
    )
    least_null = torch.full((count,), torch.inf).scatter_reduce(0, windows.owners, null, "amin")
    where = spans[chosen]  # [Q, 2]
    begin = windows.offsets[chosen, where[:, 0], 0].tolist()
    end = windows.offsets[chosen, where[:, 1], 1].tolist()
    answerable = (top > MASKED).tolist()
    texts = [
        _slice(question.context, begin[i], end[i]) if answerable[i] else "" for i, question in enumerate(questions)
    ]
    return texts, least_null - top


def _slice(text: str, begin: int, end: int) -> str:
    """Return text[begin:end] without space around it, and with the combining marks after it.

    A tokenizer that takes accents away leaves a mark that is a character of its own outside the token.
    """
    while end < len(text) and unicodedata.combining(text[end]):
        end += 1
    return text[begin:end].strip()
