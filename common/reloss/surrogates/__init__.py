"""Learned losses: one base class, one module per kind of prediction."""

from reloss.runtime.errors import unknown
from reloss.surrogates.base import SurrogateLoss
from reloss.surrogates.classification import ClassificationReLoss
from reloss.surrogates.pose import PoseReLoss
from reloss.surrogates.pretrained import pretrained_names
from reloss.surrogates.reading import ReadingReLoss
from reloss.surrogates.sets import SetReLoss
from reloss.surrogates.translation import TranslationReLoss

SURROGATES: dict[str, type[SurrogateLoss]] = {
    "classification": ClassificationReLoss,
    "pose": PoseReLoss,
    "reading": ReadingReLoss,
    "set": SetReLoss,
    "translation": TranslationReLoss,
}


def get_surrogate(kind: str) -> type[SurrogateLoss]:
    """Return the class of surrogates for predictions of `kind`.

    Raises:
        UsageError: there is none of that kind.
    """
    if kind not in SURROGATES:
        raise unknown("kind of surrogate", kind, SURROGATES)
    return SURROGATES[kind]


__all__ = [
    "SURROGATES",
    "ClassificationReLoss",
    "PoseReLoss",
    "ReadingReLoss",
    "SetReLoss",
    "SurrogateLoss",
    "TranslationReLoss",
    "get_surrogate",
    "pretrained_names",
]
