"""Files of a surrogate: a folder with `surrogate.safetensors`, the weights, and `surrogate.json`, the card.

The card names the class and the constructor's options, and holds a checksum of the weights, so that a folder loads
without further arguments and a damaged one is refused. Weights are read as tensors only; no code in a file is run.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from reloss.runtime.errors import RelossError, UsageError
from reloss.runtime.files import atomic, check_hash, read_json, sha256_of, short_hash, write_json

if TYPE_CHECKING:
    from reloss.surrogates.base import SurrogateLoss

SurrogateT = TypeVar("SurrogateT", bound="SurrogateLoss")
WEIGHTS_FILE, CARD_FILE = "surrogate.safetensors", "surrogate.json"


def save_surrogate(surrogate: SurrogateLoss, folder: Path, card: dict[str, Any]) -> None:
    """Write the weights, then the card (class, options and `card`), into `folder`."""
    weights = {name: value.detach().cpu().contiguous() for name, value in surrogate.state_dict().items()}
    with atomic(folder / WEIGHTS_FILE) as temporary:
        save_file(weights, temporary)
    description = {"class": type(surrogate).__name__, "options": surrogate.options()}
    hashes = {"sha256": sha256_of(folder / WEIGHTS_FILE), "options_hash": short_hash(description)}
    write_json(folder / CARD_FILE, {**description, **card, **hashes})


def is_saved(folder: Path) -> bool:
    """Return whether `folder` holds the two files of a surrogate."""
    return (folder / WEIGHTS_FILE).exists() and (folder / CARD_FILE).exists()


def read_card(folder: Path) -> dict[str, Any]:
    """Return the card of the surrogate in `folder`.

    Raises:
        RelossError: the card is missing, names no class and options, or the figures of its fit were changed.
    """
    path = folder / CARD_FILE
    if not path.exists():
        raise RelossError(f"{folder} holds no saved loss, no {CARD_FILE}; name a folder that save_pretrained wrote")
    card = read_json(path)
    if not (isinstance(card, dict) and isinstance(card.get("class"), str) and isinstance(card.get("options"), dict)):
        raise RelossError(
            f"{path} does not describe a surrogate: it has no class and options; name a folder that save_pretrained or "
            "`reloss learn` wrote"
        )
    check_hash(card, "fit", path)
    return card


def load_folder(surrogate_class: type[SurrogateT], folder: Path) -> SurrogateT:
    """Return the surrogate in `folder`.

    Raises:
        RelossError: the folder is damaged, was changed, or holds a surrogate of another class or version.
    """
    card, name = read_card(folder), surrogate_class.__name__
    path, weights_path = folder / CARD_FILE, folder / WEIGHTS_FILE
    if card.get("sha256") is not None and weights_path.is_file() and sha256_of(weights_path) != card["sha256"]:
        raise RelossError(f"{weights_path} is damaged: its checksum differs from the one in {CARD_FILE}")
    if card["class"] != name:
        raise RelossError(f"{path} describes a {card['class']}, not a {name}; reloss.load picks the class itself")
    expected = card.get("options_hash")  # missing in cards of earlier versions
    if expected not in (None, short_hash({key: card[key] for key in ("class", "options")})):
        raise RelossError(f"{path} was changed: its options differ from the ones the surrogate was saved with")
    weights = read_weights(weights_path)
    try:
        with torch.device("meta"):  # takes no memory, so sizes of another file, or damaged ones, are refused first
            _check_fit(surrogate_class(**card["options"]), weights, folder)
        surrogate = surrogate_class(**card["options"])
    except RelossError:
        raise
    except Exception as error:  # options of any type and size fail in many ways
        raise RelossError(f"{path} describes no {name} of this version: {str(error).partition(chr(10))[0]}") from error
    return _with_weights(surrogate, weights, folder)


def load_file_of_weights(surrogate_class: type[SurrogateT], path: Path, options: dict[str, Any]) -> SurrogateT:
    """Return the surrogate with the weights in a file; sizes that `options` do not give are read from the weights.

    Raises:
        UsageError: the options are wrong.
        RelossError: the file is damaged, or its weights do not fit.
    """
    weights = read_weights(path)
    try:
        surrogate = surrogate_class(**{**surrogate_class.options_of(weights), **options})
    except (TypeError, ValueError) as error:
        raise UsageError(f"no {surrogate_class.__name__} with {options}: {error}") from error
    return _with_weights(surrogate, weights, path)


def _check_fit(surrogate: SurrogateLoss, weights: dict[str, Tensor], path: Path) -> None:
    """Raise RelossError if the weights have other shapes than the parameters of the surrogate."""
    shapes = {name: value.shape for name, value in surrogate.state_dict().items()}
    wrong = [name for name in shapes.keys() & weights.keys() if weights[name].shape != shapes[name]]
    if wrong:
        name = min(wrong)
        raise RelossError(
            f"the weights in {path} do not fit {type(surrogate).__name__}: {name} has shape "
            f"{list(weights[name].shape)}, not {list(shapes[name])}; load them with the options they were saved with"
        )


def _with_weights(surrogate: SurrogateT, weights: dict[str, Tensor], path: Path) -> SurrogateT:
    dtypes = {value.dtype for value in weights.values()}
    if len(dtypes) == 1 and all(dtype.is_floating_point for dtype in dtypes):
        surrogate.to(dtypes.pop())
    try:
        surrogate.load_state_dict(weights)
    except RuntimeError as error:
        reasons = "; ".join(line.strip() for line in str(error).splitlines()[1:])
        raise RelossError(
            f"the weights in {path} do not fit {type(surrogate).__name__}: {reasons}; load them with the class and the "
            "options they were saved with"
        ) from error
    return surrogate


def read_weights(path: Path, source: str | Path | None = None) -> dict[str, Tensor]:
    """Return the state dict in a file: safetensors, or what torch.save wrote, read with `weights_only`.

    Args:
        path: the file.
        source: the name of the file in error messages; its path by default.

    Raises:
        RelossError: the file is missing, damaged, or holds anything but named tensors.
    """
    source = source or path
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise RelossError(f"cannot read weights from {source}: {str(error).partition(chr(10))[0]}") from error
    except Exception as error:  # garbage fails in many ways; torch's own message advises to run the code in the file
        raise RelossError(f"cannot read weights from {source}: it is not a file of tensors only") from error
    if not isinstance(weights, dict):
        raise RelossError(f"cannot read weights from {source}: it holds a {type(weights).__name__}, not a state dict")
    for name, value in weights.items():
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            raise RelossError(
                f"cannot read weights from {source}: under {name!r} it holds a {type(value).__name__}, not a tensor"
            )
    return weights
