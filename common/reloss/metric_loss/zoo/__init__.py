"""The zoo: losses for well-known metrics that are fitted already and work on any data of their kind.

Expected counts and expected ranks describe a batch without reference to its data set: precision is a ratio, whether the
examples are cells or customers. So one loss, fitted on the recordings of many sets, can serve a set it has never seen.
Each loss is one file of a few kilobytes in this folder; the header of the file holds its card: the sets it was fitted
on, and how it did on sets that it was not fitted on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from reloss.runtime.errors import RelossError, unknown
from reloss.runtime.files import atomic
from reloss.surrogates import SurrogateLoss
from reloss.surrogates.registry import find_expected_kind

FOLDER = Path(__file__).parent
SUFFIX = ".safetensors"
CARD = "card"  # key of the card in the header of a file


def zoo_names() -> list[str]:
    """Return the names of the losses that `reloss.load` takes without a folder, such as "f1"."""
    return sorted(path.stem for path in FOLDER.glob(f"*{SUFFIX}"))


def zoo_card(name: str) -> dict[str, Any]:
    """Return the card of a loss of the zoo.

    Raises:
        UsageError: there is no such loss; the message names the nearest ones.
        RelossError: the file is damaged.
    """
    if name not in zoo_names():
        raise unknown("loss of the zoo", name, zoo_names())
    return read_file(FOLDER / f"{name}{SUFFIX}")


def load_surrogate(name: str) -> tuple[SurrogateLoss, str]:
    """Return the surrogate of a loss of the zoo, frozen, and the name of its kind of predictions.

    Raises:
        UsageError, RelossError: see `zoo_card`.
    """
    card = zoo_card(name)
    surrogate_class = find_expected_kind(card["surrogate"])
    surrogate = surrogate_class.from_pretrained(FOLDER / f"{name}{SUFFIX}", **card["options"])
    return surrogate, str(card["kind"])


def write_file(path: Path, surrogate: SurrogateLoss, card: dict[str, Any]) -> None:
    """Write the weights of a fitted surrogate, and the card with the surrogate's options in the header.

    Args:
        path: the file.
        surrogate: its weights.
        card: facts about the loss; `surrogate` is the kind of surrogate, `kind` the kind of predictions.
    """
    text = json.dumps({**card, "options": surrogate.options()}, sort_keys=True, allow_nan=False)
    weights = {name: value.detach().cpu().contiguous() for name, value in surrogate.state_dict().items()}
    with atomic(path) as temporary:
        save_file(weights, temporary, metadata={CARD: text})


def read_file(path: Path) -> dict[str, Any]:
    """Return the card in the header of a file.

    Raises:
        RelossError: the file is damaged, or has no card.
    """
    try:
        with safe_open(path, framework="pt") as file:
            card = json.loads((file.metadata() or {})[CARD])
        if not (isinstance(card["options"], dict) and {"surrogate", "kind"} <= card.keys()):
            raise KeyError("options, surrogate or kind")
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise RelossError(f"{path} is damaged: its header holds no card ({error}); install the package again") from None
    return dict(card)
