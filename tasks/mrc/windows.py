"""Windows: how a passage of any length fits an encoder of T tokens, and how answers are read back.

A passage is cut into overlapping parts. Each part, behind the question, is one window, and an answer is trained on in
every window that contains it whole. A fast tokenizer knows the characters of each token, so gold answers, which are
spans of characters, become spans of tokens, and predicted spans become text again. Position 0, [CLS], stands for no
answer. The best span of a question is the best over all its windows.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from reloss.metrics import MASKED, NO_ANSWER, SPAN_PADDING, decode_spans
from reloss.runtime.files import short_hash
from reloss.runtime.progress import progress, say
from reloss.runtime.tensors import load_tensors, save_tensors
from reloss.surrogates.pretrained import cache_folder
from reloss_tasks.mrc.config import Data
from reloss_tasks.mrc.data import Question

FORMAT = 1  # version of the cached files
CHUNK = 256  # questions that are tokenised at a time


@dataclass(frozen=True)
class Windows:
    """F windows of T tokens.

    Attributes:
        input_ids: [F, T] tokens.
        token_types: [F, T], 0 or 1.
        lengths: [F], number of tokens without padding.
        passage: [F, T], whether a position can be in an answer: the passage, and position 0, [CLS], for no answer.
        offsets: [F, T, 2], a token's first character in the passage and the one after its last; 0 outside the passage.
        owners: [F], number of the window's question.
        targets: [F, G, 2], gold spans as positions in the window, inclusive. A window without any has (-1, -1) first.
            The other rows are padding, -2.
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
    """Return the windows of the questions, in the order of the questions, and cache them in $RELOSS_CACHE/windows."""
    path = cache_folder() / "windows" / f"{_key(questions, tokenizer, config)}.safetensors"
    if path.exists():
        try:
            return Windows(**load_tensors(path))
        except Exception as error:  # a damaged file fails in many ways
            say(f"the cached windows {path} cannot be read ({error}): cutting the passages again")
    starts = range(0, len(questions), CHUNK)
    chunks: list[dict[str, np.ndarray]] = []
    golds = max((len(question.spans) for question in questions), default=0)
    with progress(len(starts), "cutting passages into windows") as advance:
        for start in starts:
            chunks.append(_chunk(questions[start : start + CHUNK], start, max(golds, 1), tokenizer, config))
            advance()
    fields = {name: torch.from_numpy(np.concatenate([chunk[name] for chunk in chunks])) for name in chunks[0]}
    save_tensors(path, fields)
    return Windows(**fields)


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
    """Return the fields of the windows of some questions.

    Args:
        questions: the questions.
        first: number of the first one among all questions.
        golds: G, the number of rows for gold spans.
        tokenizer: the encoder's fast tokenizer.
        config: the data section.
    """
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
    """Return the question, cut after `limit` tokens."""
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return text if len(offsets) <= limit else text[: offsets[limit - 1][1]]


def _place(spans: np.ndarray, offsets: np.ndarray, passage: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Return the positions of gold spans in windows that contain the whole span.

    Args:
        spans: [F, G, 2] first character and the one after the last; -1 for none.
        offsets: [F, T, 2] characters of the tokens.
        passage: [F, T], whether a token belongs to the passage.
        owners: [F] ascending. The first window of a question reaches to the start of the passage, the last to its end.

    Returns:
        [F, G, 2], see `Windows.targets`.
    """
    if not passage.shape[0]:
        return np.zeros((0, spans.shape[1], 2), dtype=np.int64)
    begin, end = spans[..., 0], spans[..., 1]  # [F, G]
    overlap = passage[:, None] & (offsets[:, None, :, 0] < end[..., None]) & (offsets[:, None, :, 1] > begin[..., None])
    overlap &= (offsets[..., 1] > offsets[..., 0])[:, None]
    left = np.where(passage, offsets[..., 0], np.iinfo(np.int32).max).min(-1)
    right = offsets[..., 1].max(-1)
    changes = owners[1:] != owners[:-1]
    left[np.concatenate(([True], changes))] = 0
    right[np.concatenate((changes, [True]))] = np.iinfo(np.int32).max
    inside = overlap.any(-1) & (begin >= left[:, None]) & (end <= right[:, None])
    first, last = overlap.argmax(-1), overlap.shape[-1] - 1 - overlap[..., ::-1].argmax(-1)
    targets = np.where(inside[..., None], np.stack((first, last), -1), SPAN_PADDING)
    order = np.argsort(~inside, axis=1, kind="stable")  # spans inside the window come first
    targets = np.take_along_axis(targets, order[..., None], 1)
    targets[~inside.any(1), 0] = NO_ANSWER
    return targets


def read_answers(
    outputs: Tensor, windows: Windows, questions: Sequence[Question], max_answer: int
) -> tuple[list[str], Tensor]:
    """Return the text of each question's best span over all its windows, and the lead of no answer over that span.

    Args:
        outputs: [F, 2, T] start and end logits of all windows, `MASKED` at positions that cannot be in an answer.
        windows: the windows of the questions, at least one for each.
        questions: Q questions.
        max_answer: longest answer in tokens.

    Returns:
        Q texts, empty if the passage has no token; and the leads [Q], score of no answer minus score of the best span.
        As in transformers, the score of no answer is the lowest over the windows.
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
    lowest_null = torch.full((count,), torch.inf).scatter_reduce(0, windows.owners, null, "amin")
    positions = spans[chosen]  # [Q, 2]
    begin = windows.offsets[chosen, positions[:, 0], 0].tolist()
    end = windows.offsets[chosen, positions[:, 1], 1].tolist()
    answerable = (top > MASKED).tolist()
    texts = [
        _slice(question.context, begin[i], end[i]) if answerable[i] else "" for i, question in enumerate(questions)
    ]
    return texts, lowest_null - top


def _slice(text: str, begin: int, end: int) -> str:
    """Return text[begin:end] with the marks that follow, without surrounding space.

    A tokenizer that strips accents leaves a mark that is a separate character, such as an accent or the vowel signs of
    Hindi, outside the token.
    """
    while end < len(text) and unicodedata.category(text[end]).startswith("M"):
        end += 1
    return text[begin:end].strip()
