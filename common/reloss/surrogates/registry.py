"""All kinds of surrogates by name, and the two ways to get one: `build` a fresh one, or `load` a fitted one.

Each kind of prediction has one class that sees the likelihood of the targets, in `KINDS`, and one that sees the
expected parts of the metric, in `EXPECTED_KINDS`. Some kinds have the latter only. The kind `top` is `set` for metrics
of a ranking's top, and `pose_ranking` is `pose` for metrics that rank persons by their confidence.

Code that works with any kind of surrogate goes through this module and never names a class.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reloss.runtime.errors import RelossError, UsageError, unknown
from reloss.surrogates.base import SurrogateLoss
from reloss.surrogates.classification import ClassificationReLoss
from reloss.surrogates.expected.base import ExpectedLoss
from reloss.surrogates.expected.classification import ExpectedClassification
from reloss.surrogates.expected.labels import ExpectedLabels
from reloss.surrogates.expected.lists import ExpectedLists
from reloss.surrogates.expected.masks import ExpectedMasks
from reloss.surrogates.expected.pose import ExpectedPose
from reloss.surrogates.expected.pose_ranking import ExpectedPoseRanking
from reloss.surrogates.expected.reading import ExpectedReading
from reloss.surrogates.expected.regression import ExpectedRegression
from reloss.surrogates.expected.sets import ExpectedSets
from reloss.surrogates.expected.top import ExpectedTop
from reloss.surrogates.expected.translation import ExpectedTranslation
from reloss.surrogates.options import PRESETS, Features, Input, Output
from reloss.surrogates.pose import PoseReLoss
from reloss.surrogates.pretrained import pretrained_class
from reloss.surrogates.reading import ReadingReLoss
from reloss.surrogates.sets import SetReLoss
from reloss.surrogates.storage import read_card
from reloss.surrogates.translation import TranslationReLoss

KINDS: dict[str, type[SurrogateLoss]] = {
    "classification": ClassificationReLoss,
    "pose": PoseReLoss,
    "pose_ranking": PoseReLoss,
    "reading": ReadingReLoss,
    "set": SetReLoss,
    "top": SetReLoss,
    "translation": TranslationReLoss,
}

EXPECTED_KINDS: dict[str, type[ExpectedLoss]] = {
    "classification": ExpectedClassification,
    "labels": ExpectedLabels,
    "lists": ExpectedLists,
    "masks": ExpectedMasks,
    "pose": ExpectedPose,
    "pose_ranking": ExpectedPoseRanking,
    "reading": ExpectedReading,
    "regression": ExpectedRegression,
    "set": ExpectedSets,
    "top": ExpectedTop,
    "translation": ExpectedTranslation,
}


def find_kind(kind: str) -> type[SurrogateLoss]:
    """Return the class of the surrogates of this kind.

    Raises:
        UsageError: the kind is unknown, and the message names the nearest ones; or it has expected features only.
    """
    if kind not in KINDS and kind in EXPECTED_KINDS:
        raise UsageError(f'kind {kind} has expected features only; choose features="expected"')
    if kind not in KINDS:
        raise unknown("kind of surrogate", kind, KINDS)
    return KINDS[kind]


def find_expected_kind(kind: str) -> type[ExpectedLoss]:
    """Return the class of the losses over expected parts of a metric for this kind of predictions.

    Raises:
        UsageError: there is none; the message names the nearest kinds.
    """
    if kind not in EXPECTED_KINDS:
        raise unknown("kind of surrogate with expected features", kind, EXPECTED_KINDS)
    return EXPECTED_KINDS[kind]


def build(
    kind: str,
    shape: Sequence[int],
    *,
    features: Features = "likelihood",
    input: Input | None = None,
    output: Output | None = None,
    **options: Any,
) -> SurrogateLoss:
    """Return a fresh surrogate, ready to be fitted.

    Args:
        kind: a key of `KINDS`; with expected features, of `EXPECTED_KINDS`.
        shape: of one example's outputs, such as [C] for class logits or [K, H, W] for heatmaps.
        features: what the surrogate sees of a prediction; chooses `input` and `output` where they are None.
        input: how probabilities enter the network; kinds whose features are not probabilities ignore it.
        output: form of the network's output; with expected features only `monotone`.
        options: further arguments of the constructor, such as `structure` for reading, `metric` for a loss with
            expected features that needs no learning, or `width`.

    Raises:
        UsageError: the kind or the features are unknown.
        ValueError: this kind takes no outputs of this shape, or an option has a wrong value.
        TypeError: the constructor has no such option.
    """
    if features not in PRESETS:
        raise unknown("features", features, PRESETS)
    preset = PRESETS[features]
    input, output = input or preset["input"], output or preset["output"]
    if features == "expected":
        if (input, output) != (preset["input"], preset["output"]):
            raise ValueError("input and output are options of features likelihood and released")
        expected_class = find_expected_kind(kind)
        return expected_class(**{**expected_class.expected_arguments(shape), **options})
    surrogate_class = find_kind(kind)
    arguments = surrogate_class.arguments(shape, features=features, input=input, output=output)
    return surrogate_class(**{**arguments, **options})


def load(name_or_path: str | Path) -> SurrogateLoss:
    """Return a fitted surrogate, frozen, whatever its kind: the class is read from its card.

    Args:
        name_or_path: a folder written by `save_pretrained`, or a name in `pretrained_names()`.

    Raises:
        UsageError: there is no such folder or name, or it is a file of weights, which does not name its class.
        RelossError: the card or the weights are damaged, or the class is not one of this module's.
    """
    path = Path(name_or_path)
    if path.is_file():
        raise UsageError(f"{path} holds weights without a card; load it with from_pretrained of the surrogate's class")
    name = read_card(path)["class"] if path.is_dir() else pretrained_class(str(name_or_path))
    classes = {loss_class.__name__: loss_class for loss_class in (*KINDS.values(), *EXPECTED_KINDS.values())}
    if name not in classes:
        raise RelossError(f"{path} describes a {name}, not one of {', '.join(classes)}; load it with from_pretrained")
    return classes[name].from_pretrained(name_or_path)
