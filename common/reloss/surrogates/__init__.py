"""Learned losses: one base class, one module per kind of prediction. `options` imports no torch."""

from typing import TYPE_CHECKING

from reloss.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from reloss.surrogates.base import SurrogateLoss
    from reloss.surrogates.classification import ClassificationReLoss
    from reloss.surrogates.pose import PoseReLoss
    from reloss.surrogates.pretrained import pretrained_names
    from reloss.surrogates.reading import ReadingReLoss
    from reloss.surrogates.registry import KINDS, build, find_kind, load
    from reloss.surrogates.sets import SetReLoss
    from reloss.surrogates.translation import TranslationReLoss

__all__ = [
    "KINDS",
    "ClassificationReLoss",
    "PoseReLoss",
    "ReadingReLoss",
    "SetReLoss",
    "SurrogateLoss",
    "TranslationReLoss",
    "build",
    "find_kind",
    "load",
    "pretrained_names",
]
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ClassificationReLoss": "reloss.surrogates.classification",
        "PoseReLoss": "reloss.surrogates.pose",
        "ReadingReLoss": "reloss.surrogates.reading",
        "SetReLoss": "reloss.surrogates.sets",
        "SurrogateLoss": "reloss.surrogates.base",
        "TranslationReLoss": "reloss.surrogates.translation",
        "pretrained_names": "reloss.surrogates.pretrained",
        **dict.fromkeys(("KINDS", "build", "find_kind", "load"), "reloss.surrogates.registry"),
    },
)
