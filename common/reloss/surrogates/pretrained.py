"""Surrogates by name: those that ship with the package, and the weights that the authors released, downloaded once."""

import os
import shutil
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from reloss.runtime.download import download_into
from reloss.runtime.errors import RelossError, UsageError
from reloss.runtime.files import atomic, read_json, write_json, write_text
from reloss.runtime.progress import say

WEIGHTS = Path(__file__).parent / "weights"
RELEASE = "https://github.com/hunto/ReLoss/releases/download/v1.0.0"
# The class of surrogate that the weights of each name are for, and its options. The file of released/NAME is
# reloss_NAME.ckpt. Pose is named by the size of the images; heatmaps are a quarter of it.
RELEASED: dict[str, tuple[str, dict[str, Any]]] = {
    "released/cls": ("ClassificationReLoss", {}),
    "released/pose_256x192": ("PoseReLoss", {"size": (64, 48)}),
    "released/pose_384x288": ("PoseReLoss", {"size": (96, 72)}),
    "released/nat": ("TranslationReLoss", {}),
}


def pretrained_names() -> list[str]:
    """Return the names of all pretrained surrogates: those of the package and those of the release."""
    shipped = [card.parent.relative_to(WEIGHTS).as_posix() for card in WEIGHTS.rglob("surrogate.json")]
    return sorted([*shipped, *RELEASED])


def read_card(folder: Path) -> dict[str, Any]:
    """Return the card of the surrogate in `folder`.

    Raises:
        RelossError: there is no card, or it names no class and options.
    """
    path = folder / "surrogate.json"
    card = read_json(path)
    if not (isinstance(card, dict) and isinstance(card.get("class"), str) and isinstance(card.get("options"), dict)):
        raise RelossError(f"{path} does not describe a surrogate: it has no class and options")
    return card


def pretrained_class(name: str) -> str:
    """Return the name of the class of the pretrained surrogate `name`.

    Raises:
        UsageError: there is no pretrained surrogate of that name.
    """
    names = pretrained_names()
    if name not in names:
        near = get_close_matches(name, names, cutoff=0.5)
        raise UsageError(
            f"no surrogate at {name}: expected a folder with surrogate.json, a file of weights, or one of the names "
            f"{', '.join(names)}" + (f"; did you mean {' or '.join(near)}?" if near else "")
        )
    return RELEASED[name][0] if name in RELEASED else str(read_card(WEIGHTS / name)["class"])


def find_pretrained(name: str, surrogate_class: str) -> tuple[Path, dict[str, Any]]:
    """Return where the pretrained surrogate `name` is, and its options if it is a file of released weights.

    It is else a folder in the package, which states its options itself.

    Args:
        name: one of `pretrained_names()`.
        surrogate_class: the name of the class that is to be loaded.

    Raises:
        UsageError: there is none of that name, or it is for another class.
        RelossError: the released weights cannot be downloaded.
    """
    own_class = pretrained_class(name)
    if own_class != surrogate_class:
        raise UsageError(f"{name} is for {own_class}, not for {surrogate_class}")
    return (_released_weights(name), RELEASED[name][1]) if name in RELEASED else (WEIGHTS / name, {})


def cache_folder() -> Path:
    """Return where downloads are kept: $RELOSS_CACHE, else `reloss` in $XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("RELOSS_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reloss"


def _released_weights(name: str) -> Path:
    """Return the file of the authors' weights, downloaded unless it is there.

    The release states no checksum. That the file came whole and holds tensors alone is all that can be checked.
    """
    file = f"reloss_{name.removeprefix('released/')}.ckpt"
    url, path = f"{RELEASE}/{file}", cache_folder() / file
    if path.exists():
        return path
    say(f"downloading {url} to {path}")
    with atomic(path) as temporary:
        with temporary.open("wb") as out:
            download_into(out, url, path)
        try:
            read_weights(temporary, source=url)
        except RelossError as error:
            raise RelossError(f"{error}; it was not kept: try again, or put a good file at {path}") from error
    return path


def read_weights(path: Path, source: str | Path | None = None) -> dict[str, Tensor]:
    """Return the state dict in a file: safetensors, or what torch.save wrote, read with `weights_only`.

    Args:
        path: the file.
        source: what messages call it; by default its path.

    Raises:
        RelossError: the file is missing, damaged, or holds anything but tensors by their names.
    """
    source = source or path
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise RelossError(f"cannot read weights from {source}: {str(error).partition(chr(10))[0]}") from error
    except Exception as error:  # garbage fails in many ways; torch's own message advises to run the code in the file
        raise RelossError(f"cannot read weights from {source}: it is not a file of tensors alone") from error
    if not isinstance(weights, dict):
        raise RelossError(f"cannot read weights from {source}: it holds a {type(weights).__name__}, not a state dict")
    for name, value in weights.items():
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            raise RelossError(
                f"cannot read weights from {source}: under {name!r} it holds a {type(value).__name__}, not a tensor"
            )
    return weights


# Adding to the package


def add_pretrained(name: str, folder: str | Path, about: dict[str, Any] | None = None) -> None:
    """Put the learned surrogate in `folder` into the package as `name`, with its model card; replaces what is there.

    Example: python -c 'from reloss.surrogates.pretrained import add_pretrained as add; add("a/b", "surrogate")'

    Args:
        name: under which it can be loaded.
        folder: that `reloss learn` wrote.
        about: what only its maker knows: `data` (of the predictions), `commands` (all that made it, a list),
            `good_for` and `not_good_for`. By default, what the surrogate that is there now says.

    Raises:
        UsageError: there is none now, so `about` must be given.
        RelossError: the folder holds no surrogate.
    """
    folder, target = Path(folder), WEIGHTS / name
    if about is None and not (target / "surrogate.json").exists():
        raise UsageError(f"the package holds no {name} yet: give add_pretrained `about`")
    card = {**read_json(folder / "surrogate.json"), "about": about or read_json(target / "surrogate.json")["about"]}
    text = model_card(name, card)
    read_weights(folder / "surrogate.safetensors")
    with atomic(target / "surrogate.safetensors") as temporary:
        shutil.copyfile(folder / "surrogate.safetensors", temporary)
    write_json(target / "surrogate.json", card)
    write_text(target / "README.md", text)


def model_card(name: str, card: dict[str, Any]) -> str:
    """Return the model card, in Markdown, of the pretrained surrogate `name` that `card`, its JSON, describes."""
    about, learn, fit = card["about"], card["learn"], card["fit"]
    commands = "\n".join(f"    {command}" for command in about["commands"])
    return f"""# {name}

    from reloss import {card["class"]}
    loss = {card["class"]}.from_pretrained("{name}")

| | |
| --- | --- |
| data | {about["data"]} |
| metric | {card["metric"]}, {"higher" if card["higher_is_better"] else "lower"} is better |
| fidelity | {learn["fidelity"]} |
| held-out items | {fit["validation_items"]}, a share of {learn["validation_fraction"]:g} of those recorded |
| Spearman with the metric, recorded items | {fit["spearman"]:.4f} (the ordinary loss: {fit["spearman_ordinary"]:.4f}) |
| Spearman with the metric, synthetic items | {fit["spearman_synthetic"]:.4f} |
| best weights | of step {fit["step"]} of {learn["steps"]}, chosen on these items |
| bank | {card["bank"]} |

**Good for:** {about["good_for"]}

**Not good for:** {about["not_good_for"]}

Made by

{commands}

This page is written from `surrogate.json` by `reloss.surrogates.pretrained.add_pretrained`.
"""
