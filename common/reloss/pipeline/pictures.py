"""The picture of a surrogate, kept in its folder: the points that show the learned loss next to the ordinary one."""

from __future__ import annotations

import json
from pathlib import Path

from reloss.experiment.records import SurrogateRecord
from reloss.learning import LearnOptions, PredictionBank
from reloss.learning.picture import measure_picture
from reloss.metrics import get_metric
from reloss.runtime.errors import RelossError
from reloss.runtime.files import write_text
from reloss.surrogates import load

Picture = dict[str, dict[str, list[float]]]
"""Values of the axes by part of the picture, such as items, curve or examples; see `reloss.learning.picture`."""


def write_picture(folder: Path, picture: Picture) -> None:
    """Write the picture of the surrogate in `folder`, on one line."""
    write_text(folder / "picture.json", json.dumps(picture) + "\n")


def read_picture(surrogate: SurrogateRecord) -> Picture | None:
    """Return the picture of a surrogate.

    A surrogate without a picture is measured on its experiment's bank. If the weights or the bank are missing too,
    return None.

    Raises:
        RelossError: a file is damaged, or the surrogate does not fit the bank.
    """
    picture, folder = surrogate.picture(), surrogate.folder
    if picture is not None or folder is None:
        return picture
    bank = folder.parents[1] / "bank"
    if not ((folder / "surrogate.safetensors").exists() and (bank / "bank.json").exists()):
        return None
    try:
        options = LearnOptions.model_validate(surrogate.config()["learn"])
        return measure_picture(load(folder), PredictionBank.open(bank), get_metric(surrogate.metric), options)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise RelossError(f"the surrogate in {folder} cannot be measured on {bank} ({error}); fit it again") from error
