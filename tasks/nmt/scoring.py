"""BLEU by sacrebleu: of a test set, and of the validation sentences while a model trains."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from typing import Any

import torch
from sacrebleu.metrics import BLEU, CHRF
from torch import Tensor

from reloss_tasks.nmt import arguments
from reloss_tasks.nmt.config import TranslationExperiment

EXAMPLES = 20  # right and wrong translations in the record's examples.json, each


def corpus_scores(
    hypotheses: Sequence[str], references: Sequence[str], lowercase: bool = False
) -> tuple[dict[str, float], dict[str, str]]:
    """Return sacreBLEU and tokenised BLEU, both in [0, 1], and their sacrebleu signatures.

    Tokenised BLEU separates words at spaces only, which is what papers report for texts that are tokenised already.

    Args:
        hypotheses: translations.
        references: as many references.
        lowercase: whether to ignore case.
    """
    scores, signatures = {}, {}
    for name, tokenize in (("sacreBLEU", "13a"), ("tokenised_BLEU", "none")):
        metric = BLEU(lowercase=lowercase, tokenize=tokenize, force=True)
        scores[name] = metric.corpus_score(list(hypotheses), [list(references)]).score / 100
        signatures[name] = str(metric.get_signature())
    return scores, signatures


def examples(
    sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str], lowercase: bool = False
) -> dict[str, list[dict[str, str]]]:
    """Return the first wrong and the first right translations, each with its sentence's chrF in [0, 100].

    A translation is right if it equals the reference; `lowercase` is as in `corpus_scores`.
    """
    metric = CHRF(lowercase=lowercase)
    kinds: dict[str, list[dict[str, str]]] = {"wrong": [], "right": []}
    for source, hypothesis, reference in zip(sources, hypotheses, references, strict=True):
        right = hypothesis.lower() == reference.lower() if lowercase else hypothesis == reference
        rows = kinds["right" if right else "wrong"]
        if len(rows) < EXAMPLES:
            score = metric.sentence_score(hypothesis, [reference]).score
            rows.append({"source": source, "translation": hypothesis, "reference": reference, "chrF": f"{score:.1f}"})
    return kinds


@torch.no_grad()
def validation_scores(task: Any, model: Any, config: TranslationExperiment) -> dict[str, float]:
    """Return sacreBLEU of the validation sentences, translated greedily.

    Args:
        task: fairseq's task, with the loaded data.
        model: fairseq's model; its training mode is restored.
        config: the experiment.
    """
    training = model.training
    model.eval()
    options = arguments.decoding(config) | ({"beam": 1} if config.model.kind == "at" else {})
    generator = task.build_generator([model], Namespace(**options))
    dictionary, device = task.target_dictionary, next(model.parameters()).device

    def text(tokens: Tensor) -> str:
        return str(dictionary.string(tokens.int().cpu(), "sentencepiece", escape_unk=True))

    hypotheses, references = [], []
    for batch in _validation_batches(task, config):
        batch["net_input"] = {name: value.to(device) for name, value in batch["net_input"].items()}
        candidates = task.inference_step(generator, [model], batch)
        hypotheses += [text(ranked[0]["tokens"]) for ranked in candidates]
        references += [text(row[row != dictionary.pad()]) for row in batch["target"]]
    model.train(training)
    scores, _ = corpus_scores(hypotheses, references, config.data.lowercase)
    return {"validation_sacreBLEU": scores["sacreBLEU"]}


def _validation_batches(task: Any, config: TranslationExperiment) -> Any:
    return task.get_batch_iterator(
        task.dataset("valid"),
        max_tokens=config.decode.max_tokens,
        max_positions=(arguments.POSITIONS, arguments.POSITIONS),
        ignore_invalid_inputs=True,
        required_batch_size_multiple=1,
        disable_iterator_cache=True,  # the cached iterator is the trainer's, which holds one process's share
    ).next_epoch_itr(shuffle=False)
