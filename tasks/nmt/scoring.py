"""BLEU of a whole test set, by sacrebleu."""

from __future__ import annotations

from collections.abc import Sequence

from sacrebleu.metrics import BLEU, CHRF

SHOWN = 20  # of the right and of the wrong translations


def corpus_scores(
    hypotheses: Sequence[str], references: Sequence[str], lowercase: bool = False
) -> tuple[dict[str, float], dict[str, str]]:
    """Return sacreBLEU and tokenised BLEU, both from 0 to 1, and sacrebleu's signatures of them.

    Tokenised BLEU takes words as spaces separate them, which is what papers report of texts that were tokenised before.

    Args:
        hypotheses: translations.
        references: as many.
        lowercase: without regard to case.
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
    """Return the first translations that differ from the reference, and the first that are the same, to look at.

    Each with its sentence's chrF, from 0 to 100; `lowercase` as for the scores.
    """
    metric = CHRF(lowercase=lowercase)
    kinds: dict[str, list[dict[str, str]]] = {"wrong": [], "right": []}
    for source, hypothesis, reference in zip(sources, hypotheses, references, strict=True):
        same = hypothesis.lower() == reference.lower() if lowercase else hypothesis == reference
        kind = kinds["right" if same else "wrong"]
        if len(kind) < SHOWN:
            score = metric.sentence_score(hypothesis, [reference]).score
            row = {"source": source, "translation": hypothesis, "reference": reference, "chrF": f"{score:.1f}"}
            kind.append(row)
    return kinds
