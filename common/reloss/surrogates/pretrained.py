"""Fitted surrogates by name: the package ships some, and the authors' weights are downloaded once.

The package holds each of its surrogates as a folder with weights, card and a model card in Markdown. The authors'
weights are plain state dicts on GitHub; they are downloaded on first use and kept in a cache.
"""

import os
import shutil
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from reloss.runtime.download import download_into
from reloss.runtime.errors import RelossError, UsageError
from reloss.runtime.files import atomic, read_json, write_json, write_text
from reloss.runtime.progress import say
from reloss.surrogates.storage import CARD_FILE, WEIGHTS_FILE, read_card, read_weights

WEIGHTS = Path(__file__).parent / "weights"
RELEASE = "https://github.com/hunto/ReLoss/releases/download/v1.0.0"
# Class and options of the surrogate for each name. The weights of released/NAME are in the file reloss_NAME.ckpt.
# Pose is named by the size of the images; heatmaps are a quarter of it.
RELEASED: dict[str, tuple[str, dict[str, Any]]] = {
    "released/cls": ("ClassificationReLoss", {}),
    "released/pose_256x192": ("PoseReLoss", {"size": (64, 48)}),
    "released/pose_384x288": ("PoseReLoss", {"size": (96, 72)}),
    "released/nat": ("TranslationReLoss", {}),
}


def pretrained_names() -> list[str]:
    """Return the names of all pretrained surrogates: those of the package and those of the release."""
    shipped = [card.parent.relative_to(WEIGHTS).as_posix() for card in WEIGHTS.rglob(CARD_FILE)]
    return sorted([*shipped, *RELEASED])


def pretrained_class(name: str) -> str:
    """Return the class name of the pretrained surrogate `name`.

    Raises:
        UsageError: there is no pretrained surrogate with that name.
    """
    names = pretrained_names()
    if name not in names:
        nearest = get_close_matches(name, names, cutoff=0.5)
        raise UsageError(
            f"no surrogate at {name}: expected a folder with {CARD_FILE}, a file of weights, or one of the names "
            f"{', '.join(names)}" + (f"; did you mean {' or '.join(nearest)}?" if nearest else "")
        )
    return RELEASED[name][0] if name in RELEASED else str(read_card(WEIGHTS / name)["class"])


def find_pretrained(name: str, surrogate_class: str) -> tuple[Path, dict[str, Any]]:
    """Return the path of the pretrained surrogate `name`, and its options if the path is a file of released weights.

    For a surrogate of the package the path is a folder, whose card holds the options.

    Args:
        name: one of `pretrained_names()`.
        surrogate_class: the name of the class to load.

    Raises:
        UsageError: there is no surrogate with that name, or it is for another class.
        RelossError: the released weights cannot be downloaded.
    """
    named_class = pretrained_class(name)
    if named_class != surrogate_class:
        raise UsageError(f"{name} is a {named_class}, not a {surrogate_class}; reloss.load picks the class itself")
    return (_released_weights(name), RELEASED[name][1]) if name in RELEASED else (WEIGHTS / name, {})


def cache_folder() -> Path:
    """Return the folder for downloads: $RELOSS_CACHE, else `reloss` in $XDG_CACHE_HOME or ~/.cache."""
    if chosen := os.environ.get("RELOSS_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reloss"


def _released_weights(name: str) -> Path:
    """Return the file of the authors' weights; downloads it if it is not in the cache.

    The release publishes no checksum. The check is that the file is complete and holds nothing but tensors.
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
            raise RelossError(f"{error}; the file was discarded: try again, or put a good one at {path}") from error
    return path


# Adding a surrogate to the package


def add_pretrained(name: str, folder: str | Path, about: dict[str, Any] | None = None) -> None:
    """Put the fitted surrogate in `folder` into the package as `name`, with its model card; replaces an existing one.

    Example: python -c 'from reloss.surrogates.pretrained import add_pretrained as add; add("a/b", "surrogate")'

    Args:
        name: name to load it by.
        folder: folder that `reloss learn` wrote.
        about: facts that only its maker knows: `data` (source of the predictions), `commands` (a list of all that
            reproduce it), `good_for` and `not_good_for`. By default, the facts in the card it replaces.

    Raises:
        UsageError: there is no surrogate to replace, so `about` is required.
        RelossError: the folder holds no surrogate.
    """
    folder, target = Path(folder), WEIGHTS / name
    if about is None and not (target / CARD_FILE).exists():
        raise UsageError(f"the package holds no {name} yet: call add_pretrained with `about`")
    card = {**read_json(folder / CARD_FILE), "about": about or read_json(target / CARD_FILE)["about"]}
    text = model_card(name, card)
    read_weights(folder / WEIGHTS_FILE)
    with atomic(target / WEIGHTS_FILE) as temporary:
        shutil.copyfile(folder / WEIGHTS_FILE, temporary)
    write_json(target / CARD_FILE, card)
    write_text(target / "README.md", text)


def model_card(name: str, card: dict[str, Any]) -> str:
    """Return the model card, in Markdown, of the pretrained surrogate `name` with this card (JSON)."""
    about, learn, fit = card["about"], card["learn"], card["fit"]
    commands = "\n".join(f"    {command}" for command in about["commands"])
    return f"""# {name}

    from reloss import {card["class"]}
    loss = {card["class"]}.from_pretrained("{name}")

- data: {about["data"]}
- metric: {card["metric"]}, {"higher" if card["higher_is_better"] else "lower"} is better
- fidelity: {learn["fidelity"]}
- held-out items: {fit["validation_items"]}, which is {learn["validation_fraction"]:.0%} of the recorded ones
- Spearman with the metric, recorded items: {fit["spearman"]:.4f} (the ordinary loss: {fit["spearman_ordinary"]:.4f})
- Spearman with the metric, synthetic items: {fit["spearman_synthetic"]:.4f}
- weights: from step {fit["step"]} of {learn["steps"]}, chosen on the held-out items
- bank: {card["bank"]}

**Good for:** {about["good_for"]}

**Not good for:** {about["not_good_for"]}

To reproduce it:

{commands}

This page is generated from `surrogate.json` by `reloss.surrogates.pretrained.add_pretrained`.
"""
