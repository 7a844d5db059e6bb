"""Relational Surrogate Loss Learning (Huang et al., ICLR 2022): losses learned to rank as a metric does.

The names below load on first use, so that `import reloss` costs nothing and needs no framework.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reloss.surrogates import ClassificationReLoss as ClassificationReLoss

__version__ = "0.1.0"
__all__ = ["ClassificationReLoss"]  # noqa: F822 (served by __getattr__)


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("reloss.surrogates"), name)
    raise AttributeError(f"module 'reloss' has no attribute '{name}'")
