"""BLEU of a whole test set, by sacrebleu."""

from __future__ import annotations

from collections.abc import Sequence

from sacrebleu.metrics import BLEU


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
