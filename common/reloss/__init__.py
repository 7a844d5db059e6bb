"""Relational Surrogate Loss Learning (Huang et al., ICLR 2022): losses learned to rank as a metric does."""

from typing import TYPE_CHECKING

from reloss.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from reloss.surrogates import ClassificationReLoss, PoseReLoss, ReadingReLoss, SetReLoss, TranslationReLoss

__version__ = "0.1.0"
__all__ = ["ClassificationReLoss", "PoseReLoss", "ReadingReLoss", "SetReLoss", "TranslationReLoss"]
__getattr__ = lazy_names(__name__, dict.fromkeys(__all__, "reloss.surrogates"))
