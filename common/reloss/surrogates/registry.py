"""All kinds of surrogates by name, and the two ways to get one: `build` a fresh one, or `load` a fitted one.

Code that works with any kind of surrogate goes through this module and never names a class.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reloss.runtime.errors import RelossError, UsageError, unknown
from reloss.surrogates.base import SurrogateLoss
from reloss.surrogates.classification import ClassificationReLoss
from reloss.surrogates.options import PRESETS, Fidelity, Input, Output
from reloss.surrogates.pose import PoseReLoss
from reloss.surrogates.pretrained import pretrained_class
from reloss.surrogates.reading import ReadingReLoss
from reloss.surrogates.sets import SetReLoss
from reloss.surrogates.storage import read_card
from reloss.surrogates.translation import TranslationReLoss

KINDS: dict[str, type[SurrogateLoss]] = {
    "classification": ClassificationReLoss,
    "pose": PoseReLoss,
    "reading": ReadingReLoss,
    "set": SetReLoss,
    "translation": TranslationReLoss,
}


def find_kind(kind: str) -> type[SurrogateLoss]:
    """Return the class of the surrogates of this kind.

    Raises:
        UsageError: the kind is unknown; the message names the nearest ones.
    """
    if kind not in KINDS:
        raise unknown("kind of surrogate", kind, KINDS)
    return KINDS[kind]


def build(
    kind: str,
    shape: Sequence[int],
    *,
    fidelity: Fidelity = "corrected",
    input: Input | None = None,
    output: Output | None = None,
    **options: Any,
) -> SurrogateLoss:
    """Return a fresh surrogate, ready to be fitted.

    Args:
        kind: a key of `KINDS`.
        shape: of one example's outputs, such as [C] for class logits or [K, H, W] for heatmaps.
        fidelity: `released` or `corrected`; chooses `input` and `output` where they are None.
        input: how probabilities enter the network; kinds whose features are not probabilities ignore it.
        output: form of the network's output.
        options: further arguments of the kind's constructor, such as `structure` for reading, or `width`.

    Raises:
        UsageError: the kind or the fidelity is unknown.
        ValueError: this kind takes no outputs of this shape, or an option has a wrong value.
        TypeError: the constructor has no such option.
    """
    surrogate_class = find_kind(kind)
    if fidelity not in PRESETS:
        raise unknown("fidelity", fidelity, PRESETS)
    preset = PRESETS[fidelity]
    arguments = surrogate_class.arguments(
        shape, fidelity=fidelity, input=input or preset["input"], output=output or preset["output"]
    )
    return surrogate_class(**{**arguments, **options})


def load(name_or_path: str | Path) -> SurrogateLoss:
    """Return a fitted surrogate, frozen, whatever its kind: the class is read from its card.

    Args:
        name_or_path: a folder written by `save_pretrained`, or a name in `pretrained_names()`.

    Raises:
        UsageError: there is no such folder or name, or it is a file of weights, which does not name its class.
        RelossError: the card or the weights are damaged, or the class is not one of `KINDS`.
    """
    path = Path(name_or_path)
    if path.is_file():
        raise UsageError(f"{path} holds weights without a card; load it with from_pretrained of the surrogate's class")
    name = read_card(path)["class"] if path.is_dir() else pretrained_class(str(name_or_path))
    classes = {surrogate_class.__name__: surrogate_class for surrogate_class in KINDS.values()}
    if name not in classes:
        raise RelossError(f"{path} describes a {name}, not one of {', '.join(classes)}; load it with from_pretrained")
    return classes[name].from_pretrained(name_or_path)
